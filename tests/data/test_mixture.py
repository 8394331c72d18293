"""A mixture of sources: its shares, its order, and one source's bad luck."""

from __future__ import annotations

import json
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import order_reference
import pytest
from sample_files import pair_members, write_tar

from clipkit.config import load_config
from clipkit.config.schema import SourceConfig
from clipkit.data import MixtureReader, Reader, hold_back, open_source
from clipkit.data.mixture_order import BLOCK, MixtureOrder, positions_a_block
from clipkit.errors import ConfigError

OPTIONS: dict[str, Any] = {"seed": 5, "lanes": 3, "chunk": 4, "window": 10}


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ([[7, 3], [5], [40, 1, 9]], [2, 1, 1]),
        ([[0, 30, 0]], [1]),
        ([[1], [2000, 900]], [0.999, 0.001]),
        ([[3, 0, 4]] * 5, [1, 2, 3, 4, 5]),
    ],
)
def test_the_order_is_the_one_that_is_defined(sizes: list[list[int]], weights: list[float]) -> None:
    order = MixtureOrder(sizes, weights, **OPTIONS)
    rows = order_reference.mixture(sizes, order.counts.tolist(), **OPTIONS)
    expected = np.array(list(islice(rows, 3 * BLOCK + 1)))
    np.testing.assert_array_equal(order.rows(np.arange(len(expected))), expected)
    some = np.random.default_rng(0).permutation(len(expected))[:500]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(order)).rows(some), expected[some])
    assert len(pickle.dumps(order)) < 20_000  # of blocks, each worker makes its own


def test_a_block_is_shared_by_largest_remainders() -> None:
    assert positions_a_block([2, 1, 1]).tolist() == [2048, 1024, 1024]
    assert positions_a_block([0.7, 0.3]).tolist() == [2867, 1229]
    assert positions_a_block([1, 1, 1]).tolist() == [1366, 1365, 1365]
    assert positions_a_block([1e-9, 1, 2]).tolist() == [1, 1365, 2730]


def test_each_source_goes_through_epochs_of_its_own() -> None:
    order = MixtureOrder([[100], [300], [11]], [1, 1, 2], **OPTIONS)
    rows = order.rows(np.arange(2 * BLOCK))
    assert order.shares == [0.25, 0.25, 0.5]
    for first, size in [(0, 100), (100, 300), (400, 11)]:
        own = rows[(rows >= first) & (rows < first + size)] - first
        assert len(own) == (2 * BLOCK * order.shares[[0, 100, 400].index(first)])
        for epoch in range(len(own) // size):
            assert sorted(own[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_shares_are_near_in_every_stretch() -> None:
    order = MixtureOrder([[1000], [1000]], [0.7, 0.3], **OPTIONS)
    rows = order.rows(np.arange(BLOCK * 4)).reshape(-1, 256)
    shares = (rows < 1000).mean(axis=1)
    assert abs(shares.mean() - 0.7) < 1 / BLOCK
    assert shares.std() < 0.04


def test_two_sources_of_one_size_have_two_orders() -> None:
    order = MixtureOrder([[500], [500]], [1, 1], **OPTIONS)
    rows = order.rows(np.arange(800))
    assert (rows[rows < 500][:300] != rows[rows >= 500][:300] - 500).mean() > 0.9


def test_a_source_of_almost_no_weight_still_comes() -> None:
    order = MixtureOrder([[10]] * 3, [1, 1e-9, 1e-9], **OPTIONS)
    assert order.counts.tolist() == [BLOCK - 2, 1, 1]


def mixture(folder: Path) -> MixtureReader:
    parts: dict[str, Reader] = {}
    for name, count in {"a": 6, "b": 4}.items():
        shard = write_tar(folder / f"{name}.tar", pair_members(count))
        parts[name] = open_source(SourceConfig(path=str(shard)), progress=False)
    return MixtureReader(parts, [None, 2.0])


def test_rows_captions_and_places_count_through_the_sources(tmp_path: Path) -> None:
    reader = mixture(tmp_path)
    assert len(reader) == 10
    assert [reader[row].origin for row in (0, 6)] == [reader.locate(0), reader.locate(6)]
    assert reader.locate(6) == f"{tmp_path}/b.tar, sample 0000"
    assert [reader[row].caption for row in range(10)] == list(reader.captions())
    assert reader.weights == [6 / 8, 2 / 8]
    with pytest.raises(IndexError):
        reader[10]


def test_a_part_of_each_source_is_held_back(tmp_path: Path) -> None:
    kept, back = hold_back(mixture(tmp_path), 0.3)
    assert isinstance(kept, MixtureReader)
    assert [len(part) for part in kept.parts] == [4, 3]
    assert len(back) == 3
    assert {kept[i].origin for i in range(7)}.isdisjoint(back[i].origin for i in range(3))


def test_a_mixture_is_a_section_of_the_config(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    tree = {
        "data": {"mix": {"a": "a.tar", "b": {"path": "b/", "weight": 3}}},
        "train": {"steps": 1},
    }
    path.write_text(json.dumps(tree))
    config = load_config(path, ["data.mix.a.weight=0.5"])
    assert [(s.path, s.weight) for s in config.data.mix.values()] == [("a.tar", 0.5), ("b/", 3.0)]
    with pytest.raises(ConfigError, match=r"data\.train, data\.mix: both name sources"):
        load_config(path, ["data.train=x.tar"])
    with pytest.raises(ConfigError, match=r"data\.mix\.a\.weigth: no such key. Did you mean"):
        load_config(path, ["data.mix.a.weigth=1"])
    with pytest.raises(ConfigError, match=r"data\.mix\.a\.weight: 0"):
        load_config(path, ["data.mix.a.weight=0"])

"""Batches of samples that are alike: each sample once an epoch, and equal captions apart."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sample_files import write_shards

from clipkit.config import load_config
from clipkit.config.schema import DataConfig, SourceConfig
from clipkit.data import open_source
from clipkit.data.hard_negatives import HardNegativeOrder, sort_alike
from clipkit.data.loader import build_order
from clipkit.errors import ConfigError


@pytest.mark.parametrize("group", [1, 5, 16, 40])
def test_each_epoch_holds_each_sample_once_at_positions_in_any_order(group: int) -> None:
    n, epochs = 37, 5
    order = HardNegativeOrder(np.arange(n)[::-1], seed=3, group=group)
    positions = np.random.default_rng(0).permutation(epochs * n)
    rows = np.empty(epochs * n, dtype=np.int64)
    rows[positions] = pickle.loads(pickle.dumps(order)).rows(positions)
    for epoch in range(epochs):
        assert sorted(rows[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert len({tuple(rows[e * n : (e + 1) * n]) for e in range(epochs)}) == epochs
    other = HardNegativeOrder(np.arange(n)[::-1], seed=4, group=group)
    assert (other.rows(np.arange(n)) != rows[:n]).any()


def test_groups_are_neighbours_and_are_others_in_each_epoch() -> None:
    n, group = 64, 8
    rows = HardNegativeOrder(np.arange(n), seed=0, group=group).rows(np.arange(6 * n))
    cuts = set()
    for groups in rows.reshape(6, n // group, group):
        assert ((np.diff(groups, axis=1) % n) == 1).all()
        cuts.add(int(groups[0, 0] % group))
    assert len(cuts) > 1


def test_captions_are_sorted_by_their_rarest_words() -> None:
    captions = [
        "a man on a surfboard", "a red kite", "a woman in a kitchen", "A Surfboard, and a man",
        "a man in a kitchen", "a blue kite",
    ]  # fmt: skip
    # Each of kite, kitchen and surfboard stands in two captions, man in three and a in all.
    assert [captions[row] for row in sort_alike(captions)] == [
        "a man in a kitchen", "a woman in a kitchen", "a red kite", "a blue kite",
        "a man on a surfboard", "A Surfboard, and a man",
    ]  # fmt: skip
    chinese = ["红苹果", "棕色的狗", "绿苹果", "白色的狗"]
    assert [chinese[row] for row in sort_alike(chinese)] in (
        ["红苹果", "绿苹果", "棕色的狗", "白色的狗"],
        ["棕色的狗", "白色的狗", "红苹果", "绿苹果"],
    )
    assert sort_alike([]).tolist() == []
    assert sorted(sort_alike(["", "", "x", "\udcff"])) == [0, 1, 2, 3]


def test_equal_captions_stand_apart() -> None:
    captions = [f"a {colour} shoe" for colour in ("red", "blue", "green", "black")] * 25
    random.Random(0).shuffle(captions)
    alike = sort_alike(captions)
    for begin in range(0, 100, 4):
        assert len({captions[row] for row in alike[begin : begin + 4]}) == 4


def test_batches_of_the_emoji_hold_many_of_one_kind(root: Path) -> None:
    source = SourceConfig(path=str(root / "data" / "emoji" / "train-*.tar"))
    reader = open_source(source, progress=False)
    captions = list(reader.captions())

    def alike_in_a_batch(config: DataConfig) -> float:
        rows = build_order(reader, config, seed=0).rows(np.arange(len(reader)))
        shares = []
        for begin in range(0, len(rows) - 256, 256):
            names = [captions[row].split(":")[0] for row in rows[begin : begin + 256]]
            count = Counter(names)
            shares.append(np.mean([count[name] > 1 for name in names]))
        return float(np.mean(shares))

    assert alike_in_a_batch(DataConfig()) < 0.35
    assert alike_in_a_batch(DataConfig(hard_negatives=16)) > 0.5


def test_what_cannot_have_hard_negatives_is_refused(tmp_path: Path) -> None:
    path = write_shards(tmp_path, [4, 3])
    config = tmp_path / "config.yaml"
    config.write_text(f"output: {tmp_path}/run\ntrain: {{batch_size: 4, steps: 1}}\n")
    with pytest.raises(ConfigError, match=r"is for one source, and data\.mix names several"):
        load_config(config, [f"data.mix={{a: {{path: {path}}}}}", "data.hard_negatives=2"])
    with pytest.raises(ConfigError, match="8 do not fit in a batch of 4"):
        load_config(config, [f"data.train={path}", "data.hard_negatives=8"])

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
    assert [captions[row] for row in sort_alike(captions, group=1)] == [
        "a man in a kitchen", "a woman in a kitchen", "a red kite", "a blue kite",
        "a man on a surfboard", "A Surfboard, and a man",
    ]  # fmt: skip
    chinese = ["红苹果", "棕色的狗", "绿苹果", "白色的狗"]
    assert [chinese[row] for row in sort_alike(chinese, group=1)] in (
        ["红苹果", "绿苹果", "棕色的狗", "白色的狗"],
        ["棕色的狗", "白色的狗", "红苹果", "绿苹果"],
    )
    assert sort_alike([], group=4).tolist() == []
    hindi = ["हिन्दी में एक", "लाल सेब", "हिन्दी में दो", "हरा सेब"]
    assert sort_alike(hindi, group=1).tolist() in ([0, 2, 1, 3], [1, 3, 0, 2])
    assert sorted(sort_alike(["", "", "x", "\udcff"], group=1)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "counts",
    [{"red": 25, "blue": 25, "green": 25, "black": 25}, {"red": 60, "blue": 30, "green": 10}],
)
def test_captions_of_a_few_classes_are_mixed_as_at_random(counts: dict[str, int]) -> None:
    classes = [colour for colour, count in counts.items() for _ in range(count)] * 10
    random.Random(0).shuffle(classes)
    rows = sort_alike([f"A {colour} shoe." for colour in classes], group=8)
    assert sorted(rows) == list(range(1000))
    assert _equal_pairs(np.array(classes)[rows], 8) < 1.2 * _equal_pairs(np.array(classes), 8)


def test_a_caption_that_many_have_stands_alone_among_the_others() -> None:
    captions = [f"item {n // 2} of kind {n % 40}" for n in range(950)]
    captions += ["untitled", "Untitled!"] * 15 + [""] * 20
    rows = sort_alike(captions, group=16)
    assert sorted(rows) == list(range(1000))
    for texts in (("untitled", "Untitled!"), ("",)):
        each = [captions[row] in texts for row in rows]
        assert max(np.convolve(each, np.ones(16))) <= 4


def test_captions_of_one_image_stand_apart() -> None:
    # As in COCO: five captions an image, which share its rarest words.
    captions = [f"thing{n} number {k} of {n % 20}s" for n in range(200) for k in range(5)]
    images = np.arange(200).repeat(5)
    rows = sort_alike(captions, images, group=8)
    assert sorted(rows) == list(range(1000))
    assert _equal_pairs(images[rows], 8) == 0


def _equal_pairs(values: np.ndarray, group: int) -> float:
    """The share of pairs in one group that are equal."""
    groups = values[: len(values) // group * group].reshape(-1, group)
    equal = (groups[:, :, None] == groups[:, None, :]).sum() - groups.size
    return float(equal / (groups.size * (group - 1)))


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
    for changes, message in (
        (["data.hard_negatives=8"], "8 do not fit in a batch of 4; take fewer"),
        (
            ["data.hard_negatives=3", "train.accumulate=2"],
            "3 do not fit in a batch of 4, in 2 parts",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(config, [f"data.train={path}", *changes])

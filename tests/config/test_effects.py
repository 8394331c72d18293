"""An option that does nothing in a run is told, each by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.config import load_config
from clipkit.config.effects import idle_options
from clipkit.config.load import config_from_dict


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data": {"hard_negatives": 4, "shuffle_window": 8}}, "data.shuffle_window: 8"),
        ({"data": {"hard_negatives": 4, "lanes": 2}}, "data.lanes: 2"),
        ({"model": {"freeze": "vision", "vision": {"dropout": 0.1}}}, "model.vision.dropout: 0.1"),
        ({"model": {"freeze": "text", "text": {"dropout": 0.1}}}, "model.text.dropout: 0.1"),
        (
            {"model": {"freeze": "vision", "vision": {"patch_dropout": 0.5}}},
            "model.vision.patch_dropout: 0.5",
        ),
        ({"preprocess": {"tokenizer": "x", "vocab_size": 99}}, "preprocess.vocab_size: 99"),
        ({"eval": {"every": 10}}, "eval.every: 10"),
        ({"eval": {"batch_size": 10}}, "eval.batch_size: 10"),
        (
            {
                "model": {"freeze": "vision"},
                "train": {"steps": 1, "stages": [{"share": 1, "patch_dropout": 0.5}]},
            },
            "train.stages.0.patch_dropout: 0.5",
        ),
        ({"data": {"train": "", "mix": {"a": {"path": "x", "weight": 2}}}}, "data.mix.a.weight: 2"),
    ],
)
def test_an_option_without_effect_is_told(changes: dict, told: str) -> None:
    tree = {"data": {"train": "x"}, "train": {"steps": 1}}
    for key, value in changes.items():
        tree[key] = {**tree.get(key, {}), **value}
    (line,) = idle_options(config_from_dict(tree))
    assert line.startswith(f"{told}")
    assert " has no effect: " in line


def test_options_with_effect_are_not_told(root: Path) -> None:
    for path in sorted((root / "configs").glob("[!s]*.yaml")):
        config = load_config(
            path,
            ["data.train=x", "data.evaluate.validation=y", "train.steps=1", "train.epochs=null"],
        )
        assert idle_options(config) == []

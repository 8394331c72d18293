"""Options that another option leaves without effect: refused, or told at the start of a run.

A value that equals the default counts as not set. What needs no table (``optim.muon_lr`` without
Muon, ``train.offload`` without fsdp …) is refused in ``clipkit.config.load``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any, NamedTuple

from clipkit.config.schema import Config
from clipkit.errors import ConfigError


class _Idle(NamedTuple):
    """Options that have no effect under a condition.

    Attributes:
        keys: dotted.
        when: whether they have none.
        because: the end of the sentence: what decides instead.
        refused: else a line says so, where the key may stand in a config file for other runs.
    """

    keys: tuple[str, ...]
    when: Callable[[Config], bool]
    because: str
    refused: bool = True


def _evaluates_nothing(config: Config) -> bool:
    splits = config.eval.splits != [] and (config.data.evaluate or config.data.holdout)
    return not splits and config.eval.suite is None


_IDLE = (
    _Idle(
        ("data.lanes", "data.shuffle_chunk", "data.shuffle_window"),
        lambda config: config.data.hard_negatives > 0,
        "data.hard_negatives makes the order instead",
    ),
    _Idle(
        ("model.vision.dropout", "model.vision.patch_dropout"),
        lambda config: config.model.freeze == "vision",
        "model.freeze=vision keeps the image tower as it is when evaluated",
    ),
    _Idle(
        ("model.text.dropout",),
        lambda config: config.model.freeze == "text",
        "model.freeze=text keeps the text tower as it is when evaluated",
    ),
    _Idle(
        ("preprocess.vocab_size",),
        lambda config: bool(config.preprocess.tokenizer or config.model.pretrained),
        "it is for a tokenizer that is trained here, and this run has one already",
        refused=False,
    ),
    _Idle(
        ("eval.every", "eval.batch_size"),
        _evaluates_nothing,
        "nothing is evaluated; name a split in data.evaluate, set data.holdout, or eval.suite",
        refused=False,
    ),
)


def check_effects(config: Config) -> None:
    """Refuses what is set and does nothing.

    Raises:
        ConfigError: names the key and what decides instead.
    """
    for line in _idle_lines(config, refused=True):
        raise ConfigError(f"{line}; leave it out")
    if len(config.data.mix) == 1:
        ((name, source),) = config.data.mix.items()
        if source.weight is not None:
            raise ConfigError(
                f"data.mix.{name}.weight: {source.weight} has no effect: it is relative to those "
                "of other sources, and there are none; leave it out"
            )
    for number, stage in enumerate(config.train.stages):
        if stage.patch_dropout and config.model.freeze == "vision":
            raise ConfigError(
                f"train.stages.{number}.patch_dropout: {stage.patch_dropout} has no effect: "
                "model.freeze=vision keeps the image tower as it is when evaluated; leave it out"
            )


def idle_options(config: Config) -> list[str]:
    """A line for each option that is set, is not refused, and does nothing in this run."""
    return list(_idle_lines(config, refused=False))


def refuse_others(config: Config, own: Mapping[str, Any]) -> None:
    """Refuses keys that ask for something else than ``model.pretrained`` has, and cannot have.

    Args:
        config: as it was set.
        own: the model's value of each dotted key; None: it is in the weights, whatever it is.

    Raises:
        ConfigError: names the key, what it asks for and what the model has.
    """
    for key, value in own.items():
        asked = _value(config, key)
        if asked in (_value(Config(), key), value):
            continue
        has = "has its own" if value is None else f"has {value}"
        raise ConfigError(
            f"{key}: {asked} has no effect: model.pretrained {config.model.pretrained} {has}, and "
            "keeps it; leave it out"
        )


def _idle_lines(config: Config, *, refused: bool) -> Iterator[str]:
    for idle in _IDLE:
        for key in idle.keys if idle.refused is refused else ():
            value = _value(config, key)
            if value != _value(Config(), key) and idle.when(config):
                yield f"{key}: {value} has no effect: {idle.because}"


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)

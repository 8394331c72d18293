"""Options that another option leaves without effect: told at the start of a run, or refused beside
``model.pretrained``.

A value that equals the default counts as not set. Contradictions (``optim.muon_lr`` without Muon,
``train.offload`` without fsdp …) are refused in ``clipkit.config.load``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
    """

    keys: tuple[str, ...]
    when: Callable[[Config], bool]
    because: str


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
    ),
    _Idle(
        ("eval.every", "eval.batch_size"),
        _evaluates_nothing,
        "nothing is evaluated; name a split in data.evaluate, set data.holdout, or eval.suite",
    ),
)


def idle_options(config: Config) -> list[str]:
    """A line for each option that is set and does nothing in this run."""
    lines = [
        f"{key}: {_value(config, key)} has no effect: {idle.because}"
        for idle in _IDLE
        for key in idle.keys
        if _value(config, key) != _value(Config(), key) and idle.when(config)
    ]
    for number, stage in enumerate(config.train.stages):
        if stage.patch_dropout and config.model.freeze == "vision":
            lines.append(
                f"train.stages.{number}.patch_dropout: {stage.patch_dropout} has no effect: "
                "model.freeze=vision keeps the image tower as it is when evaluated"
            )
    lines += [
        f"data.mix.{name}.weight: {source.weight} has no effect: it is relative to those of other "
        "sources, and there are none"
        for name, source in config.data.mix.items()
        if source.weight is not None and len(config.data.mix) == 1
    ]
    return lines


def refuse_others(config: Config, own: Mapping[str, Any]) -> None:
    """Refuses keys that ask for something else than ``model.pretrained`` has, and cannot have.

    Args:
        config: as it was set.
        own: the model's value of each dotted key; None: it is in the weights, whatever it is.

    Raises:
        ConfigError: names the first such key, what it asks for and what the model has; and the
            other keys.
    """
    odd = [
        (key, value)
        for key, value in own.items()
        if _value(config, key) not in (_value(Config(), key), value)
    ]
    if not odd:
        return
    (key, value), *others = odd
    has = "has its own" if value is None else f"has {value}"
    likewise = f", and likewise {', '.join(other for other, _ in others)}" if others else ""
    raise ConfigError(
        f"{key}: {_value(config, key)} has no effect: model.pretrained {config.model.pretrained} "
        f"{has}, and keeps it; leave it out{likewise}"
    )


def _value(config: Config, key: str) -> Any:
    return reduce(getattr, key.split("."), config)

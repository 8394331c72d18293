"""What a user calls labels → the classes, and the number of each; or one clear refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsFloat

import numpy as np

from clipkit.display.console import shorten
from clipkit.errors import ConfigError
from clipkit.evaluation.zero_shot_result import OTHER


def names_of(labels: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Label → its names in words.

    Raises:
        ConfigError: no labels, an empty one, or the same one twice.
    """
    if isinstance(labels, str):
        raise ConfigError(f"labels: one text, {labels!r}; give a list of texts")
    if not isinstance(labels, Sequence | Mapping):
        raise ConfigError(
            f"labels: a {type(labels).__name__}; give a list of texts, or a dict from each label "
            "to its names"
        )
    for label in labels:
        if not isinstance(label, str):
            raise ConfigError(f"labels: {label!r} is a {type(label).__name__}; give a text (str)")
    if isinstance(labels, Mapping):
        odd = [each for each in labels.values() if not isinstance(each, Sequence)]
        if odd:
            raise ConfigError(f"labels: names as a {type(odd[0]).__name__}; give a list of texts")
        names = {
            label: [each] if isinstance(each, str) else list(each) for label, each in labels.items()
        }
    else:
        twice = [label for i, label in enumerate(labels) if label in labels[:i]]
        if twice:
            raise ConfigError(f"labels: {twice[0]!r} stands there twice; leave one out")
        names = {label: [label] for label in labels}
    if not names:
        raise ConfigError("labels: there are none; give at least two")
    for label, each in names.items():
        if not each or not all(isinstance(name, str) and name.strip() for name in each):
            raise ConfigError(f"labels: {label!r} has no name, or an empty one")
    return names


def targets_of(given: Iterable[str], labels: Sequence[str]) -> np.ndarray:
    """(N,) int64: which of the labels each of N given ones is.

    Raises:
        ConfigError: one is none of them, or no text.
    """
    numbers = {label: c for c, label in enumerate(labels)}
    targets = []
    if not isinstance(given, Iterable):
        raise ConfigError(f"labels: a {type(given).__name__}; give a list, a label for each image")
    for i, label in enumerate([given] if isinstance(given, str) else given):
        if not isinstance(label, str):
            raise ConfigError(f"labels[{i}]: a {type(label).__name__}; give the label's text")
        if label not in numbers:
            near = difflib.get_close_matches(label, labels, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(labels)}"
            raise ConfigError(
                f"labels[{i}]: {label!r} is no label of this classifier; {shorten(hint, 200)}"
            )
        targets.append(numbers[label])
    return np.array(targets, dtype=np.int64)


def check_other(other: float, labels: list[str], *, share_one: bool) -> None:
    """Refuses a threshold that cannot be, or can never matter.

    Args:
        other: the threshold.
        labels: the classes.
        share_one: whether their probabilities sum to 1; else each is a yes or no of its own.

    Raises:
        ConfigError: it is no probability, or one that a likeliest label always has.
    """
    if not isinstance(other, SupportsFloat):
        raise ConfigError(f"other: a {type(other).__name__}; give a probability")
    least = 1 / len(labels) if share_one else 0.0
    if least == 1:
        raise ConfigError(
            f"other: {other}; one label alone always has the probability 1; give a second one"
        )
    if not least < other <= 1:
        raise ConfigError(
            f"other: {other}; with {len(labels)} labels the likeliest has {least:.2g} or more, so "
            f"give a number above {least:.2g}, up to 1"
        )
    if OTHER in labels:
        raise ConfigError(f"labels: {OTHER!r} is one of them; rename it, or leave out other=")

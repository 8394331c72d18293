"""A source whose samples have classes → its reader, the classes in words, each sample's numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import SampleError, open_source
from clipkit.data.folder import FolderReader
from clipkit.data.label_file import read_label_file
from clipkit.data.layouts.classes import match_folders, plain_name
from clipkit.display.console import shorten
from clipkit.errors import ConfigError, DataError
from clipkit.evaluation.embedding import EmbeddedSource
from clipkit.evaluation.labels import names_of
from clipkit.types import Pair


class LabelledData:
    """An open source of labelled images.

    A label of the data is a class by its name, by its key where ``class_names`` has keys, or by
    its number where there are names, and their keys are no numbers themselves. Folders of images
    are by their names, or, where these are none of the classes, by their order.

    Args:
        source: the images.
        label: the member, column or JSON field with the classes; none: the usual ones.
        class_names: see ``ZeroShotOptions``.
        several: whether a sample may have several classes; none: whether one has.
        progress: whether to show a bar while files are indexed.

    Attributes:
        reader: its captions are the labels as the data have them.
        classes: C labels with their names in words.
        several: as it was given.

    Raises:
        ConfigError: the class names are none, or do not fit the data.
        DataError: there are no data, or no labels.
    """

    def __init__(
        self,
        source: SourceConfig,
        label: str | None = None,
        class_names: Any = None,
        several: bool | None = None,
        *,
        progress: bool = False,
    ) -> None:
        self.several = several
        class_names = source.class_names if class_names is None else class_names
        self._file_notes: list[str] = []
        if isinstance(class_names, str):
            file = read_label_file(class_names, key="class_names", numbered=True)
            class_names, self._file_notes = file.classes, file.notes
        given = _given_classes(class_names)
        fields = {f.name: getattr(source, f.name) for f in dataclasses.fields(SourceConfig)}
        fields |= {"caption": label or source.caption, "captions": "random"}
        own = LabelSource(**fields, numbers=given is not None, unlabelled=bool(several))
        own.class_names = None
        self.reader = open_source(own, progress=progress)
        self.reader.dropped = {
            reason.replace("caption", "label"): count
            for reason, count in self.reader.dropped.items()
        }
        self._by_folder = isinstance(self.reader, FolderReader) and (self.reader.understood.classes)
        there = self._labels_there()
        # Where classes are called by numbers, these are no places in a list.
        self._counted = given is not None and not (
            isinstance(class_names, Mapping) and any(label.isdecimal() for label in given)
        )
        self._called_by_numbers = given is None and all(each.isdecimal() for each in there)
        if given is None:
            words = {each: each.replace("_", " ").strip() for each in sorted(there)}
            given = names_of({each: [name] for each, name in words.items()}) if words else {}
        self.classes: dict[str, list[str]] = given
        if len(self.classes) < 2:
            raise DataError(
                f"{source.path}: {len(self.classes)} class{'es' * (len(self.classes) != 1)}; "
                "classification needs two at least; name them in class_names, or the column or "
                "field that holds them in label"
            )
        self._numbers = self._number(there)
        for each in there:
            self._class_of(each, source.path)

    def targets(self, embedded: EmbeddedSource) -> list[list[int]]:
        """The classes of each embedded sample, as numbers.

        Raises:
            ConfigError: a label that is no class, or several though it was said that there is one.
            DataError: not one sample can be used, or none has a class.
        """
        if not embedded.keys:
            first = embedded.skipped[0] if embedded.skipped else None
            reason = f" (the first: {first.origin}: {first.reason})" if first else ""
            raise DataError(f"{self.reader.source.path}: no sample can be used{reason}")
        found = [
            sorted({self._class_of(label, self.reader.locate(int(row))) for label in labels})
            for row, labels in zip(embedded.rows, embedded.told, strict=True)
        ]
        most = max(range(len(found)), key=lambda i: len(found[i]))
        if not found[most]:
            raise DataError(f"{self.reader.source.path}: not one sample has a class")
        if self.several is False and len(found[most]) > 1:
            raise ConfigError(
                f"several: false, and {self.reader.locate(int(embedded.rows[most]))} has "
                f"{len(found[most])} classes; set it to true"
            )
        return found

    def one_each(self, embedded: EmbeddedSource) -> np.ndarray:
        """(N,) the class of each embedded sample, as a number.

        Raises:
            ConfigError: a label that is no class, or several classes of one sample.
            DataError: not one sample can be used.
        """
        found = self.targets(embedded)
        for row, each in zip(embedded.rows, found, strict=True):
            if len(each) > 1:
                raise ConfigError(
                    f"label: {self.reader.locate(int(row))} is of several classes, and this task "
                    "takes one an image; zero_shot takes several"
                )
        return np.array([each[0] for each in found], dtype=np.int64)

    def has_several(self, targets: Sequence[Sequence[int]]) -> bool:
        """Whether these are of samples with several classes each."""
        return any(len(each) > 1 for each in targets) if self.several is None else self.several

    def notes(self, targets: Sequence[Sequence[int]]) -> list[str]:
        """What there is to say of classes without a sample, and of those with one name."""
        used = np.zeros(len(self.classes), dtype=bool)
        for each in targets:
            used[each] = True
        said = [*self._file_notes]
        if self._called_by_numbers:
            said.append(
                f"the classes are called by numbers ({shorten(', '.join(self.classes), 20)}), "
                "which say little to a model; class_names gives them words"
            )
        names = Counter(tuple(each) for each in self.classes.values())
        if twice := [label for label, each in self.classes.items() if names[tuple(each)] > 1]:
            said.append(
                f"{len(twice):,} of {len(self.classes):,} classes have the name of another, so "
                f"that none of their images is right: {shorten(', '.join(twice), 60)}"
            )
        empty = [label for label, there in zip(self.classes, used, strict=True) if not there]
        if empty:
            said.append(
                f"{len(empty):,} of {len(self.classes):,} classes have no image and are left out "
                f"of means over classes: {shorten(', '.join(empty), 60)}"
            )
        return said

    def _labels_there(self) -> list[str]:
        """What the first labels of samples are, without reading images; of remote ones, none."""
        if self.reader.access.remote and not self._by_folder:
            return []
        labels: dict[str, None] = {}
        # A damaged sample is skipped and counted when it is its turn; the rest is checked then.
        with contextlib.suppress(SampleError):
            for each in self.reader.captions():
                labels[each.strip()] = None
        return [label for label in labels if label]

    def _number(self, there: Sequence[str]) -> dict[str, int]:
        """The class of each label as it may stand in the data."""
        names = {plain_name(label): c for c, label in enumerate(self.classes)}
        for c, each in enumerate(self.classes.values()):
            for name in each:
                names.setdefault(plain_name(name), c)
        exact = {label: c for c, label in enumerate(self.classes)}
        numbers = {str(c): c for c in range(len(self.classes))}
        if not self._by_folder:
            if not self._counted:
                return {**names, **exact}
            digits = [label for label in there if label.isdecimal()]
            if all(label in exact for label in digits) and not all(n in numbers for n in digits):
                self._counted = False  # classes whose names are numbers, by their names
                return {**names, **exact}
            return {**names, **exact, **numbers}
        matched = match_folders(there, [[c, *of_class] for c, of_class in self.classes.items()])
        if matched is None:
            odd = next(each for each in sorted(there) if plain_name(each) not in names)
            raise ConfigError(
                f"class_names: there are {len(self.classes)}, and {len(there)} folders with "
                f"images in {self.reader.source.path}, of which {odd!r} is none of them"
            )
        found, rule = matched
        if not all(each in exact or plain_name(each) in names for each in there):
            self._file_notes = [*self._file_notes, rule]
        return found

    def _class_of(self, label: str, where: str) -> int:
        number = self._numbers.get(label, self._numbers.get(plain_name(label)))
        if number is None:
            count = len(self.classes)
            by_number = self._counted and label.isdecimal()
            rule = f"0 to {count - 1}" if by_number else shorten(", ".join(self.classes), 60)
            raise ConfigError(
                f"class_names: {where} has the class {shorten(label, 60)}, and there are {count} "
                f"classes ({rule})"
            )
        return number


def ask_labels(several: bool | None) -> Callable[[Pair], list[str]]:
    """What is asked of each sample: its labels."""
    return partial(_labels_of, may_be_none=bool(several))


def _labels_of(pair: Pair, *, may_be_none: bool) -> list[str]:
    labels = [text for each in (pair.caption, *pair.others) if each and (text := each.strip())]
    if not labels and not may_be_none:
        raise SampleError("no label")
    return labels


def _given_classes(given: Any) -> dict[str, list[str]] | None:
    """``class_names`` as it stands in a suite → label → names; None where there are none."""
    if given is None:
        return None
    if isinstance(given, Mapping):
        keys = [_text(key) for key in given]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise ConfigError(f"class_names: {twice[0]!r} stands there twice; leave one out")
        given = {_text(key): _names(value) for key, value in given.items()}
    elif isinstance(given, Sequence):
        given = [_text(each) for each in given]
    try:
        return names_of(given)
    except ConfigError as error:
        raise ConfigError(str(error).replace("labels:", "class_names:", 1)) from None


def _names(value: Any) -> list[str]:
    return [_text(each) for each in value] if isinstance(value, list) else [_text(value)]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise ConfigError(f"class_names: {value!r} is no text; put it in quotes")
    return str(value)

"""Whatever ``datasets`` loads → pairs, as memory-mapped Arrow.

Images stay encoded (``Image(decode=False)``), so that one bad file cannot stop the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.arrow_rows import CaptionColumns, has_image
from clipkit.data.columns import choose_columns, columns_understood
from clipkit.data.image_ids import ImageFiles, column_images, no_images, number_images, part_of
from clipkit.data.label_file import read_class_names
from clipkit.data.packed_fields import is_packed, unpack_metadata
from clipkit.data.reader import Access, SampleError
from clipkit.data.table import read_image
from clipkit.errors import DataError
from clipkit.types import Pair

_SAVED_BY_DATASETS = ("state.json", "dataset_dict.json")


def is_saved_dataset(folder: str) -> bool:
    """Whether ``save_to_disk`` of ``datasets`` wrote this local folder."""
    return any(os.path.exists(os.path.join(folder, name)) for name in _SAVED_BY_DATASETS)


def open_dataset(source: SourceConfig, *, progress: bool) -> DatasetReader:
    """Pairs of a folder that ``save_to_disk`` wrote, or of anything ``load_dataset`` takes.

    Raises:
        DataError: it cannot be loaded, has no such split, or lacks columns.
    """
    path = os.path.expanduser(source.path.removeprefix("hf://datasets/").rstrip("/"))

    def load(datasets: Any) -> Any:
        if not is_saved_dataset(path):
            return datasets.load_dataset(path, split=source.split)
        saved = datasets.load_from_disk(path)
        if isinstance(saved, dict):
            if source.split not in saved:
                raise ValueError(f"no split {source.split!r}; there are {', '.join(saved)}")
            return saved[source.split]
        return saved

    return DatasetReader(source, load, folder=path, progress=progress)


class DatasetReader:
    """Pairs of a map-style ``datasets.Dataset``; see ``Reader``.

    Args:
        source: ``image`` and ``caption`` name columns; ``a.b`` a field inside one.
        load: given the ``datasets`` module, makes the dataset.
        folder: what relative image paths are relative to.
        sizes: of the files it is loaded from, in bytes; those of its Arrow files otherwise.
        progress: let ``datasets`` show its bars.

    Raises:
        DataError: loading failed, columns are missing, or no row is usable.
    """

    def __init__(
        self,
        source: SourceConfig,
        load: Callable[[Any], Any],
        *,
        folder: str,
        sizes: list[int] | None = None,
        progress: bool,
    ) -> None:
        import datasets

        self.source = source
        self.dropped: dict[str, int] = {}
        self.damage: list[str] = []
        self.lost = 0
        self._folder = source.image_root or folder
        try:
            with _quiet(datasets, progress):
                loaded = load(datasets)
        except Exception as error:  # datasets passes on whatever its many parts raise
            raise DataError(f"{source.path}: cannot be loaded ({_cause(error)}).") from error
        self._class_names: dict[str, list[str]] = {}  # of columns of class labels
        self._labels: tuple[str, list[str]] | None = None  # the column of the class, its names
        self._image, self._captions = self._choose(loaded, datasets)
        self.understood = dataclasses.replace(
            columns_understood(
                list(loaded.column_names),
                self._image,
                self._captions,
                classes=bool(self._class_names),
            ),
            class_names=self._labels[1] if self._labels else (),
        )
        self._data = self._plain(loaded, datasets)
        self._names = self._image_column()
        captions = hashlib.sha256()
        self._rows = self._usable(captions)
        self.shard_sizes = [len(self)]
        if len(self) == 0:
            why = ", ".join(f"{count} with {reason}" for reason, count in self.dropped.items())
            raise DataError(f"{source.path}: no usable row{': ' + why if why else ''}.")
        first = "" if self._names is None else self._names[self._number(0)][self._image] or ""
        self.access = Access(remote=files.is_url(files.join(folder, first)))
        if sizes is None:
            sizes = [files.total_size([file["filename"]]) or 0 for file in loaded.cache_files]
        self.fingerprint = files.digest(
            *(source.split, self._image, *self._captions, str(loaded.features)),
            *(len(loaded), len(self), captions.hexdigest(), *sizes),
        )

    def __len__(self) -> int:
        return len(self._data) if self._rows is None else len(self._rows)

    def __getitem__(self, row: int) -> Pair:
        try:
            record = self._data[self._number(row)]
        except UnicodeDecodeError:
            raise SampleError("text that is not UTF-8") from None
        value = reader.field_of(record, self._image) if self._image else None
        name = value.get("path") if isinstance(value, dict) else value
        captions = self._texts(record)
        key = name if isinstance(name, str) and name else f"{self._number(row):08d}"
        metadata = {k: v for k, v in record.items() if k not in (self._image, *self._captions)}
        column, names = self._labels or ("", [])
        number = record.get(column)
        if not isinstance(number, int) or not 0 <= number < len(names):
            number = None
        return Pair(
            key=key,
            image=self._image_bytes(value),
            caption=captions[0] if captions else None,
            origin=self.locate(row),
            metadata=unpack_metadata(metadata),
            others=captions[1:],
            class_number=number,
            class_name=None if number is None else names[number],
        )

    def locate(self, row: int) -> str:
        return f"{self.source.path}, row {self._number(row)}"

    def place(self, row: int) -> tuple[str, int | None]:
        if self._names is None or not (name := self._names[self._number(row)][self._image]):
            return self.source.path, None
        return files.join(self._folder, str(name)), None

    def texts(self) -> Iterator[list[str]]:
        if not self._captions:
            yield from ([] for _ in range(len(self)))
            return
        columns = self._data.select_columns(sorted({n.split(".")[0] for n in self._captions}))
        for row in range(len(self)):
            try:
                yield self._texts(columns[self._number(row)])
            except UnicodeDecodeError:
                yield []

    def captions(self) -> Iterator[str]:
        return reader.first_of(self.texts())

    def image_files(self) -> ImageFiles:
        if self._image is None:
            return no_images(len(self))
        nested = [] if self._image in self._data.features else self._image.split(".")[1:]
        column = self._image.split(".")[0] if nested else self._image
        images = self._data.with_format("arrow").select_columns([column])
        whole = column_images(images, nested, self._folder)
        return whole if self._rows is None else part_of(whole, self._rows)

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def _image_column(self) -> Any:
        """The column of the images' paths; None where there is none."""
        if self._image is None or "." in self._image:
            return None
        feature = self._data.features[self._image]  # a dictionary where it is a struct
        if getattr(feature, "dtype", None) not in ("string", "large_string"):
            return None
        return self._data.select_columns([self._image])

    def _number(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return row if self._rows is None else int(self._rows[row])

    def _choose(self, loaded: Any, datasets: Any) -> tuple[str | None, list[str]]:
        features, columns = loaded.features, list(loaded.column_names)
        classes = [n for n in columns if isinstance(features[n], datasets.ClassLabel)]
        source = dataclasses.replace(self.source)
        if source.image is None:  # a column of this type needs no usual name
            images = [n for n in columns if isinstance(features[n], datasets.Image)]
            source.image = images[0] if images else None
        usual = {name.lower() for name in columns}.intersection(reader.CAPTION_COLUMNS)
        labels = isinstance(source, LabelSource)
        if source.caption is None and (labels or not usual) and classes:
            source.caption = classes[0]
        if source.caption is None and not labels and usual and is_packed(columns):
            source.caption = "captions"

        def first(name: str) -> list[Any]:
            column = name if name in columns else name.split(".")[0]
            if isinstance(features[column], datasets.ClassLabel):
                return []
            try:
                values = loaded.select_columns([column])[:_FIRST][column]
            except UnicodeDecodeError:
                return []
            return [reader.field_of({column: value}, name) for value in values]

        image, captions = choose_columns(source, columns, self.source.path, first)
        for name in captions:
            if name in classes and not (isinstance(source, LabelSource) and source.numbers):
                self._class_names[name] = _named(self.source, list(features[name].names))
        chosen = [name for name in captions if name in classes] or classes
        if len(chosen) == 1:
            names = self._class_names.get(chosen[0], list(features[chosen[0]].names))
            self._labels = (chosen[0], names)
        return image, captions

    def _plain(self, loaded: Any, datasets: Any) -> Any:
        """Only columns that are cheap to read, images undecoded."""
        image = self._image.split(".")[0] if self._image else None
        if image and isinstance(loaded.features[image], datasets.Image):
            loaded = loaded.cast_column(image, datasets.Image(decode=False))
        wanted = {image, *(name.split(".")[0] for name in self._captions)}
        keep = [
            name
            for name, feature in loaded.features.items()
            if name in wanted
            or (isinstance(feature, datasets.Value) and feature.dtype not in _BULKY)
            or isinstance(feature, datasets.ClassLabel)
        ]
        return loaded.select_columns(keep).with_format(None)

    def _usable(self, digest: Any) -> np.ndarray | None:
        """Rows with an image and a caption, as far as they are asked for, or None where all are;
        ``digest`` is told the texts."""
        usable = np.ones(len(self._data), dtype=bool)
        if self._image is not None:
            nested = [] if self._image in self._data.features else self._image.split(".")[1:]
            column = self._image.split(".")[0] if nested else self._image
            images = self._data.with_format("arrow").select_columns([column])
            usable = has_image(images, nested)
            self._drop("no image", ~usable)
        unlabelled = isinstance(self.source, LabelSource) and self.source.unlabelled
        if self._captions and not self._class_names and not unlabelled:
            texts = CaptionColumns(self._data, self._captions, digest)
            if texts.lists:
                self.add_note(
                    f"{texts.lists:,} cells hold a list in quotes, read as several captions"
                )
            if texts.only_numbers and not isinstance(self.source, LabelSource):
                self.add_note(f"{' and '.join(self._captions)} holds numbers alone")
            self._drop("no caption", usable & ~texts.filled)
            usable &= texts.filled
        return None if usable.all() else np.flatnonzero(usable)

    def _drop(self, reason: str, rows: np.ndarray) -> None:
        if rows.any():
            self.dropped[reason] = int(rows.sum())

    def add_note(self, note: str) -> None:
        """Adds a sentence to what is said of how the source was read."""
        notes = [*self.understood.notes, note]
        self.understood = dataclasses.replace(self.understood, notes=notes)

    def _texts(self, record: dict[str, Any]) -> list[str]:
        values: list[Any] = []
        for name in self._captions:
            value = reader.field_of(record, name)
            if (names := self._class_names.get(name)) is not None:
                known = isinstance(value, int) and 0 <= value < len(names)  # -1 is "no label"
                value = reader.class_captions(names[value], self.source) if known else None
            values.append(value)
        return reader.caption_texts(values, self.source)

    def _image_bytes(self, value: Any) -> bytes | None:
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str):
            return read_image(self._folder, value) if value else None
        if value is None or isinstance(value, bytes):
            return value
        raise SampleError("no image in the image column")


def _named(source: SourceConfig, labels: list[str]) -> list[str]:
    """The names of classes by number: as ``class_names`` has them, by label or in order."""
    file = read_class_names(source)
    if file is None:
        return labels
    by_label = file.by_label()
    if all(label in by_label for label in labels):
        return [by_label[label][0] for label in labels]
    return file.by_number()


_BULKY = ("binary", "large_binary")
_FIRST = 200  # rows that tell what is in a column


@contextlib.contextmanager
def _quiet(datasets: Any, progress: bool) -> Iterator[None]:
    """No log lines, since what fails is said once, by our error; bars only where wanted."""
    log = datasets.utils.logging
    level, hide = log.get_verbosity(), not progress and not datasets.are_progress_bars_disabled()
    log.set_verbosity(log.CRITICAL)
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if hide:
            datasets.enable_progress_bars()


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first; datasets wraps it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")

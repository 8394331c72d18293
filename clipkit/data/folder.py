"""A folder of image files → pairs; where its captions are, :mod:`clipkit.data.layouts` finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import SourceConfig
from clipkit.data import files, reader
from clipkit.data.image_ids import ImageFiles, named_files, number_images
from clipkit.data.layouts.find import count_unused, find_captions, name_classes
from clipkit.data.layouts.found import Captions
from clipkit.data.layouts.sidecars import read_sidecar
from clipkit.data.layouts.tables import find_tables
from clipkit.data.layouts.tree import ImageTree
from clipkit.data.reader import Access, SampleError
from clipkit.data.table import read_image
from clipkit.data.understood import Understood
from clipkit.errors import DataError
from clipkit.types import Pair


class FolderReader:
    """Pairs of image files, one for each image with all its captions; see ``Reader``.

    Args:
        source: ``caption: none`` where no captions are needed, ``folder`` where the names of
            folders are the classes.
        folder: what the names are relative to.
        names: all its files, with ``/``, sorted.
        tables: the files that hold the captions, where they are named; found where not.

    Raises:
        DataError: no image is there, or no caption, or it is not clear which captions are meant.
    """

    def __init__(
        self, source: SourceConfig, folder: str, names: list[str], tables: Sequence[str] = ()
    ) -> None:
        self.source = source
        self.damage: list[str] = []
        self.lost = 0
        self.access = Access(remote=files.is_url(folder))
        self._folder = folder
        tree = ImageTree(folder, names, source.image_root)
        if not tree.images:
            unread = ", ".join(f"{count} {kind}" for kind, count in _unread(tree).items())
            raise DataError(f"{source.path}: no image files there{unread and ': ' + unread}.")
        self._classes: dict[str, str] | None = None  # folder → class
        self._captioned = Captions("")
        class_names: list[str] = []
        rule: list[str] = []
        if tables:
            self._captioned = _of_tables(tree, source, tables)
        elif source.caption != reader.NONE:
            found = find_captions(tree, source)
            if found is None:
                self._classes, class_names, rule = name_classes(tree, source)
            else:
                self._captioned = found
        dropped: Counter[str] = Counter(self._captioned.dropped)
        self._names = self._usable(tree, dropped)
        self.dropped = dict(dropped)
        self.shard_sizes = [len(self)]
        of_folders = self._classes is not None
        self.understood = Understood(
            images="image files",
            captions="folder names" if of_folders else self._captioned.told,
            an_image=self._an_image(),
            also=self._captioned.also,
            unused=count_unused(tree, self._captioned.used),
            classes=of_folders,
            class_names=class_names,
            notes=[*self._captioned.notes, *rule],
        )
        self.fingerprint = self._digest()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Pair:
        name = self._name(row)
        captions, record = self._read(name)
        return Pair(
            key=name,
            image=read_image(self._folder, name),
            caption=captions[0] if captions else None,
            origin=self.locate(row),
            metadata=record or self._captioned.records.get(name, {}),
            others=captions[1:],
            class_name=self._class_of(name) or None,
        )

    def locate(self, row: int) -> str:
        return files.join(self._folder, self._name(row))

    def place(self, row: int) -> tuple[str, int | None]:
        return self.locate(row), None

    def texts(self) -> Iterator[list[str]]:
        for name in self._names:
            try:
                yield self._read(name)[0]
            except SampleError:
                yield []

    def captions(self) -> Iterator[str]:
        return reader.first_of(self.texts())

    def image_files(self) -> ImageFiles:
        return named_files(files.join(self._folder, name) for name in self._names)

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def _usable(self, tree: ImageTree, dropped: Counter[str]) -> list[str]:
        """The images with captions, or a class, where these are asked for."""
        if self._classes is not None:
            names = [name for name in tree.images if "/" in name]
            reason = "in no class folder"
        elif self._captioned.told:
            captioned = self._captioned.files or self._captioned.texts
            names = [name for name in tree.images if name in captioned]
            reason = "no caption"
        else:
            return tree.images
        if len(names) < len(tree.images):
            dropped[reason] += len(tree.images) - len(names)
        return names

    def _digest(self) -> str:
        of_files = (name for each in self._captioned.files.values() for name, _ in each)
        used = [*self._names, *of_files]
        size = files.total_size(files.join(self._folder, name) for name in used)
        captions = [text for texts in self._captioned.texts.values() for text in texts]
        if self._classes is not None:
            captions = [*self.source.templates, *self._classes.values()]
        return files.digest(self.source.caption, size, *self._names, *captions)

    def _an_image(self) -> str:
        counts = {len(texts) for texts in self._captioned.texts.values()}
        if not counts or max(counts) == 1:
            return ""
        return f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts)}"

    def _name(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._names[row]

    def _read(self, name: str) -> tuple[list[str], dict[str, Any]]:
        """The captions of an image, and the record of a JSON beside it."""
        if self._classes is not None:
            return reader.class_captions(self._class_of(name), self.source), {}
        if name in self._captioned.texts:
            return list(self._captioned.texts[name]), {}
        values: list[Any] = []
        record: dict[str, Any] = {}
        for file, field in self._captioned.files.get(name, ()):
            more, fields = read_sidecar(self._folder, file, field)
            values += more
            record |= fields
        return reader.caption_texts(values, self.source), record

    def _class_of(self, name: str) -> str:
        """The class of an image; empty where folders are no classes."""
        return "" if self._classes is None else self._classes[name.split("/")[-2]]


def _of_tables(tree: ImageTree, source: SourceConfig, tables: Sequence[str]) -> Captions:
    """The captions of the tables that are named.

    Raises:
        DataError: they name none of the images.
    """
    found, why = find_tables(tree, source, tables)
    if found is None:
        told = why[0] if why else f"{tables[0]} names none of the images"
        raise DataError(f"{source.path}: {told}; name the folder that these names are relative to")
    return found


def _unread(tree: ImageTree) -> dict[str, int]:
    """Files in image formats whose plug-in is not installed."""
    return {
        kind: count
        for kind, count in count_unused(tree, frozenset()).items()
        if kind.startswith("not read without")
    }

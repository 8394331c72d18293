"""A folder of image files → pairs.

The captions are, whichever is there first: a text file beside each image (``cat.jpg``,
``cat.txt``); ``metadata.csv`` or ``metadata.jsonl`` with the columns ``file_name`` and
``text`` or ``caption``, in any folder and for the images below it; or the names of the
folders the images are in, as class names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.image_ids import ImageFiles, named_files, number_images
from clipkit.data.reader import Access, SampleError
from clipkit.data.table import TableReader, read_image
from clipkit.data.understood import Understood
from clipkit.errors import DataError
from clipkit.types import Pair

METADATA_FILES = ("metadata.csv", "metadata.jsonl")


class FolderReader:
    """Pairs of image files; see ``Reader``.

    Args:
        source: ``caption: none`` where no captions are needed.
        folder: what the names are relative to.
        names: all its files, with ``/``, sorted.

    Raises:
        DataError: no image is there, or no caption.
    """

    def __init__(self, source: SourceConfig, folder: str, names: list[str]) -> None:
        self.source = source
        self.dropped: dict[str, int] = {}
        self.damage: list[str] = []
        self.lost = 0
        self.access = Access(remote=files.is_url(folder))
        self._folder = folder
        images = [name for name in names if extension(name) in reader.IMAGE_EXTENSIONS]
        if not images:
            raise DataError(f"{source.path}: no image files there.")
        there = set(names)
        self._texts = {}
        self._metadata: dict[str, dict[str, Any]] = {}
        self._others: dict[str, list[str]] = {}  # further captions
        self._from_folders = False
        self._class_names: dict[str, str] = {}  # a folder's, where it is not its own
        by_folder = isinstance(source, LabelSource) and source.caption is None
        if source.caption != reader.NONE:
            if not by_folder:
                self._texts = {n: text for n in images if (text := beside(n)) in there}
            if not self._texts and not by_folder:
                self._metadata = self._read_metadata(names)
            if not self._texts and not self._metadata:
                if not all("/" in name for name in images):
                    if by_folder:
                        raise DataError(
                            f"{source.path}: {len(images)} images and no classes; looked for a "
                            "folder for each class. Name the column or field of the classes"
                        )
                    raise DataError(
                        f"{source.path}: {len(images)} images and no captions; looked for "
                        "NAME.txt beside NAME.jpg, metadata.csv or metadata.jsonl, and a folder "
                        "for each class. Where none are needed, set the source's caption to none."
                    )
                self._from_folders = True
                self._name_classes(images)
        captioned = self._texts or self._metadata
        self._names = [name for name in images if not captioned or name in captioned]
        if not self._names:
            raise DataError(
                f"{source.path}: {len(images)} images, and the captions there belong to none of "
                f"them; they speak of {next(iter(captioned))!r}, for one."
            )
        if len(images) > len(self._names):
            self.dropped["no caption"] = len(images) - len(self._names)
        self.shard_sizes = [len(self)]
        self.understood = Understood(
            images="image files",
            captions=self._where_captions(),
            classes=self._from_folders,
            class_names=sorted({self._class_of(name) for name in self._names} - {""}),
        )
        used = [*self._names, *self._texts.values()]
        size = files.total_size(files.join(folder, name) for name in used)
        captions = [record[_CAPTION] for record in self._metadata.values()]
        if self._from_folders:
            captions = [*source.templates, *self._class_names.values()]
        self.fingerprint = files.digest(source.caption, size, *self._names, *captions)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, row: int) -> Pair:
        name = self._name(row)
        captions = self._captions(name)
        return Pair(
            key=name,
            image=read_image(self._folder, name),
            caption=captions[0] if captions else None,
            origin=self.locate(row),
            metadata=self._metadata.get(name, {}),
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
                yield self._captions(name)
            except SampleError:
                yield []

    def captions(self) -> Iterator[str]:
        return reader.first_of(self.texts())

    def image_files(self) -> ImageFiles:
        return named_files(files.join(self._folder, name) for name in self._names)

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def _where_captions(self) -> str:
        if self._texts:
            return "NAME.txt beside each image"
        if self._metadata:
            return "metadata tables"
        return "folder names" if self._from_folders else ""

    def _name(self, row: int) -> str:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._names[row]

    def _captions(self, name: str) -> list[str]:
        if name in self._texts:
            path = files.join(self._folder, self._texts[name])
            try:
                raw = files.read_all(path, reader.MAX_CAPTION_BYTES)
            except FileNotFoundError:
                raise DataError(f"{path}: it vanished; start again.") from None
            except OSError:
                raise SampleError("unreadable caption file") from None
            return [reader.decode_text(raw)]
        if name in self._metadata:
            return [str(self._metadata[name][_CAPTION]), *self._others.get(name, [])]
        return (
            reader.class_captions(self._class_of(name), self.source) if self._from_folders else []
        )

    def _class_of(self, name: str) -> str:
        """The class of an image; empty where folders are no classes."""
        folder = name.split("/")[-2] if self._from_folders else ""
        return self._class_names.get(folder, folder)

    def _name_classes(self, images: list[str]) -> None:
        names = reader.read_class_names(self.source)
        if names is None:
            return
        folders = sorted({name.split("/")[-2] for name in images})
        if len(folders) != len(names):
            raise DataError(
                f"{self.source.class_names}: names {len(names)} classes, and there are images in "
                f"{len(folders)} folders of {self.source.path}."
            )
        self._class_names = dict(zip(folders, names, strict=True))

    def _read_metadata(self, names: list[str]) -> dict[str, dict[str, Any]]:
        """Image name → its record, with the caption under ``_CAPTION``."""
        found: dict[str, dict[str, Any]] = {}
        for table in names:
            folder, _, base = table.rpartition("/")
            if base not in METADATA_FILES:
                continue
            path = files.join(self._folder, table)
            columns = dataclasses.replace(self.source, path=path, image="file_name")
            rows = TableReader(columns, [columns.path], progress=False)
            for name, captions, record in rows.records():
                path = (f"{folder}/{name}" if folder else name).removeprefix("./")
                # An image may have a row for each of its captions.
                others = self._others.setdefault(path, [])
                if path in found:
                    others += captions if self.source.captions == "random" else []
                else:
                    found[path] = {**record, _CAPTION: captions[0] if captions else ""}
                    others += captions[1:]
        return found


_CAPTION = "caption"


def extension(name: str) -> str:
    """``a/b.JPG`` → ``jpg``."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[1].lower() if "." in base else ""


def beside(name: str) -> str:
    """``a/b.jpg`` → ``a/b.txt``, where an image's caption may be."""
    return name.rsplit(".", 1)[0] + ".txt"

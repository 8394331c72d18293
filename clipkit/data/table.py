"""CSV, TSV and JSON tables → pairs: image paths or URLs beside their captions.

A table is indexed by its records' offsets and read in place: every value stays the text it
is (a caption ``NA`` or ``2020-01-01`` included), and nothing is converted or copied.
"""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.columns import choose_columns, columns_understood, is_number
from clipkit.data.image_ids import ImageFiles, named_files, no_images, number_images
from clipkit.data.image_roots import find_image_root, find_other_root
from clipkit.data.index import Advance, Arrays, indexed, pack_json, unpack_json
from clipkit.data.reader import Access, SampleError
from clipkit.data.records import EXTENSIONS, Delimited, JsonRecords, Record, open_records
from clipkit.errors import DataError
from clipkit.types import Pair

__all__ = ["EXTENSIONS", "TableReader", "read_image"]

_FIRST = 200  # records that tell what is in a column
_LOOKED_FOR = 100_000  # rows; of larger tables, missing images are found when they are read
# ``000.jpg#2``: the third caption of 000.jpg, as Flickr8k numbers them.
_NUMBERED = re.compile(rf"(.*\.(?:{'|'.join(reader.IMAGE_EXTENSIONS)}))#\d+", re.I | re.S)


class TableReader:
    """Pairs of CSV, TSV, JSONL or JSON files; see ``Reader``.

    Args:
        source: ``image`` and ``caption`` name columns; ``a.b`` a field inside one.
        paths: the tables, in order. Image paths are relative to their table.
        progress: show a bar while indexing.
        look: leave out rows whose image file is missing, of local tables that are not large; other
            rows are found out when they are read.

    Raises:
        DataError: a file is missing or broken, lacks the columns, or holds no usable row.

    Attributes:
        paths: the tables, in order.
    """

    def __init__(
        self, source: SourceConfig, paths: list[str], *, progress: bool, look: bool = True
    ) -> None:
        self.source = source
        self.damage: list[str] = []
        self.lost = 0
        self.shard_sizes: list[int] = []
        self.paths = paths
        self._offsets: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._contents: list[bytes | None] = []  # of layouts whose records have no place
        self._tables = {paths[0]: open_records(paths[0])}
        self._roots = [source.image_root or files.parent(path) for path in paths]
        self._image, self._captions = self._choose(self._tables[paths[0]])
        self._unlabelled = isinstance(source, LabelSource) and source.unlabelled
        kind = f"table {self._image} {','.join(self._captions)}"
        kind += " unlabelled" if self._unlabelled else ""
        dropped: Counter[str] = Counter()
        stats: list[files.FileStat] = []
        told: dict[str, dict[str, Any]] = {}
        each = indexed(paths, self._index, kind=f"records 2 {kind}", progress=progress)
        for path, stat, arrays in each:
            stats.append(stat)
            self._open(path)
            self._offsets.append(arrays["offset"])
            self._sizes.append(arrays["size"])
            self._contents.append(arrays["content"].tobytes() or None)
            self.shard_sizes.append(len(arrays["offset"]))
            told[path] = unpack_json(arrays["told"])
            dropped.update(told[path]["dropped"])
        self.dropped = dict(dropped)
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        if len(self) == 0:
            why = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
            raise DataError(f"{source.path}: no usable row{': ' + why if why else ''}.")
        self.understood = columns_understood(
            self._tables[paths[0]].columns, self._image, self._captions, notes=self._notes(told)
        )
        first_image, _, _ = next(self.records())
        self._find_roots()
        if look and len(self) <= _LOOKED_FOR and not files.is_url(paths[0]):
            self._leave_out_missing()
        self.access = Access(remote=files.is_url(paths[0]) or files.is_url(first_image))
        names = [_base(path) for path in paths]
        self.fingerprint = files.digest(
            kind, *names, *(stat.size for stat in stats), *self.shard_sizes
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Pair:
        number, record = self._record(row)
        image = self._name(record)
        captions = self._texts(record)
        key = image if image is not None else f"{row:08d}"
        return Pair(
            key=key,
            image=None if image is None else read_image(self._roots[number], image),
            caption=captions[0] if captions else None,
            origin=f"{self.paths[number]}, {key}",
            metadata={
                k: v for k, v in record.items() if k != self._image and k not in self._captions
            },
            others=captions[1:],
        )

    def locate(self, row: int) -> str:
        number, record = self._record(row)
        image = self._name(record)
        return f"{self.paths[number]}, {image if image is not None else f'row {row}'}"

    def place(self, row: int) -> tuple[str, int | None]:
        number, record = self._record(row)
        image = self._name(record)
        return self.paths[number] if image is None else image_path(self._roots[number], image), None

    def texts(self) -> Iterator[list[str]]:
        return (captions for _, captions, _ in self.records())

    def captions(self) -> Iterator[str]:
        return reader.first_of(self.texts())

    def image_files(self) -> ImageFiles:
        if not self._image:
            return no_images(len(self))
        return named_files(self.place(row)[0] for row in range(len(self)))

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def records(self) -> Iterator[tuple[str, list[str], Record]]:
        """(image name, captions, all columns) of each row, without reading images."""
        for row in range(len(self)):
            record = self._record(row)[1]
            yield self._name(record) or "", self._texts(record), record

    def _find_roots(self) -> None:
        """Where the images are not beside their table, they may be in a folder near it."""
        if self._image is None or self.source.image_root is not None:
            return
        for number, (path, size) in enumerate(zip(self.paths, self.shard_sizes, strict=True)):
            first = int(self._ends[number]) - size
            rows = dict.fromkeys(first + size * part // 4 for part in range(4)) if size else {}
            names = [self._name(self._record(row)[1]) or "" for row in rows]
            root = find_image_root(path, names)
            if root is not None and root != os.path.dirname(os.path.abspath(path)):
                self._roots[number] = root
                note = f"images of {_base(path)} found in {root}"
                if other := find_other_root(root, [name.replace("\\", "/") for name in names]):
                    note += f"; {other} has files of the same names (image_root chooses)"
                self.understood = dataclasses.replace(
                    self.understood, notes=[*self.understood.notes, note]
                )

    def _leave_out_missing(self) -> None:
        """Leaves out the rows whose image file is missing; none where all are, since their texts
        may be all that is wanted."""
        whole = len(self)
        missing = [row for row in range(whole) if self._is_missing(row)]
        if not 0 < len(missing) < whole:
            return
        there = np.ones(whole, dtype=bool)
        there[missing] = False
        for number, (end, size) in enumerate(zip(self._ends, self.shard_sizes, strict=True)):
            kept = there[end - size : end]
            self._offsets[number] = self._offsets[number][kept]
            self._sizes[number] = self._sizes[number][kept]
            self.shard_sizes[number] = int(kept.sum())
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        self.dropped["missing image file"] = len(missing)

    def _is_missing(self, row: int) -> bool:
        number, record = self._record(row)
        name = self._name(record)
        path = "" if name is None else image_path(self._roots[number], name)
        return bool(path) and not files.is_url(path) and not os.path.lexists(path)

    def _choose(self, table: Delimited | JsonRecords) -> tuple[str | None, list[str]]:
        source = self.source
        if table.image is not None:  # there are no names, only places
            source = dataclasses.replace(
                source,
                image=source.image or table.image,
                caption=source.caption or table.caption,
            )
        size = files.stat(table.path).size
        sample = [record for _, _, record in islice(table.records(size, lambda _: None), _FIRST)]

        def first(name: str) -> list[Any]:
            return [reader.field_of(record, name) for record in sample]

        return choose_columns(source, table.columns, table.path, first)

    def _open(self, path: str) -> Delimited | JsonRecords:
        if path not in self._tables:
            self._tables[path] = open_records(path)
        return self._tables[path]

    def _name(self, record: Record) -> str | None:
        """The image that a record names; of a list of one, that one, and of an object its path."""
        image = reader.field_of(record, self._image) if self._image else None
        if isinstance(image, list) and len(image) == 1:
            image = image[0]
        if isinstance(image, dict) and isinstance(image.get("path"), str):  # as datasets has it
            image = image["path"]
        if not image:
            return None
        numbered = _NUMBERED.fullmatch(str(image))
        return numbered[1] if numbered else str(image)

    def _texts(self, record: Record) -> list[str]:
        values = [reader.field_of(record, name) for name in self._captions]
        return reader.caption_texts(values, self.source)

    def _record(self, row: int) -> tuple[int, Record]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = int(np.searchsorted(self._ends, row, side="right"))
        i = row - int(self._ends[number]) + self.shard_sizes[number]
        path, size = self.paths[number], int(self._sizes[number][i])
        offset, content = int(self._offsets[number][i]), self._contents[number]
        raw = files.read(path, offset, size) if content is None else content[offset:][:size]
        try:
            return number, self._tables[path].parse(raw)
        except ValueError:
            raise DataError(f"{path}: changed since it was indexed; start again.") from None

    def _index(self, path: str, stat: files.FileStat, advance: Advance) -> Arrays:
        table = self._open(path)
        self._refuse_missing(table)
        offsets, sizes, dropped = [], [], Counter[str]()
        lists = 0
        only_numbers = True
        for offset, size, record in table.records(stat.size, advance):
            if self._image and self._name(record) is None:
                dropped["no image"] += 1
                continue
            texts = self._texts(record)
            if self._captions and not self._unlabelled and not any(map(str.strip, texts)):
                dropped["no caption"] += 1
                continue
            offsets.append(offset)
            sizes.append(size)
            only_numbers = only_numbers and bool(texts) and all(map(is_number, texts))
            lists += self._has_saved_list(record)
        told = {
            "dropped": dict(dropped),
            "found": dataclasses.asdict(table.found),
            "lists": lists,
            "only_numbers": only_numbers and not isinstance(self.source, LabelSource),
        }
        content = table.content or b""
        table.content = None
        return {
            "offset": np.array(offsets, dtype=np.int64),
            "size": np.array(sizes, dtype=np.int64),
            "content": np.frombuffer(content, dtype=np.uint8),
            "told": pack_json(told),
        }

    def _refuse_missing(self, table: Delimited | JsonRecords) -> None:
        """Refuses a further table without the columns of the first."""
        wanted = [name for name in (self._image, *self._captions) if name]
        missing = [n for n in wanted if not {n, n.split(".")[0]}.intersection(table.columns)]
        if missing and isinstance(table, Delimited):
            raise DataError(
                f"{table.path}: no column {missing[0]!r}; its columns are "
                f"{reader.name_some(table.columns)}."
            )

    def _has_saved_list(self, record: Record) -> bool:
        values = [reader.field_of(record, name) for name in self._captions]
        return any(isinstance(v, str) and reader.saved_list(v) is not None for v in values)

    def _notes(self, told: dict[str, dict[str, Any]]) -> list[str]:
        """Sentences on what was found in the tables."""
        notes = [note for path in told for note in self._tables[path].notes]
        cp1252 = sum(each["found"]["cp1252"] for each in told.values())
        if cp1252:
            rows = "1 row is" if cp1252 == 1 else f"{cp1252:,} rows are"
            notes.append(f"{rows} not UTF-8, read as cp1252")
        if unreadable := sum(each["found"]["unreadable"] for each in told.values()):
            rows = "1 row holds" if unreadable == 1 else f"{unreadable:,} rows hold"
            notes.append(reader.UNREADABLE.format(rows))
        if lists := sum(each["lists"] for each in told.values()):
            notes.append(f"{lists:,} cells hold a list in quotes, read as several captions")
        if all(each["only_numbers"] for each in told.values()):
            notes.append(f"{' and '.join(self._captions)} holds numbers alone")
        for path, each in told.items():
            if number := each["found"]["unclosed"]:
                more = f", and {number - 1:,} more" if number > 1 else ""
                notes.append(
                    f"{_base(path)}, line {each['found']['unclosed_line']}: the quote that opens "
                    f"column {each['found']['unclosed_column']} is not closed and was read as "
                    f"text{more}"
                )
        return list(dict.fromkeys(notes))


def image_path(folder: str, name: str) -> str:
    """Where an image lies that a table names: relative to ``folder``, with ``/`` or, in tables from
    Windows, with ``\\``."""
    path = files.join(folder, name)
    if "\\" in name and not files.is_url(name) and (files.is_url(path) or not os.path.exists(path)):
        path = files.join(folder, name.replace("\\", "/"))
    if not path.isascii() and not files.is_url(path) and not os.path.exists(path):
        # An accent may be a letter of its own, as macOS writes it, or not.
        for form in ("NFC", "NFD"):
            other = os.path.join(folder, unicodedata.normalize(form, name.replace("\\", "/")))
            if os.path.exists(other):
                return other
    return path


def read_image(folder: str, name: str) -> bytes:
    """The image file a table or folder names.

    Raises:
        SampleError: it is missing, unreadable, or too large to be a photograph.
    """
    try:
        data = files.read_all(image_path(folder, name), reader.MAX_IMAGE_BYTES)
    except FileNotFoundError:
        raise SampleError("missing image file") from None
    except (OSError, ValueError):  # a folder, no permission, NUL in the name, a dead URL
        raise SampleError("unreadable image file") from None
    if len(data) > reader.MAX_IMAGE_BYTES:
        raise SampleError("image file too large")
    return data


def _base(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]

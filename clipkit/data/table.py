"""CSV, TSV and JSON tables → pairs: image paths or URLs beside their captions.

A table is indexed by its records' offsets and read in place: every value stays the text it
is (a caption ``NA`` or ``2020-01-01`` included), and nothing is converted or copied.
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.image_ids import ImageFiles, named_files, no_images, number_images
from clipkit.data.index import Advance, Arrays, indexed, pack_json, unpack_json
from clipkit.data.reader import Access, SampleError
from clipkit.data.understood import Understood
from clipkit.errors import DataError
from clipkit.types import Pair

EXTENSIONS = ("csv", "tsv", "jsonl", "ndjson", "json")
_BLOCK = 2**20
_MAX_RECORD = 2**24  # bytes; a quote that is never closed swallows all that follows
_SPACE = re.compile(r"[ \t\r\n]*")
# A longer one is an error in Python's csv, in whichever process it is met.
csv.field_size_limit(max(csv.field_size_limit(), _MAX_RECORD))
_Record = dict[str, Any]


class TableReader:
    """Pairs of CSV, TSV, JSONL or JSON files; see ``Reader``.

    Args:
        source: ``image`` and ``caption`` name columns; ``a.b`` a field inside one.
        paths: the tables, in order. Image paths are relative to their table.
        progress: show a bar while indexing.

    Raises:
        DataError: a file is missing or broken, lacks the columns, or holds no usable row.

    Attributes:
        paths: the tables, in order.
    """

    def __init__(self, source: SourceConfig, paths: list[str], *, progress: bool) -> None:
        self.source = source
        self.damage: list[str] = []
        self.lost = 0
        self.shard_sizes: list[int] = []
        self.paths = paths
        self._offsets: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._formats: list[_Format] = []
        self._roots = [source.image_root or files.parent(path) for path in paths]
        first = _Format(paths[0])
        columns = first.columns()
        self._image, self._captions = choose_columns(source, columns, paths[0])
        self.understood = columns_understood(columns, self._image, self._captions)
        dropped: Counter[str] = Counter()
        stats: list[files.FileStat] = []
        self._unlabelled = isinstance(source, LabelSource) and source.unlabelled
        kind = f"table {self._image} {','.join(self._captions)}"
        kind += " unlabelled" if self._unlabelled else ""
        for path, stat, arrays in indexed(paths, self._index, kind=kind, progress=progress):
            stats.append(stat)
            self._formats.append(_Format(path))
            self._offsets.append(arrays["offset"])
            self._sizes.append(arrays["size"])
            self.shard_sizes.append(len(arrays["offset"]))
            dropped.update(unpack_json(arrays["dropped"]))
        self.dropped = dict(dropped)
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        if len(self) == 0:
            why = ", ".join(f"{count} with {reason}" for reason, count in dropped.items())
            raise DataError(f"{source.path}: no usable row{': ' + why if why else ''}.")
        first_image, _, _ = next(self.records())
        self.access = Access(remote=files.is_url(paths[0]) or files.is_url(first_image))
        names = [path.replace("\\", "/").rsplit("/", 1)[-1] for path in paths]
        self.fingerprint = files.digest(
            kind, *names, *(stat.size for stat in stats), *self.shard_sizes
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Pair:
        number, record = self._record(row)
        image = reader.field_of(record, self._image) if self._image else None
        image = None if image is None else str(image)
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
        image = reader.field_of(record, self._image) if self._image else None
        return f"{self.paths[number]}, {image if image is not None else f'row {row}'}"

    def place(self, row: int) -> tuple[str, int | None]:
        number, record = self._record(row)
        image = reader.field_of(record, self._image) if self._image else None
        table = self.paths[number]
        return (table if image is None else files.join(self._roots[number], str(image))), None

    def captions(self) -> Iterator[str]:
        for _, captions, _ in self.records():
            yield captions[0] if captions else ""

    def image_files(self) -> ImageFiles:
        if not self._image:
            return no_images(len(self))
        return named_files(self.place(row)[0] for row in range(len(self)))

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def records(self) -> Iterator[tuple[str, list[str], _Record]]:
        """(image name, captions, all columns) of each row, without reading images."""
        for row in range(len(self)):
            record = self._record(row)[1]
            image = reader.field_of(record, self._image) if self._image else ""
            yield str(image), self._texts(record), record

    def _texts(self, record: _Record) -> list[str]:
        values = [reader.field_of(record, name) for name in self._captions]
        return reader.caption_texts(values, self.source)

    def _usable(self, record: _Record) -> bool:
        """Whether a row has the captions that are asked for."""
        if not self._captions or self._unlabelled:
            return True
        return any(text.strip() for text in self._texts(record))

    def _record(self, row: int) -> tuple[int, _Record]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = int(np.searchsorted(self._ends, row, side="right"))
        i = row - int(self._ends[number]) + self.shard_sizes[number]
        path, size = self.paths[number], int(self._sizes[number][i])
        raw = files.read(path, int(self._offsets[number][i]), size)
        try:
            return number, self._formats[number].parse(raw)
        except ValueError:
            raise DataError(f"{path}: changed since it was indexed; start again.") from None

    def _index(self, path: str, stat: files.FileStat, advance: Advance) -> Arrays:
        table = _Format(path)
        missing = [
            name
            for name in (self._image, *self._captions)
            if name and name.split(".")[0] not in table.columns()
        ]
        if missing and table.delimiter is not None:
            raise DataError(
                f"{path}: no column {missing[0]!r}; its columns are {', '.join(table.columns())}."
            )
        offsets, sizes, dropped = [], [], Counter[str]()
        for offset, size, record in table.records(stat.size, advance):
            if self._image and not reader.field_of(record, self._image):
                dropped["no image"] += 1
            elif not self._usable(record):
                dropped["no caption"] += 1
            else:
                offsets.append(offset)
                sizes.append(size)
        return {
            "offset": np.array(offsets, dtype=np.int64),
            "size": np.array(sizes, dtype=np.int64),
            "dropped": pack_json(dict(dropped)),
        }


def choose_columns(
    source: SourceConfig, columns: list[str], where: str
) -> tuple[str | None, list[str]]:
    """The image column and those of the captions: as given, or by their usual names.

    Raises:
        DataError: there is none; the columns there are are named.
    """

    def choose(what: str, given: str | None, usual: tuple[str, ...]) -> str | None:
        if given == reader.NONE:
            return None
        if given is not None:
            if given in columns or given.split(".")[0] in columns:
                return given
            problem = f"no column {given!r}"
        else:
            by_lower = {name.lower().strip(): name for name in reversed(columns)}
            for name in usual:
                if name in by_lower:
                    return by_lower[name]
            problem = f"none of its columns looks like the {what}"
        raise DataError(
            f"{where}: {problem}; its columns are {', '.join(columns) or 'none'}. "
            f"Set {what} of the source{' (or to none)' if what == 'caption' else ''}."
        )

    image = choose("image", source.image, reader.IMAGE_COLUMNS)
    labels = isinstance(source, LabelSource)
    what, usual = ("label", reader.LABEL_COLUMNS) if labels else ("caption", reader.CAPTION_COLUMNS)
    named: list[str | None] = [source.caption]
    if source.caption and source.caption not in columns:  # a column's name may hold a comma
        named = [*reader.split_names(source.caption)] or [source.caption]
    captions = [choose(what, name, usual) for name in named]
    return image, [name for name in captions if name is not None]


def columns_understood(
    columns: list[str], image: str | None, captions: list[str], *, classes: bool = False
) -> Understood:
    """Says which columns are read, and which others could be the captions."""
    usual = [
        name
        for name in columns
        if name.lower().strip() in reader.CAPTION_COLUMNS and name not in (image, *captions)
    ]
    of = "columns" if len(captions) > 1 else "column"
    return Understood(
        images=f"column {image}" if image else "",
        captions=f"{of} {', '.join(captions)}" if captions else "",
        also=usual if captions else (),
        classes=classes,
    )


def read_image(folder: str, name: str) -> bytes:
    """The image file a table or folder names.

    Raises:
        SampleError: it is missing, unreadable, or too large to be a photograph.
    """
    try:
        data = files.read_all(files.join(folder, name), reader.MAX_IMAGE_BYTES)
    except FileNotFoundError:
        raise SampleError("missing image file") from None
    except (OSError, ValueError):  # a folder, no permission, NUL in the name, a dead URL
        raise SampleError("unreadable image file") from None
    if len(data) > reader.MAX_IMAGE_BYTES:
        raise SampleError("image file too large")
    return data


class _Format:
    """How one table's records are told apart and parsed.

    Attributes:
        delimiter: of a CSV; None for JSON.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self.delimiter: str | None = None
        self._header: list[str] = []
        start = files.read(path, 0, _BLOCK)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{path}: is UTF-16; save it as UTF-8.")
        name = path.lower()
        self._is_whole = False  # all records stand in one JSON value
        if name.endswith((".jsonl", ".ndjson", ".json")):
            text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
            whole = name.endswith(".json") and _names_records(text, len(start) < _BLOCK)
            self._is_whole = text.startswith(b"[") or whole
            return
        line = start.decode("utf-8-sig", "replace").split("\n", 1)[0]
        # Many tools write tabs, semicolons or bars into files called .csv.
        bare = re.sub('"[^"]*"', "", line)
        self.delimiter = "\t" if name.endswith(".tsv") and "\t" in bare else _separator(bare)
        # ``image, caption`` and ``image| caption``: the space is no part of the values.
        self._spaced = 0 < bare.count(self.delimiter) == bare.count(f"{self.delimiter} ")
        if "\r" in line.rstrip("\r"):
            raise DataError(
                f"{path}: its lines end with CR alone, as on old Macs; save it with line feeds."
            )
        try:
            self._header = [column.strip() for column in self._split(line)]
        except ValueError as error:
            raise DataError(f"{path}, line 1: not a valid header ({error}).") from error

    def columns(self) -> list[str]:
        """Names of the columns; of JSON, those of the first record."""
        if self.delimiter is not None:
            return self._header
        size = files.stat(self._path).size
        for _, _, record in self.records(size, lambda _: None):
            return list(record)
        return []

    def parse(self, raw: bytes) -> _Record:
        """One record's bytes → its columns.

        Raises:
            ValueError: they are not a record.
        """
        text = raw.decode("utf-8-sig", "replace")
        if self.delimiter is None:
            record = json.loads(text)
            if not isinstance(record, dict):
                raise ValueError("not an object")
            return record
        return self._named(self._split(text))

    def records(self, size: int, advance: Advance) -> Iterator[tuple[int, int, _Record]]:
        """(offset, size, record) of all records.

        Raises:
            DataError: one is broken; file and line are named.
        """
        lines = _Lines(self._path, size, advance)
        try:
            if self._is_whole:
                yield from self._whole_records(size)
            elif self.delimiter in (None, "\t"):
                # One line is one record, also where a caption starts with a quotation mark.
                each = iter(lines)
                if self.delimiter:
                    next(each, None)  # the header
                for line in each:
                    if line.strip(b"\xef\xbb\xbf \t\r\n"):
                        yield lines.at - len(line), len(line), self.parse(line)
            else:
                yield from self._csv_records(lines)
        except (ValueError, csv.Error, RecursionError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self._path}, line {lines.number}: not a valid record ({error})."
            ) from error

    def _csv_records(self, lines: _Lines) -> Iterator[tuple[int, int, _Record]]:
        decoded = (line.decode("utf-8-sig", "replace") for line in lines)
        # The reader takes as many lines as a record has, so that the lines' place after a
        # record is the record's end, also where quoted texts hold line breaks.
        parsed = csv.reader(decoded, delimiter=self.delimiter or ",", skipinitialspace=self._spaced)
        next(parsed, None)  # the header
        start = lines.at
        for values in parsed:
            end, begin, start = lines.at, start, lines.at
            if values:
                yield begin, end - begin, self._named(values)

    def _whole_records(self, size: int) -> Iterator[tuple[int, int, _Record]]:
        """The elements of one JSON list, or of an object that names them, each with its place."""
        text = files.read(self._path, 0, size).decode("utf-8", "surrogateescape")
        decoder = json.JSONDecoder()

        def skip_space(at: int) -> int:
            space = _SPACE.match(text, at)
            assert space is not None
            return space.end()

        at = skip_space(1 if text.startswith("\ufeff") else 0)
        end_sign = "]" if text[at] == "[" else "}"
        begin, at = 0, skip_space(at + 1)
        offset = 0  # of ``begin``, in bytes
        while text[at : at + 1] != end_sign:
            if begin:  # behind an element
                if text[at : at + 1] != ",":
                    raise self._in_list(text, at, "the list is not closed, so it may be cut short")
                at = skip_space(at + 1)
            try:
                if end_sign == "}":
                    _, at = decoder.raw_decode(text, at)
                    at = skip_space(skip_space(at) + 1)  # behind the name and its colon
                record, end = decoder.raw_decode(text, at)
            except json.JSONDecodeError as error:
                raise self._in_list(text, at, str(error)) from None
            if not isinstance(record, dict):
                raise self._in_list(text, at, "not a list of objects")
            offset += len(text[begin:at].encode("utf-8", "surrogateescape"))
            length = len(text[at:end].encode("utf-8", "surrogateescape"))
            yield offset, length, record
            begin, at, offset = end, skip_space(end), offset + length

    def _in_list(self, text: str, at: int, what: str) -> DataError:
        line = text.count("\n", 0, at) + 1
        return DataError(f"{self._path}, line {line}: not a valid record ({what}).")

    def _named(self, values: list[str]) -> _Record:
        if len(values) > len(self._header):
            raise ValueError(
                f"{len(values)} values for {len(self._header)} columns; put quotes around texts "
                "that hold the separator"
            )
        return dict(zip(self._header, values, strict=False))

    def _split(self, text: str) -> list[str]:
        if self.delimiter == "\t":
            return [_unquoted(value) for value in text.rstrip("\r\n").split("\t")]
        try:
            return next(
                csv.reader([text], delimiter=self.delimiter or ",", skipinitialspace=self._spaced),
                [],
            )
        except csv.Error as error:
            raise ValueError(str(error)) from error


def _separator(header: str) -> str:
    """What separates the columns that a header names."""
    return max(",\t;|", key=header.count)


def _unquoted(value: str) -> str:
    """``"say ""hi"" "`` → ``say "hi" ``, and ``"hi" she said`` as it is: of tables with tabs,
    some quote as CSV does, and most hold bare text."""
    inner = value[1:-1].replace('""', "")
    if len(value) < 2 or value[0] != '"' or value[-1] != '"' or '"' in inner:
        return value
    return value[1:-1].replace('""', '"')


def _names_records(start: bytes, is_all: bool) -> bool:
    """Whether a JSON file is one object whose values are the records, as ``{"0": {…}, …}``, and not
    a record a line."""
    try:
        first, end = json.JSONDecoder().raw_decode(start.decode("utf-8", "replace"))
    except ValueError:
        return not is_all and re.match(rb'\{\s*"[^"\\]*"\s*:\s*\{', start) is not None
    alone = not start.decode("utf-8", "replace")[end:].strip()
    return alone and isinstance(first, dict) and all(isinstance(v, dict) for v in first.values())


class _Lines:
    """A file's lines as bytes; ``at`` is the place behind the last one, ``number`` its number."""

    def __init__(self, path: str, size: int, advance: Advance) -> None:
        self._path, self._size, self._advance = path, size, advance
        self.at = self.number = 0

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        for offset in range(0, self._size, _BLOCK):
            block = files.read(self._path, offset, _BLOCK)
            self._advance(len(block))
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            if len(rest) > _MAX_RECORD:
                raise ValueError(f"it is longer than {_MAX_RECORD} bytes")
            for line in lines:
                yield self._passed(line + b"\n")
        if rest:
            yield self._passed(rest)

    def _passed(self, line: bytes) -> bytes:
        self.at += len(line)
        self.number += 1
        return line

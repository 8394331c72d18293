"""JSON in the layouts that tables come in: a record a line, a list, an object of them.

Also an object whose keys are the images, and columns beside each other, as pandas writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from clipkit.data import files
from clipkit.data.index import Advance
from clipkit.data.reader import CAPTION_COLUMNS, IMAGE_COLUMNS, decode_text, is_cp1252, name_some
from clipkit.data.records.delimited import is_image
from clipkit.data.records.lines import BLANK, BLOCK, Found, Lines, Record
from clipkit.errors import DataError

_SPACE = re.compile(r"[ \t\r\n]*")
_JSON = re.compile(rb'\s*(\[\s*)?\{\s*"')
_USUAL = {*IMAGE_COLUMNS, *CAPTION_COLUMNS}
_ENTRIES = 8  # of an object, that tell its layout
_IMAGE, _CAPTION = "image", "caption"  # columns of an object whose keys are images


def looks_like_json(start: bytes) -> bool:
    """Whether a file begins as JSON records do."""
    return _JSON.match(start.removeprefix(b"\xef\xbb\xbf")) is not None


class JsonRecords:
    """The records of one JSON file.

    Args:
        path: of the file.
        start: its first bytes.

    Raises:
        DataError: it is no JSON, or in a layout that is not read.

    Attributes:
        path: of the file.
        columns: those of the first record.
        image: None; JSON names its fields.
        caption: None, likewise.
        notes: how the file is read, where that is not as usual.
        found: what the last scan met.
        content: the records, one a line, where in the file they have no place of their own; their
            offsets are into it.
    """

    def __init__(self, path: str, start: bytes) -> None:
        self.path = path
        self.found = Found()
        self.image: str | None = None
        self.caption: str | None = None
        self.notes: list[str] = []
        self.content: bytes | None = None
        text = start.lstrip(BLANK)
        if text and not text.startswith((b"{", b"[")):
            begins = decode_text(text[:40].split(b"\n")[0])
            raise DataError(
                f"{path}, line 1: not a valid record (no JSON: it begins with {begins!r}; a table "
                "with columns is called .csv or .tsv)."
            )
        self._layout = "lines"
        if text.startswith(b"["):
            self._layout = "list"
        elif path.lower().endswith(".json"):
            self._layout = self._object_layout(text, len(start) < BLOCK)
        if self._layout == "keyed":
            self.notes.append("keys read as images")
        elif self._layout in ("columns", "split"):
            self.notes.append("JSON by columns")
        elif self._layout == "inside":
            self.notes.append("records read from the one list in the object")
        if not path.lower().endswith(("json", "jsonl")):
            self.notes.append("read as JSON, whatever its name")
        size = files.stat(path).size
        first = next((record for _, _, record in self.records(size, lambda _: None)), {})
        self.columns: list[str] = list(first)

    def parse(self, raw: bytes) -> Record:
        """Parses one record's bytes into its columns.

        Raises:
            ValueError: they are not a record.
        """
        text = decode_text(raw)
        record = json.loads(f"{{{text}}}" if self._layout == "keyed" else text)
        if not isinstance(record, dict):
            raise ValueError("not an object")
        return _of_image(*next(iter(record.items()))) if self._layout == "keyed" else record

    def records(self, size: int, advance: Advance) -> Iterator[tuple[int, int, Record]]:
        """(offset, size, record) of all records.

        Raises:
            DataError: one is broken; file and line are named.
        """
        self.found = Found()
        if self._layout == "lines":
            yield from self._by_line(size, advance)
        elif self._layout in ("columns", "split", "inside"):
            yield from self._rewritten(size)
        else:
            yield from self._within_value(size)

    def _by_line(self, size: int, advance: Advance) -> Iterator[tuple[int, int, Record]]:
        lines = Lines(self.path, size, advance)
        for line in lines:
            if not line.raw.strip(BLANK):
                continue
            try:
                record = self.parse(line.raw)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{self.path}, line {line.number}: not a valid record ({error})."
                ) from error
            self.found.look_at(line.raw)
            yield line.offset, len(line.raw), record

    def _within_value(self, size: int) -> Iterator[tuple[int, int, Record]]:
        """The elements of one JSON list, or the values of an object, each with its place."""
        text = files.read(self.path, 0, size).decode("utf-8", "surrogateescape")
        decoder = json.JSONDecoder()
        at = _after_space(text, 1 if text.startswith("\ufeff") else 0)
        end_sign = "]" if text[at] == "[" else "}"
        begin, at = 0, _after_space(text, at + 1)
        offset = 0  # of ``begin``, in bytes
        while text[at : at + 1] != end_sign:
            if begin:  # behind an element
                if text[at : at + 1] != ",":
                    raise self._in_value(text, at, "the list is not closed, so it may be cut short")
                at = _after_space(text, at + 1)
            start = at
            try:
                key = None
                if end_sign == "}":
                    key, at = decoder.raw_decode(text, at)
                    at = _after_space(text, _after_space(text, at) + 1)  # behind the colon
                value, end = decoder.raw_decode(text, at)
            except (json.JSONDecodeError, RecursionError) as error:
                raise self._in_value(text, at, str(error)) from None
            if self._layout == "keyed":
                value, at = _of_image(str(key), value), start
            elif not isinstance(value, dict):
                raise self._in_value(text, at, "not a list of objects")
            offset += len(text[begin:at].encode("utf-8", "surrogateescape"))
            raw = text[at:end].encode("utf-8", "surrogateescape")
            self.found.look_at(raw)
            if is_cp1252(raw):
                value = self.parse(raw)
            yield offset, len(raw), value
            begin, at, offset = end, _after_space(text, end), offset + len(raw)

    def _in_value(self, text: str, at: int, what: str) -> DataError:
        line = text.count("\n", 0, at) + 1
        return DataError(f"{self.path}, line {line}: not a valid record ({what}).")

    def _rewritten(self, size: int) -> Iterator[tuple[int, int, Record]]:
        """The records of layouts in which they have no place; they make up ``content``."""
        try:
            whole = json.loads(decode_text(files.read(self.path, 0, size)))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path}: not valid JSON ({error}).") from error
        if self._layout == "split":
            rows = [dict(zip(whole["columns"], row, strict=False)) for row in whole["data"]]
        elif self._layout == "inside":
            rows = next(value for value in whole.values() if _are_records(value))
        else:
            rows = self._beside(whole)
        lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") for row in rows]
        self.content = b"\n".join(lines)
        offset = 0
        for row, line in zip(rows, lines, strict=True):
            if not isinstance(row, dict):
                raise DataError(f"{self.path}: not a list of objects: it holds {str(row)[:40]!r}.")
            yield offset, len(line), row
            offset += len(line) + 1

    def _beside(self, whole: dict[str, Any]) -> list[Record]:
        """The rows of columns that stand beside each other."""
        columns = {
            name: list(column.values()) if isinstance(column, dict) else column
            for name, column in whole.items()
        }
        if len({len(column) for column in columns.values()}) > 1:
            told = name_some([f"{name} {len(column):,}" for name, column in columns.items()])
            raise DataError(f"{self.path}: its columns differ in length: {told}.")
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _object_layout(self, start: bytes, is_all: bool) -> str:
        """The layout of a file that begins with an object.

        Raises:
            DataError: it is one that holds no records.
        """
        text = start.decode("utf-8", "replace")
        entries, complete = _entries(text)
        if not complete and not is_all and len(entries) < _ENTRIES:  # a value larger than a block
            size = files.stat(self.path).size
            text = files.read(self.path, 0, size).lstrip(BLANK).decode("utf-8", "replace")
            entries, complete = _entries(text)
        if complete is not None and text[complete:].strip():
            return "lines"  # more than one object
        if not entries:
            return "lines"
        layout = _layout(entries)
        if layout is None:
            raise DataError(
                f"{self.path}: an object with the keys {name_some(list(entries))} …, which "
                "is no table: records are objects in a list, one a line, or by the names of their "
                "images."
            )
        return layout


def _layout(entries: Mapping[str, Any]) -> str | None:
    """The layout of an object with these entries, of which there may be more."""
    values = list(entries.values())
    usual = any(key.lower().strip() in _USUAL for key in entries)
    if {"columns", "data"} <= set(entries):
        return "split"
    if usual and len(values) > 1:
        keys = [list(value) if isinstance(value, dict) else None for value in values]
        if all(isinstance(value, list) for value in values):
            return "columns"
        if keys[0] is not None and all(each == keys[0] for each in keys):
            return "columns"
    if all(map(is_image, entries)):
        return "keyed"
    if all(isinstance(value, dict) for value in values):
        return "named"
    if sum(map(_are_records, values)) == 1 and not usual:
        return "inside"
    return "lines" if usual else None


def _are_records(value: Any) -> bool:
    """Whether a value is a list of objects."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _entries(text: str) -> tuple[dict[str, Any], int | None]:
    """The first entries of an object, and where it ends where that was reached."""
    decoder = json.JSONDecoder()
    entries: dict[str, Any] = {}
    try:
        at = _after_space(text, 1)
        while text[at] != "}":
            key, at = decoder.raw_decode(text, at)
            at = _after_space(text, _after_space(text, at) + 1)  # behind the colon
            value, at = decoder.raw_decode(text, at)
            at = _after_space(text, at)
            if len(entries) < _ENTRIES:
                entries[str(key)] = value
            if text[at] == ",":
                at = _after_space(text, at + 1)
        return entries, at + 1
    except (ValueError, IndexError, RecursionError):
        return entries, None


def _of_image(key: str, value: Any) -> Record:
    """The record of an object's entry whose key is the image."""
    if isinstance(value, dict):
        return {_IMAGE: key, **value}
    return {_IMAGE: key, _CAPTION: value}


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space is not None
    return space.end()

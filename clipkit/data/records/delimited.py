"""CSV, TSV and their kin, in which quotes may go astray.

A field that opens with a quote ends with a quote before a separator or the end of a line, so it
may hold separators and line breaks. People's tables also hold quotes that open and never close, and
bare ones (``5" nails``). A quote that stands inside a field is text. One that opens a field and
would swallow what are records of their own is text as well, and is told with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from clipkit.data.index import Advance
from clipkit.data.reader import IMAGE_EXTENSIONS, decode_text
from clipkit.data.records.lines import BLANK, MAX_RECORD, Found, Line, Lines, Record
from clipkit.errors import DataError

_SAMPLE = 100  # lines at the start of a table that tell how its columns look
# So many lines of as many columns as the table has are no text with line breaks.
_MANY = 8
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_NONE = "\0"  # a table of one column has no separator
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
_IMAGE = re.compile(rf"[^\n]*\.({'|'.join([*IMAGE_EXTENSIONS, 'heic', 'jxl'])})(#\d+)?", re.I)
_BEHIND_IMAGE = re.compile(
    rf"[^,\t;|]*\.(?:{'|'.join(IMAGE_EXTENSIONS)})(?:#\d+)? *([,\t;|])", re.I
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_ID = re.compile(r"\S*\d\S*")


class Delimited:
    """The records of one table.

    Args:
        path: of the table.
        start: its first bytes.

    Raises:
        DataError: its first line is no header.

    Attributes:
        path: of the table.
        columns: their names; ``1``, ``2`` … without a header.
        image: the column of the images, where there is no header; else None.
        caption: the column of the captions, where there is no header; else None.
        notes: how the table is read, where that is not as usual.
        found: what the last scan met.
        content: None; the records lie in the file.
    """

    content: bytes | None = None

    def __init__(self, path: str, start: bytes) -> None:
        self.path = path
        self.found = Found()
        self.image: str | None = None
        self.caption: str | None = None
        self.notes: list[str] = []
        lines = start.split(b"\n")
        self._skip = next((n for n, line in enumerate(lines) if line.strip(BLANK)), len(lines) - 1)
        header = decode_text(lines[self._skip])
        if "\r" in header.rstrip("\r"):
            raise DataError(
                f"{path}: its lines end with CR alone, as on old Macs; save it with line feeds."
            )
        told = re.fullmatch(r'"?sep=(.)"?\s*', header)  # the first line, as Excel writes it
        if told and self._skip + 1 < len(lines):
            self._skip += 1
            header = decode_text(lines[self._skip])
        bare = re.sub('"[^"]*"', "", header)
        self.delimiter: str = told[1] if told else _separator(bare, path)
        # ``image, caption`` and ``image| caption``: the space is no part of the values.
        self._spaced = 0 < bare.count(self.delimiter) == bare.count(f"{self.delimiter} ")
        # One that is written twice; one that ends a field, with the spaces behind it; a bare one.
        self._quote = re.compile(rf'""|"( *)(?={re.escape(self.delimiter)}|[\r\n]*\Z)|"')
        self.columns: list[str] = []
        self.columns = [name.strip().strip('"') for name in self._split(header)[0]]
        self._tell_apart()
        self._skip += 1
        usual = "\t" if path.lower().endswith(".tsv") else ","
        if len(self.columns) > 1 and self.delimiter != usual:
            of = _SEPARATORS.get(self.delimiter, repr(self.delimiter))
            self.notes.append(f"columns separated by {of}")
        if any(map(is_image, self.columns)):
            self._name_by_place(lines)
        self._shapes = self._learn(lines[self._skip : -1] or lines[self._skip :])

    def parse(self, raw: bytes) -> Record:
        """Parses one record's bytes into its columns.

        Raises:
            ValueError: it has more values than there are columns.
        """
        return self._named(*self._split(decode_text(raw)))

    def records(self, size: int, advance: Advance) -> Iterator[tuple[int, int, Record]]:
        """(offset, size, record) of all records.

        Raises:
            DataError: one is broken; file and line are named.
        """
        self.found = Found()
        self._never_closes = False
        lines = Lines(self.path, size, advance)
        number = 0
        try:
            for line in lines:
                number = line.number
                if line.number <= self._skip or not line.raw.strip(BLANK):
                    continue
                raw = line.raw
                values, opened = self._split(decode_text(raw))
                while opened is not None:
                    whole = self._continued(raw, opened, lines)
                    if whole is None:
                        self._tell_unclosed(lines.number, opened)
                        break
                    raw = whole
                    values, opened = self._split(decode_text(raw))
                self.found.look_at(raw)
                yield line.offset, len(raw), self._named(values, opened)
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.path}, line {number}: not a valid record ({error}).") from error

    def _tell_apart(self) -> None:
        """Gives each further column of one name a name of its own: ``caption_2``."""
        for place, name in enumerate(self.columns):
            if not name or name not in self.columns[:place] or is_image(name):
                continue
            number = 2
            while (other := f"{name}_{number}") in self.columns:
                number += 1
            self.columns[place] = other
            self.notes.append(f"another column {name} is called {other}")

    def _tell_unclosed(self, number: int, opened: int) -> None:
        found = self.found
        if not found.unclosed:
            found.unclosed_line = number
            found.unclosed_column = self._column(opened)
        found.unclosed += 1

    def _column(self, number: int) -> str:
        return self.columns[number] if number < len(self.columns) else str(number + 1)

    def _name_by_place(self, lines: Sequence[bytes]) -> None:
        """Names columns by number where the first line is a record and no header."""
        self._skip -= 1
        rows = [self._split(decode_text(raw))[0] for raw in lines[self._skip :][:_SAMPLE]]
        self.columns = [str(number + 1) for number in range(len(self.columns))]
        image = next(n for n, value in enumerate(rows[0]) if is_image(value))
        self.image = self.columns[image]
        lengths = {
            number: sum(len(row[number]) for row in rows if number < len(row))
            for number, value in enumerate(rows[0])
            if number != image and _shape(value) not in ("url", "file", "number")
        }
        self.notes.append(f"no header line: column {self.image} read as image")
        if lengths:
            self.caption = self.columns[max(lengths, key=lambda number: lengths[number])]
            self.notes[-1] += f", column {self.caption} as caption"

    def _learn(self, lines: Sequence[bytes]) -> list[str | None]:
        """The shape that (nearly) all values of a column have; None where there is none."""
        texts = [decode_text(raw) for raw in lines]
        rows = self._whole_rows(texts, skip=True) or self._whole_rows(texts, skip=False)
        shapes: list[str | None] = []
        for values in zip(*rows, strict=True):
            seen = [_shape(value) for value in values if value.strip()]
            most = max(set(seen), key=seen.count) if seen else None
            shapes.append(most if most and seen.count(most) >= 0.9 * len(seen) else None)
        return shapes or [None] * len(self.columns)

    def _whole_rows(self, texts: Sequence[str], *, skip: bool) -> list[list[str]]:
        """The values of lines that are a record each; ``skip``: but for those in a quoted field."""
        rows: list[list[str]] = []
        at = 0
        while at < len(texts) and len(rows) < _SAMPLE:
            values, opened = self._split(texts[at])
            at += 1
            if opened is None and len(values) == len(self.columns):
                rows.append(values)
            elif opened is not None and skip:
                closing = (n for n, text in enumerate(texts[at:], at) if self._closing(text, 0))
                at = next(closing, at - 1) + 1
        return rows

    def _continued(self, raw: bytes, opened: int, lines: Lines) -> bytes | None:
        """A record with the lines that belong to the field which opens in it.

        None where its quote does not close, or where records of their own would be swallowed:
        lines that look like the others of the table, or values beyond its columns.
        """
        after = range(opened + 1, len(self.columns))
        alone = self._split(decode_text(raw))[0]
        if self._never_closes or (after and self._is_like_records(alone, after)):
            return None
        taken: list[Line] = []
        size, alike = len(raw), 0
        while (line := lines.take()) is not None:
            taken.append(line)
            size += len(line.raw)
            text = decode_text(line.raw)
            closing = self._closing(text, 0)
            inside = text if closing is None else text[: closing[0]]
            values = self._split(text)[0]
            before = range(inside.count(self.delimiter) + (closing is None))
            alike += len(values) == len(self.columns) > 1 and not any(self._shapes)
            if self._is_like_records(values, before):
                break
            if size > MAX_RECORD:
                raise ValueError(
                    f"the quote that opens column {self._column(opened)} does not close within "
                    f"{MAX_RECORD} bytes"
                )
            if alike == len(taken) >= _MANY:
                break
            if closing is not None:
                whole = b"".join([raw, *(each.raw for each in taken)])
                if len(self._split(decode_text(whole))[0]) > len(self.columns):
                    break
                return whole
        else:
            self._never_closes = True
        lines.put_back(taken)
        return None

    def _is_like_records(self, values: Sequence[str], columns: range) -> bool:
        """Whether a line is as long as a record, all its values are of the shapes of their
        columns, and one of these columns has a shape of its own."""
        if len(values) != len(self.columns):
            return False
        fits = all(
            shape is None or not value.strip() or _shape(value) == shape
            for value, shape in zip(values, self._shapes, strict=True)
        )
        return fits and any(self._shapes[n] and values[n].strip() for n in columns)

    def _split(self, line: str) -> tuple[list[str], int | None]:
        """The values of a record, and the first column whose quote opens and does not close."""
        line = line.rstrip("\r\n")
        if '"' not in line:
            values = line.split(self.delimiter)
            return ([value.lstrip(" ") for value in values] if self._spaced else values), None
        values, opened, at = [], None, 0
        while True:
            while self._spaced and line.startswith(" ", at):
                at += 1
            closing = self._closing(line, at + 1) if line.startswith('"', at) else None
            if closing is not None:
                values.append(line[at + 1 : closing[0]].replace('""', '"'))
                end = closing[1]
            else:
                end = line.find(self.delimiter, at)
                end = len(line) if end < 0 else end
                inner = line[at + 1 : end].replace('""', "")
                if line.startswith('"', at) and '"' not in inner:
                    opened = len(values) if opened is None else opened
                    if len(values) == len(self.columns) - 1:
                        end = len(line)  # the quote was meant to hold the separators
                values.append(line[at:end])
            if end >= len(line):
                return values, opened
            at = end + 1

    def _closing(self, text: str, at: int) -> tuple[int, int] | None:
        """Where the quote stands that ends a field, from ``at`` on, and where the field ends."""
        while (quote := self._quote.search(text, at)) is not None:
            if quote[1] is not None:
                return quote.start(), quote.end(1)
            at = quote.end()
        return None

    def _named(self, values: list[str], opened: int | None) -> Record:
        if len(values) > len(self.columns):
            if not any(value.strip() for value in values[len(self.columns) :]):
                values = values[: len(self.columns)]
                return dict(zip(self.columns, values, strict=True))
            number = f"{len(values)} values for {len(self.columns)} columns"
            if opened is not None:
                raise ValueError(
                    f"{number}, and the quote that opens column {self._column(opened)} is not "
                    "closed; close it, or write it twice between quotes"
                )
            raise ValueError(f"{number}; put quotes around texts that hold the separator")
        return dict(zip(self.columns, values, strict=False))


def _separator(header: str, path: str) -> str:
    """The separator of the columns that a header names: many tools write tabs, semicolons or bars
    into files called .csv."""
    if path.lower().endswith(".tsv") and "\t" in header:
        return "\t"
    if record := _BEHIND_IMAGE.match(header):  # no header, and a caption may hold commas
        return record[1]
    most = max(_SEPARATORS, key=header.count)
    return most if most in header else _NONE


def is_image(value: str) -> bool:
    """Whether a value names an image, which no column's name does."""
    return _shape(value.strip()) in ("url", "file")


def _shape(value: str) -> str | None:
    """How a value looks: url, file, number, id; None for text."""
    for name, pattern in (("url", _URL), ("file", _IMAGE), ("number", _NUMBER), ("id", _ID)):
        if pattern.fullmatch(value.strip()):
            return name
    return None

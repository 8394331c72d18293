"""A table's bytes → its lines, which can be put back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clipkit.data import files
from clipkit.data.index import Advance
from clipkit.data.reader import is_cp1252, is_unreadable
from clipkit.errors import DataError

Record = dict[str, Any]
BLOCK = 2**20
MAX_RECORD = 2**24  # bytes
BLANK = b"\xef\xbb\xbf \t\r\n"


@dataclass(slots=True)
class Found:
    """Findings of a scan besides its records.

    Attributes:
        unclosed: quotes that open and do not close.
        unclosed_line: the line of the first of them, from 1 on.
        unclosed_column: the column that it opens.
        cp1252: records that are not UTF-8 and were read as cp1252.
        unreadable: records with bytes that are neither, in whose place U+FFFD stands.
    """

    unclosed: int = 0
    unclosed_line: int = 0
    unclosed_column: str = ""
    cp1252: int = 0
    unreadable: int = 0

    def look_at(self, raw: bytes) -> None:
        """Counts a record by its encoding, where that is neither UTF-8 nor UTF-16."""
        if not raw.isascii():
            self.cp1252 += is_cp1252(raw)
            self.unreadable += is_unreadable(raw)


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its end; ``number`` is from 1 on, ``offset`` in bytes."""

    number: int
    offset: int
    raw: bytes


class Lines:
    """The lines of a file, in order; those that were looked at too early are put back.

    Attributes:
        number: of the line that was taken last.
    """

    def __init__(self, path: str, size: int, advance: Advance) -> None:
        self._ahead = _read_lines(path, size, advance)
        self._back: deque[Line] = deque()
        self.number = 0

    def __iter__(self) -> Iterator[Line]:
        while (line := self.take()) is not None:
            yield line

    def take(self) -> Line | None:
        """The next line; None behind the last.

        Raises:
            DataError: it is too long for a record.
        """
        line = self._back.popleft() if self._back else next(self._ahead, None)
        self.number += line is not None
        return line

    def put_back(self, lines: Sequence[Line]) -> None:
        """Lets these lines, the last ones that were taken, be taken again."""
        self._back.extendleft(reversed(lines))
        self.number -= len(lines)


def _read_lines(path: str, size: int, advance: Advance) -> Iterator[Line]:
    rest, at, number = b"", 0, 0
    for offset in range(0, size, BLOCK):
        block = files.read(path, offset, BLOCK)
        advance(len(block))
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if len(rest) > MAX_RECORD:
            raise DataError(
                f"{path}, line {number + len(lines) + 1}: not a valid record (it is longer than "
                f"{MAX_RECORD} bytes)."
            )
        for raw in lines:
            number += 1
            yield Line(number, at, raw + b"\n")
            at += len(raw) + 1
    if rest:
        yield Line(number + 1, at, rest)

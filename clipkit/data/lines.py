"""Text files, one text a line → samples without images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import SourceConfig
from clipkit.data import files, reader
from clipkit.data.image_ids import ImageFiles, no_images, number_images
from clipkit.data.index import Advance, Arrays, indexed
from clipkit.data.reader import Access
from clipkit.data.understood import Understood
from clipkit.errors import DataError
from clipkit.types import Pair

EXTENSION = "txt"
_BLOCK = 2**24
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_MIB = reader.MAX_CAPTION_BYTES // 2**20


class LineReader:
    """The lines of text files that are not blank; see ``Reader``.

    Args:
        source: ``image: none``, for there are none.
        paths: the files, in order.
        progress: show a bar while indexing.

    Raises:
        DataError: a file is missing, images are asked for, or there is no text.

    Attributes:
        paths: the files, in order.
    """

    def __init__(self, source: SourceConfig, paths: list[str], *, progress: bool) -> None:
        self.source = source
        self.damage: list[str] = []
        self.lost = 0
        self.paths = paths
        if source.image != reader.NONE:
            raise DataError(
                f"{paths[0]}: a text file, one text a line, has no images; set image of the source "
                "to none where texts alone are meant."
            )
        self._offsets: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._lines: list[np.ndarray] = []  # their numbers in the file, from 1 on
        dropped: Counter[str] = Counter()
        names: list[str | int] = []
        cp1252 = cut = unreadable = 0
        for path, stat, arrays in indexed(paths, _index, kind="lines 3", progress=progress):
            self._offsets.append(arrays["offset"])
            self._sizes.append(arrays["size"])
            self._lines.append(arrays["line"])
            dropped["empty line"] += int(arrays["blank"])
            cp1252 += int(arrays["cp1252"])
            unreadable += int(arrays["unreadable"])
            cut += int((arrays["size"] > reader.MAX_CAPTION_BYTES).sum())
            names += [path.replace("\\", "/").rsplit("/", 1)[-1], stat.size]
        self.dropped = {reason: number for reason, number in dropped.items() if number}
        self.shard_sizes = [len(offsets) for offsets in self._offsets]
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        if len(self) == 0:
            raise DataError(f"{source.path}: no line has a text.")
        self.access = Access(remote=any(map(files.is_url, paths)))
        notes = [f"{_lines(cp1252)} not UTF-8, read as cp1252"] if cp1252 else []
        if unreadable:
            lines = "1 line holds" if unreadable == 1 else f"{unreadable:,} lines hold"
            notes.append(reader.UNREADABLE.format(lines))
        if cut:
            notes.append(f"{_lines(cut)} longer than {_MIB} MiB, cut there")
        self.understood = Understood(captions="a text a line", notes=notes)
        self.fingerprint = files.digest("lines", *names, *self.shard_sizes)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Pair:
        number, i = self._find(row)
        return Pair(
            key=str(self._lines[number][i]),
            image=None,
            caption=self._text(number, i),
            origin=self.locate(row),
        )

    def locate(self, row: int) -> str:
        number, i = self._find(row)
        return f"{self.paths[number]}, line {self._lines[number][i]}"

    def place(self, row: int) -> tuple[str, int | None]:
        return self.paths[self._find(row)[0]], None

    def texts(self) -> Iterator[list[str]]:
        for number, size in enumerate(self.shard_sizes):
            for i in range(size):
                yield [self._text(number, i)]

    def captions(self) -> Iterator[str]:
        return reader.first_of(self.texts())

    def image_files(self) -> ImageFiles:
        return no_images(len(self))

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def _find(self, row: int) -> tuple[int, int]:
        """The file of a row, and which of its texts it is."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, row - int(self._ends[number]) + self.shard_sizes[number]

    def _text(self, number: int, i: int) -> str:
        size = min(int(self._sizes[number][i]), reader.MAX_CAPTION_BYTES)
        raw = files.read(self.paths[number], int(self._offsets[number][i]), size)
        return reader.decode_text(raw)


def _index(path: str, stat: files.FileStat, advance: Advance) -> Arrays:
    """Where the lines with a text begin, and how long they are."""
    if files.read(path, 0, 2) in _UTF_16:
        raise DataError(f"{path}: is UTF-16; save it as UTF-8.")
    offsets, sizes, numbers = [], [], []
    at = number = blank = cp1252 = unreadable = 0
    rest = b""
    for begin in range(0, stat.size, _BLOCK):
        data = rest + files.read(path, begin, min(_BLOCK, stat.size - begin))
        lines = data.split(b"\n")
        rest = lines.pop()
        if begin + _BLOCK >= stat.size and rest:
            lines.append(rest)
        for line in lines:
            number += 1
            if line.strip(b"\xef\xbb\xbf \t\r\n\0"):
                offsets.append(at)
                sizes.append(len(line))
                numbers.append(number)
                cp1252 += not line.isascii() and reader.is_cp1252(line)
                unreadable += reader.is_unreadable(line)
            else:
                blank += 1
            at += len(line) + 1
        advance(min(_BLOCK, stat.size - begin))
    return {
        "offset": np.array(offsets, dtype=np.int64),
        "size": np.array(sizes, dtype=np.int64),
        "line": np.array(numbers, dtype=np.int64),
        "blank": np.array(blank),
        "cp1252": np.array(cp1252),
        "unreadable": np.array(unreadable),
    }


def _lines(count: int) -> str:
    return "1 line is" if count == 1 else f"{count:,} lines are"

"""Rows → numbers of their images: rows with the same image file content have the same number.

Two image files are the same where their size and checksum agree; see ``Checksum``. Files of
different sizes are never read.
"""

from __future__ import annotations

import hashlib
import os
import stat as stat_module
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data import files

_CHUNK = 2**20
NO_IMAGE = -1


class Checksum:
    """The checksum of a file that is read piece by piece: CRC-32 in the low 32 bits, and 31 bits of
    Adler-32 above them.

    CRC-32 alone takes two PNG files of one size for the same with a probability of 2^-16, since a
    PNG file holds the CRC-32 of its own data.
    """

    def __init__(self) -> None:
        self._crc, self._adler = 0, 1

    def add(self, data: Any) -> None:
        """Goes on with the next bytes."""
        self._crc = zlib.crc32(data, self._crc)
        self._adler = zlib.adler32(data, self._adler)

    @property
    def value(self) -> int:
        """A checksum of the bytes that were added, 0 or more."""
        return (self._adler & 0x7FFFFFFF) << 32 | self._crc


def checksum_of(data: Any) -> int:
    """``Checksum`` of bytes."""
    checksum = Checksum()
    checksum.add(data)
    return checksum.value


def is_content(data: bytes, checksum: int) -> bool:
    """Whether bytes have a ``Checksum``, by its CRC-32, which is enough to find damage."""
    return zlib.crc32(data) == checksum & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """The image files of N rows.

    Attributes:
        of_row: (N,) the number of each row's file, below F.
        sizes: (F,) bytes of each file; ``NO_IMAGE`` where there is none; below that for a file
            known by its name alone, a hash of that name.
        checksums: (M,) files' numbers, ascending → (M,) each one's ``Checksum``.
    """

    of_row: NDArray[np.int64]
    sizes: NDArray[np.int64]
    checksums: Callable[[NDArray[np.int64]], NDArray[np.int64]]


def number_images(images: ImageFiles | None) -> NDArray[np.int64] | None:
    """(N,) the number of each row's image, in order of first appearance; None for None."""
    if images is None:
        return None
    # (F, 2) size and checksum. A file of a size of its own needs no checksum.
    keys = np.zeros((len(images.sizes), 2), dtype=np.int64)
    keys[:, 0] = images.sizes
    none = np.flatnonzero(images.sizes == NO_IMAGE)
    keys[none, 1] = none
    _, of_size, count = np.unique(images.sizes, return_inverse=True, return_counts=True)
    unclear = np.flatnonzero((images.sizes >= 0) & (count[of_size] > 1))
    if len(unclear):
        keys[unclear, 1] = images.checksums(unclear)
    return _number_rows(_number_rows(keys)[images.of_row, None])


def joined(parts: Sequence[ImageFiles]) -> ImageFiles:
    """The image files of several sources, laid end to end: what is in two of them is found."""
    ends = np.cumsum([len(part.sizes) for part in parts])
    begins = [int(end) - len(part.sizes) for part, end in zip(parts, ends, strict=True)]

    def checksums(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        cuts = np.searchsorted(numbers, ends[:-1])
        return np.concatenate(
            [
                part.checksums(ours - begin)
                for part, begin, ours in zip(parts, begins, np.split(numbers, cuts), strict=True)
            ]
        )

    return ImageFiles(
        of_row=np.concatenate(
            [part.of_row + begin for part, begin in zip(parts, begins, strict=True)]
        ),
        sizes=np.concatenate([part.sizes for part in parts]),
        checksums=checksums,
    )


def no_images(count: int) -> ImageFiles:
    """Rows that have no image: each is unlike all others."""
    return ImageFiles(
        of_row=np.arange(count),
        sizes=np.full(count, NO_IMAGE, dtype=np.int64),
        checksums=lambda numbers: np.zeros(len(numbers), dtype=np.int64),
    )


def named_files(paths: Iterable[str | None]) -> ImageFiles:
    """The files that rows name: a local one counts once, by whatever link it is named; a URL is
    known by its name alone, as is a file that is missing."""
    numbers: dict[object, int] = {}  # of each name and of each file
    of_row: list[int] = []
    sizes: list[int] = []
    found: list[str] = []
    for path in paths:
        if path is None:
            of_row.append(len(sizes))
            sizes.append(NO_IMAGE)
            found.append("")
            continue
        name = _hash(path)
        if name not in numbers:
            place, size = _place(path, name)
            if place not in numbers:
                numbers[place] = len(sizes)
                sizes.append(size)
                found.append(path)
            numbers[name] = numbers[place]
        of_row.append(numbers[name])
    return ImageFiles(
        of_row=np.array(of_row, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        checksums=lambda wanted: np.array([_checksum(found[n]) for n in wanted], dtype=np.int64),
    )


def column_images(column: Any, nested: Sequence[str], folder: str) -> ImageFiles:
    """The images of an Arrow column: bytes, paths, or structs with ``bytes`` and ``path``.

    Args:
        column: a ``datasets.Dataset`` in the format ``arrow``, of one column.
        nested: the fields inside it that lead to the image; empty where the column is the image.
        folder: what its paths are relative to.
    """
    sizes = np.full(len(column), NO_IMAGE, dtype=np.int64)
    paths: dict[int, str] = {}
    for begin, images, names in image_batches(column, nested):
        for i, (image, name) in enumerate(zip(images, names, strict=True)):
            if image.is_valid:
                sizes[begin + i] = len(image.as_buffer())
            elif name.is_valid and name.as_py():
                paths[begin + i] = files.join(folder, name.as_py())
    by_path = named_files(paths.values())
    rows = np.fromiter(paths, dtype=np.int64, count=len(paths))
    sizes[rows] = by_path.sizes[by_path.of_row]

    def checksums(wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        found = np.zeros(len(column), dtype=np.int64)
        asked = np.zeros(len(column), dtype=bool)
        asked[wanted] = True
        for begin, images, _ in image_batches(column, nested):
            for i in np.flatnonzero(asked[begin : begin + len(images)]):
                if images[i].is_valid:
                    found[begin + i] = checksum_of(images[i].as_buffer())
        of_paths = asked[rows]
        if of_paths.any():
            found[rows[of_paths]] = [_checksum(paths[row]) for row in rows[of_paths]]
        return found[wanted]

    return ImageFiles(of_row=np.arange(len(column)), sizes=sizes, checksums=checksums)


def part_of(whole: ImageFiles, rows: NDArray[np.int64]) -> ImageFiles:
    """The image files of some rows."""
    used, of_row = np.unique(whole.of_row[rows], return_inverse=True)
    return ImageFiles(
        of_row=of_row,
        sizes=whole.sizes[used],
        checksums=lambda numbers: whole.checksums(used[numbers]),
    )


def _number_rows(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N, K) → (N,) numbers in order of first appearance, the same for equal rows."""
    order = np.lexsort(keys.T[::-1])
    ordered = keys[order]
    begins = np.ones(len(keys), dtype=bool)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    rank = np.empty(int(begins.sum()), dtype=np.int64)
    rank[np.argsort(order[begins])] = np.arange(len(rank))
    numbers = np.empty(len(keys), dtype=np.int64)
    numbers[order] = rank[np.cumsum(begins) - 1]
    return numbers


def _place(path: str, name: int) -> tuple[object, int]:
    """Identity of a file, and its size."""
    if not files.is_url(path):
        try:
            info = os.stat(path)
        except (OSError, ValueError):
            return name, name
        if stat_module.S_ISREG(info.st_mode):
            place = (info.st_dev, info.st_ino) if info.st_ino else os.path.realpath(path)
            return place, info.st_size
    return name, name


def _hash(name: str) -> int:
    """A number below ``NO_IMAGE``."""
    digest = hashlib.blake2b(os.path.normpath(name).encode("utf-8", "replace"), digest_size=8)
    return -2 - (int.from_bytes(digest.digest(), "little") >> 2)


def _checksum(path: str) -> int:
    """``Checksum`` of a local file; -1 where it cannot be read."""
    checksum = Checksum()
    try:
        with open(path, "rb") as file:
            while part := file.read(_CHUNK):
                checksum.add(part)
    except OSError:
        return -1
    return checksum.value


def image_batches(column: Any, nested: Sequence[str]) -> Iterable[tuple[int, Any, Any]]:
    """(first row, images' bytes, images' paths) of a few rows at a time."""
    import pyarrow as pa
    import pyarrow.compute as compute

    begin = 0
    for table in column.iter(batch_size=1000):
        values = table.column(0).combine_chunks()
        for name in nested:
            values = compute.struct_field(values, name)
        none = pa.nulls(len(values))
        images, names = none, none
        if pa.types.is_struct(values.type):
            fields = [field.name for field in values.type]
            images = compute.struct_field(values, "bytes") if "bytes" in fields else none
            names = compute.struct_field(values, "path") if "path" in fields else none
        elif pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
            images = values
        elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            names = values
        yield begin, images, names
        begin += len(values)

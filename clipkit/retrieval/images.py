"""Rows of stores that show one image → one hit.

The column ``image_hash`` of a store's table says which image file a row is of. Stores from before
that column tell their images by the file's path and the offset in a tar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from clipkit.data.reader import IMAGE_EXTENSIONS

if TYPE_CHECKING:
    from clipkit.retrieval.store import EmbeddingStore
    from clipkit.types import Pair

HASH = "image_hash"
_BY_PLACE = ["path", "offset"]
_IMAGE_ENDINGS = tuple(f".{name}" for name in IMAGE_EXTENSIONS)
_SPREAD = np.int64(-7046029254386353131)  # odd: different offsets have different products


@dataclass(frozen=True, slots=True)
class Told:
    """Facts of a raw sample besides what is embedded.

    Attributes:
        image_hash: of the image file's bytes; None without an image.
        others: how many further captions it has.
    """

    image_hash: int | None
    others: int


def tell(pair: Pair) -> Told:
    """Tells the image and the captions of a raw sample, for ``Batch.told``."""
    return Told(None if pair.image is None else hash64(pair.image), len(pair.others))


def hash64(content: bytes) -> int:
    """A signed number of 64 bits, from SHA-256."""
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)


def columns_of_images(schema: pa.Schema) -> list[str]:
    """The columns by which a store's table tells images apart."""
    return [HASH] if HASH in schema.names else _BY_PLACE


def images_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Numbers rows of a store's table by their images.

    Returns:
        (n,) int64, the same number for the same image; and (n,) bool, False for a row without an
        image, or whose image is not known.
    """
    if HASH in table.column_names:
        column = table[HASH]
        return column.fill_null(0).to_numpy(), column.is_valid().to_numpy()
    paths = table["path"].combine_chunks().dictionary_encode()
    if not len(table):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=bool)
    names = paths.dictionary.to_pylist()
    of_path = np.array([hash64(name.encode()) for name in names], dtype=np.int64)
    # A Parquet file holds many images, and nothing says where.
    is_image = np.array([name.lower().endswith(_IMAGE_ENDINGS) for name in names], dtype=bool)
    place = paths.indices.to_numpy()
    offset = table["offset"].fill_null(-1).to_numpy()
    with np.errstate(over="ignore"):
        return of_path[place] + _SPREAD * offset, is_image[place] | (offset >= 0)


def count_images(numbers: np.ndarray, known: np.ndarray) -> tuple[int, int]:
    """Counts the images of rows.

    Args:
        numbers: (N,), see ``images_of``.
        known: (N,), see ``images_of``.

    Returns:
        How many different images there are, and how many rows the image with the most has.
    """
    counts = np.unique(numbers[known], return_counts=True)[1]
    return len(counts), max(int(counts.max(initial=0)), min(1, len(numbers)))


class ImageRows:
    """The images of some stores, whose rows are counted through all of them.

    Args:
        stores: one or more.

    Attributes:
        most: no image has more rows than this.
    """

    def __init__(self, stores: Sequence[EmbeddingStore]) -> None:
        self._stores = stores
        self._starts = np.cumsum([0, *map(len, stores)])
        self.most = sum(store.most_rows_an_image for store in stores)

    def firsts(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → the places of those whose image no earlier one of them has, ascending."""
        if self.most == 1:
            return np.arange(len(rows))
        return np.sort(np.unique(self._numbers(rows), return_index=True)[1])

    def same(self, rows: np.ndarray, row: int) -> np.ndarray:
        """(n,) rows → (n,) bool, which of them have the image of a row."""
        if self.most == 1:
            return np.asarray(rows == row)
        numbers = self._numbers(np.append(rows, row))
        return np.asarray(numbers[:-1] == numbers[-1])

    def first_rows(self, mask: np.ndarray | None) -> np.ndarray | None:
        """(N,) bool, which rows are the first of their image among those of a mask.

        Args:
            mask: (N,) bool; none: all rows.
        """
        if self.most == 1:
            return mask
        rows = np.arange(self._starts[-1]) if mask is None else np.flatnonzero(mask)
        found = np.zeros(self._starts[-1], dtype=bool)
        found[rows[self.firsts(rows)]] = True
        return found

    def _numbers(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n,) int64, the same number for the same image. A row without an image gets
        one that no image has, but by a chance of one in 2**64."""
        out = np.empty(len(rows), dtype=np.int64)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for i, store in enumerate(self._stores):
            here = np.flatnonzero(which == i)
            if len(here):
                numbers, known = store.images_of(rows[here] - self._starts[i])
                out[here] = np.where(known, numbers, ~rows[here])
        return out

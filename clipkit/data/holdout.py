"""One source → a part to train on and a part held back, where no split was made beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from clipkit.data.mixture import MixtureReader
from clipkit.data.reader import Reader
from clipkit.data.rng import Purpose, permutation
from clipkit.errors import DataError
from clipkit.types import Pair


class PartReader:
    """Some rows of another reader, in its order; see :class:`clipkit.data.reader.Reader`.

    Args:
        whole: the reader.
        rows: (M,) rows of it, ascending.
    """

    def __init__(self, whole: Reader, rows: np.ndarray) -> None:
        self.whole, self.rows = whole, rows
        self.source = whole.source
        ends = np.cumsum(whole.shard_sizes)
        shard = np.searchsorted(ends, rows, side="right")
        self.shard_sizes: list[int] = np.bincount(shard, minlength=len(ends)).tolist()
        self.dropped, self.damage, self.lost = whole.dropped, whole.damage, whole.lost
        self.access = whole.access
        self.understood = whole.understood
        digest = hashlib.sha256(rows.tobytes()).hexdigest()
        self.fingerprint = hashlib.sha256(f"{whole.fingerprint} {digest}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Pair:
        return self.whole[int(self.rows[row])]

    def locate(self, row: int) -> str:
        return self.whole.locate(int(self.rows[row]))

    def place(self, row: int) -> tuple[str, int | None]:
        return self.whole.place(int(self.rows[row]))

    def captions(self) -> Iterator[str]:
        return self._ours(self.whole.captions())

    def image_names(self) -> Iterator[str] | None:
        names = self.whole.image_names()
        return None if names is None else self._ours(names)

    def _ours(self, values: Iterator[str]) -> Iterator[str]:
        ours = np.zeros(len(self.whole), dtype=bool)
        ours[self.rows] = True
        for keep, value in zip(ours, values, strict=True):
            if keep:
                yield value


def hold_back(reader: Reader, share: float) -> tuple[Reader, Reader]:
    """Splits a source at random, always in the same way.

    The choice depends on the samples alone, not on the run's seed, so that runs with several
    seeds are judged on the same samples. Images are what is chosen: all captions of one stay
    on one side.

    Args:
        reader: the whole.
        share: of the samples to hold back, above 0 and below 1; at least one is.

    Returns:
        What is left to train on, and what is held back.

    Raises:
        DataError: all rows are of one image.
    """
    if isinstance(reader, MixtureReader):
        pairs = [hold_back(part, share) for part in reader.parts]
        return reader.like([kept for kept, _ in pairs]), reader.like([back for _, back in pairs])
    images = _numbered_images(reader)
    count = int(images.max()) + 1
    if count < 2:
        raise DataError(
            f"{reader.source.path}: one image alone cannot be split by data.holdout; set it to 0"
        )
    back = min(count - 1, max(1, round(share * count)))
    held = np.zeros(count, dtype=bool)
    held[permutation(0, Purpose.HOLDOUT, size=count)[:back]] = True
    of_row = held[images]
    return PartReader(reader, np.flatnonzero(~of_row)), PartReader(reader, np.flatnonzero(of_row))


def _numbered_images(reader: Reader) -> np.ndarray:
    """(N,) the number of each row's image, in order of first appearance."""
    names = reader.image_names()
    if names is None:
        return np.arange(len(reader))
    numbers: dict[bytes, int] = {}
    digests = (hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=16) for name in names)
    return np.array([numbers.setdefault(d.digest(), len(numbers)) for d in digests])

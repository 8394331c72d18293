"""One source → a part to train on and a part held back, where no split was made beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from clipkit.data.reader import Reader
from clipkit.data.rng import Purpose, permutation
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
        self.dropped, self.damage = whole.dropped, whole.damage
        digest = hashlib.sha256(rows.tobytes()).hexdigest()
        self.fingerprint = hashlib.sha256(f"{whole.fingerprint} {digest}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Pair:
        return self.whole[int(self.rows[row])]

    def locate(self, row: int) -> str:
        return self.whole.locate(int(self.rows[row]))

    def captions(self) -> Iterator[str]:
        ours = np.zeros(len(self.whole), dtype=bool)
        ours[self.rows] = True
        for keep, caption in zip(ours, self.whole.captions(), strict=True):
            if keep:
                yield caption


def hold_back(reader: Reader, share: float) -> tuple[Reader, Reader]:
    """Splits a source at random, always in the same way.

    The choice depends on the number of samples alone, not on the run's seed, so that runs
    with several seeds are judged on the same samples.

    Args:
        reader: the whole.
        share: of the samples to hold back, above 0 and below 1; at least one is.

    Returns:
        What is left to train on, and what is held back.
    """
    count = len(reader)
    back = min(count - 1, max(1, round(share * count)))
    order = permutation(0, Purpose.HOLDOUT, size=count)
    return PartReader(reader, np.sort(order[back:])), PartReader(reader, np.sort(order[:back]))

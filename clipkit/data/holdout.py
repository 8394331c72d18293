"""One source → a part to train on and a part held back, where no split was made beforehand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from clipkit.data.image_ids import ImageFiles, number_images, part_of
from clipkit.data.mixture import MixtureReader
from clipkit.data.reader import Reader, first_of
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

    def texts(self) -> Iterator[list[str]]:
        return self._ours(self.whole.texts())

    def captions(self) -> Iterator[str]:
        return first_of(self.texts())

    def image_files(self) -> ImageFiles | None:
        whole = self.whole.image_files()
        return None if whole is None else part_of(whole, self.rows)

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def _ours(self, values: Iterator[list[str]]) -> Iterator[list[str]]:
        ours = np.zeros(len(self.whole), dtype=bool)
        ours[self.rows] = True
        for keep, value in zip(ours, values, strict=True):
            if keep:
                yield value


def hold_back(reader: Reader, share: float) -> tuple[Reader, Reader]:
    """Splits a source at random, always in the same way.

    The choice depends on the samples alone, not on the run's seed, so that runs with several
    seeds are judged on the same samples. Images are what is chosen: all rows that show one, by
    the content of its file, are on one side, in whichever sources of a mixture they are. Each
    source of a mixture is split by the same share.

    Args:
        reader: the whole.
        share: of the images to hold back, above 0 and below 1; at least one is.

    Returns:
        The part to train on, and the part that is held back.

    Raises:
        DataError: all rows of a source show one image, or which do cannot be known.
    """
    images = reader.image_ids()
    if images is None:
        raise DataError(
            f"{reader.source.path}: data.holdout keeps the rows of one image together, and which "
            "these are, only an index of the shards tells. Set count of the source to index, "
            "which reads all shards once, or name a split under data.evaluate and set "
            "data.holdout to 0."
        )
    parts = reader.parts if isinstance(reader, MixtureReader) else [reader]
    ends = np.cumsum([len(part) for part in parts])
    side = np.full(int(images.max()) + 1, _OPEN, dtype=np.int8)  # of each image
    trained: list[Reader] = []
    held: list[Reader] = []
    for part, ours in zip(parts, np.split(images, ends[:-1]), strict=True):
        _choose(side, ours, share, part.source.path)
        of_row = side[ours]
        trained.append(PartReader(part, np.flatnonzero(of_row == _TRAINED)))
        held.append(PartReader(part, np.flatnonzero(of_row == _HELD)))
    if isinstance(reader, MixtureReader):
        return reader.like(trained), reader.like(held)
    return trained[0], held[0]


_OPEN, _TRAINED, _HELD = 0, 1, 2


def _choose(side: NDArray[np.int8], images: NDArray[np.int64], share: float, path: str) -> None:
    """Chooses a side for those images of one source that no source before it has.

    Args:
        side: (M,) of every image; filled in.
        images: (N,) the number of each row's image.
        share: of the source's images to hold back.
        path: the source.

    Raises:
        DataError: a side has none.
    """
    first = np.sort(np.unique(images, return_index=True)[1])
    ours = images[first]  # in order of first appearance
    if len(ours) < 2:
        raise DataError(f"{path}: one image alone cannot be split by data.holdout; set it to 0.")
    back = min(len(ours) - 1, max(1, round(share * len(ours))))
    drawn = ours[permutation(0, Purpose.HOLDOUT, size=len(ours))]
    free = drawn[side[drawn] == _OPEN]
    more = max(0, back - int((side[ours] == _HELD).sum()))
    side[free] = _TRAINED
    side[free[:more]] = _HELD
    if len(np.unique(side[ours])) < 2:
        raise DataError(
            f"{path}: its images are in the sources before it too, and data.holdout has put all "
            "of them on one side; leave this source out of the mixture, or set data.holdout to 0."
        )

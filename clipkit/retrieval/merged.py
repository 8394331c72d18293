"""Several indexes → one that finds what an index of all their rows would find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.retrieval.approximate import ApproximateIndex
from clipkit.retrieval.index import Index


class MergedIndex:
    """Indexes searched one after the other, their finds merged by score.

    Row numbers count through all of them. Scores are those of full comparison whatever kind an
    index is of, so that they can be compared; of rows with one score the lower number comes first.

    Args:
        indexes: one or more.

    Raises:
        ClipkitError: D differs.

    Attributes:
        exact: the exact index of each.
        starts: (n + 1,) the number of the first row of each, and of all rows.
    """

    def __init__(self, indexes: Sequence[Index | ApproximateIndex]) -> None:
        self._indexes = indexes
        self.exact = [
            index.exact if isinstance(index, ApproximateIndex) else index for index in indexes
        ]
        self.starts = np.cumsum([0, *map(len, indexes)])
        for index in self.exact:
            if index.dim != self.exact[0].dim:
                raise ClipkitError(
                    f"{index.name}: vectors of {index.dim} numbers, where {self.exact[0].name} "
                    f"has {self.exact[0].dim}; search each alone"
                )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows → which index each is in, and its row there."""
        which = np.searchsorted(self.starts, rows, side="right") - 1
        return which, rows - self.starts[which]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, D) float32, read from where they are."""
        out = np.empty((len(rows), self.exact[0].dim), dtype=np.float32)
        which, within = self.locate(rows)
        for i, index in enumerate(self.exact):
            out[which == i] = index.vectors(within[which == i])
        return out

    def search(
        self, queries: np.ndarray, k: int, *, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``Index.search``; ``queries`` are (Q, D)."""
        all_scores, all_rows = [], []
        for index, begin, end in zip(self._indexes, self.starts, self.starts[1:], strict=False):
            scores, rows = index.search(queries, k, mask=None if mask is None else mask[begin:end])
            all_scores.append(scores)
            all_rows.append(rows + begin)
        scores, rows = np.concatenate(all_scores, axis=1), np.concatenate(all_rows, axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)

"""Stores → which of their rows are nearly the same as an earlier one; exactly.

Rows are taken in blocks. Each is compared with all that stay before it by the scan of exact search
(see ``scan.py``), and in full where the bound of its error leaves it open.
"""

from __future__ import annotations

import numpy as np

from clipkit.display.console import progress_bar
from clipkit.retrieval.index import Index
from clipkit.retrieval.merged import MergedIndex
from clipkit.retrieval.scan import Approximation

_ROWS = 1024  # that are compared with all before them at a time


def find_duplicates(
    index: MergedIndex,
    least: np.float32,
    *,
    mask: np.ndarray | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Of rows that are near to each other the first stays; a later one goes where one that stays
    has a score of at least ``least`` with it.

    Args:
        index: the rows, N of them.
        least: the score.
        mask: (N,) bool, which rows are looked at; none: all.
        progress: whether to show a progress bar.

    Returns:
        first (N,) int64, of each row that goes the first that it is near to, -1 of all others; and
        scores (N,) float32 of these pairs.

    Raises:
        CheckpointError: the vectors are not finite.
    """
    found = _Found(index, least, mask)
    blocks = -(-len(index) // _ROWS)
    # A block is compared with those before it: the later, the more.
    with progress_bar("compare", blocks * (blocks + 1) // 2, "block", show=progress) as bar:
        for number in range(blocks):
            found.add(number * _ROWS)
            bar.update(number + 1)
    return found.first, found.scores


class _Found:
    """What is decided of the rows so far. In a pair the later row comes first."""

    def __init__(self, index: MergedIndex, least: np.float32, mask: np.ndarray | None) -> None:
        self._index, self._least = index, least
        self._stays = np.ones(len(index), dtype=bool) if mask is None else mask.copy()
        self.first = np.full(len(index), -1, dtype=np.int64)
        self.scores = np.zeros(len(index), dtype=np.float32)

    def add(self, begin: int) -> None:
        """Decides the block of rows from ``begin`` on."""
        self._rows = begin + np.flatnonzero(self._stays[begin : begin + _ROWS])
        if not len(self._rows):
            return
        self._queries = self._index.vectors(self._rows)
        inside = []  # pairs in the block wait: whether the earlier row stays is not known yet
        for part, start in zip(self._index.exact, self._index.starts.tolist(), strict=False):
            end = int(self._rows[-1]) - start
            if end <= 0:
                break
            for near, block in part.scan(self._queries, self._stays[start:], end):
                of_query, place = _candidates(block, self._least)
                earlier = near[place] + start
                before = (earlier < begin) & (self.first[self._rows[of_query]] < 0)
                self._join_lowest(part, start, of_query[before], earlier[before])
                here = (earlier >= begin) & (earlier < self._rows[of_query])
                inside.append((part, start, of_query[here], earlier[here]))
        for part, start, of_query, earlier in inside:
            for row in np.unique(earlier):
                if self.first[row] < 0:
                    now = of_query[earlier == row]
                    now = now[self.first[self._rows[now]] < 0]
                    self._join(part, start, now, np.full(len(now), row))
        self._stays[self._rows[self.first[self._rows] >= 0]] = False

    def _join_lowest(
        self, part: Index, start: int, of_query: np.ndarray, earlier: np.ndarray
    ) -> None:
        """Each query goes with the lowest row that is near enough. No more is compared than that
        takes: of a thousand equal rows, one."""
        while len(of_query):
            _, begins, counts = np.unique(of_query, return_index=True, return_counts=True)
            rank = np.arange(len(of_query)) - np.repeat(begins, counts)
            now = rank < max(part.pairs // len(begins), 1)
            self._join(part, start, of_query[now], earlier[now])
            left = ~now & (self.first[self._rows[of_query]] < 0)
            of_query, earlier = of_query[left], earlier[left]

    def _join(self, part: Index, start: int, of_query: np.ndarray, earlier: np.ndarray) -> None:
        """Compares pairs, sorted by query and row, in full."""
        scores = part.score(self._queries, of_query, earlier - start)
        good = np.flatnonzero(scores >= self._least)
        joined, place = np.unique(of_query[good], return_index=True)
        self.first[self._rows[joined]] = earlier[good[place]]
        self.scores[self._rows[joined]] = scores[good[place]]


def _candidates(block: Approximation, least: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query, row of the block) whose score may reach ``least``, sorted so."""
    of_query, place = block.at_least(float(least) - block.largest_error())
    highest = block.scores(of_query, place) + block.error(of_query, place)
    kept = highest >= float(least)
    return of_query[kept], place[kept]

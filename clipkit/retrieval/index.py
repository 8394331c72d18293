"""(Q, D) queries → their nearest rows of a store, exactly.

A scan gives every row an approximate score and a bound of its error (see ``scan.py``); rows that
the bound cannot rule out are compared in full. Rows are read in blocks, so that memory depends on
the block and not on the store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from clipkit.errors import CheckpointError, ClipkitError
from clipkit.retrieval.codes import open_codes
from clipkit.retrieval.scan import Approximation, CodeScan, FloatScan
from clipkit.retrieval.store import EmbeddingStore

_BLOCK_SCORES = 2**20  # 4 MiB: what is multiplied is compared while it is in the cache
_MOST_ROWS = 65_536  # a block
_MOST_BYTES = 32 * 2**20  # of a block, which may be converted to float32
_QUERIES = 256  # at a time
_PAIRS = 2**21  # numbers that are compared in float64 at a time: 16 MiB
_FEW = 4  # rows a part that are copied one by one sooner than they are sorted
_CACHED = 2**15  # products that stay in a core's cache while they are summed


class Index:
    """Exact search by inner product, which for unit vectors is the cosine.

    A score is the inner product of the float32 numbers, summed in float64 in one order and rounded
    to float32: equal vectors have equal scores, however many are searched at once.

    Args:
        parts: arrays of (rows, D), float32 or float16, that lie end to end; row numbers count
            through them.
        name: what to call them in a message.
        codes: 8-bit codes of the same rows, which are read in their place.

    Raises:
        ClipkitError: there is nothing to search in, or D differs.
    """

    def __init__(
        self, parts: Sequence[np.ndarray], *, name: str = "index", codes: CodeScan | None = None
    ) -> None:
        self.name = name
        # Plain arrays: indexing a memmap makes another, each time.
        self.parts = [np.asarray(part) for part in parts if len(part)]
        self._starts = np.cumsum([0, *map(len, self.parts)])
        dims = {part.shape[1] for part in self.parts}
        if len(dims) != 1:
            raise ClipkitError(
                f"{name}: arrays of {sorted(dims)} columns; all must have as many"
                if dims
                else f"{name}: there is nothing to search in; it has no rows"
            )
        self.dim: int = dims.pop()
        self._scan = FloatScan(self.parts) if codes is None else codes

    @classmethod
    def open(cls, store: EmbeddingStore, kind: Literal["auto", "image", "text"] = "auto") -> Index:
        """An index over a store, and over its codes if ``clipkit index`` has made them.

        Args:
            store: where the vectors are.
            kind: which of its vectors; auto: images, or texts where there are no images.

        Raises:
            CheckpointError: the store has no vectors of this kind; or its codes are damaged, or
                of what the store was before.
        """
        if kind == "auto":
            kind = "image" if store.image_embeds else "text"
        parts = store.image_embeds if kind == "image" else store.text_embeds
        if not parts:
            raise CheckpointError(f"{store.folder}: no {kind} embeddings are in this store")
        return cls(parts, name=str(store.folder), codes=open_codes(store, kind))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, D) float32, read from where they are."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        if len(rows) <= _FEW * len(self.parts):
            numbers = np.searchsorted(self._starts, rows, side="right") - 1
            places = rows - self._starts[numbers]
            for i, (number, row) in enumerate(zip(numbers.tolist(), places.tolist(), strict=True)):
                out[i] = self.parts[number][row]
            return out
        order = np.argsort(rows, kind="stable")
        begins = np.searchsorted(rows[order], self._starts)
        for number in np.flatnonzero(np.diff(begins)):  # parts that have some of them
            here = order[begins[number] : begins[number + 1]]
            out[here] = self.parts[number][rows[here] - self._starts[number]]
        return out

    def search(
        self, query_embeds: np.ndarray, k: int = 10, *, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k rows with the highest scores for each query, the best first.

        Of rows with one score the lower number comes first.

        Args:
            query_embeds: (Q, D), or (D,) for one query.
            k: rows wanted; fewer come back where there are fewer.
            mask: (N,) bool, which rows may be found; none: all.

        Returns:
            scores (Q, k) float32 and rows (Q, k) int64; (k,) each for one query.

        Raises:
            ClipkitError: the queries have another D or are not finite, or k is less than 1.
            CheckpointError: the vectors are not finite.
        """
        queries = check_queries(query_embeds, self.dim)
        if k < 1:
            raise ClipkitError(f"k: {k}; ask for 1 or more")
        k = min(k, len(self) if mask is None else int(mask.sum()))
        found = [
            self._search_some(queries[q : q + _QUERIES], k, mask)
            for q in range(0, max(len(queries), 1), _QUERIES)
        ]
        scores = np.concatenate([part for part, _ in found])
        rows = np.concatenate([part for _, part in found])
        return (scores[0], rows[0]) if np.ndim(query_embeds) == 1 else (scores, rows)

    def _search_some(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        best = _Best(len(queries), k)
        if not (len(queries) and k):
            return best.scores, best.rows
        for rows, block in self.scan(queries, mask):
            of_query, place = _not_ruled_out(block, best)
            for some in in_parts(len(place), self.pairs):
                found = rows[place[some]]
                best.add(of_query[some], found, self.score(queries, of_query[some], found))
        return best.scores, best.rows

    def scan(
        self, queries: np.ndarray, mask: np.ndarray | None = None, end: int | None = None
    ) -> Iterator[tuple[np.ndarray, Approximation]]:
        """Approximate scores of (Q, D) float32 queries, block by block: rows ascending, scores.

        Args:
            queries: one or more.
            mask: which rows to look at; none: all.
            end: look at rows below this one only.

        Raises:
            CheckpointError: the vectors are not finite.
        """
        self._scan.prepare(queries)
        end = len(self) if end is None else min(end, len(self))
        most = _MOST_BYTES // self._scan.row_bytes
        size = max(min(_BLOCK_SCORES // len(queries), _MOST_ROWS, most), 1)
        stop = 0
        while stop < end:
            begin, stop = stop, self._scan.block_end(stop, min(stop + size, end))
            rows = np.arange(begin, stop)
            within = None
            if mask is not None and not mask[begin:stop].all():
                within = np.flatnonzero(mask[begin:stop])
                if not len(within):
                    continue
            block = self._scan.block(begin, stop, within)
            if not np.isfinite(block.residuals).all():
                raise CheckpointError(
                    f"{self.name}: its vectors are not finite; embed again, and if that does not "
                    "help, look at the model"
                )
            yield (rows if within is None else rows[within]), block

    @property
    def pairs(self) -> int:
        """How many pairs ``score`` may take at a time, to stay within memory."""
        return max(_PAIRS // self.dim, 1)

    def score(self, queries: np.ndarray, of_query: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(P,) scores of pairs of a query and a row; see the class for what a score is."""
        scores, wide = np.empty(len(rows)), np.asarray(queries, dtype=np.float64)
        size = max(_CACHED // self.dim, 1)
        buffer = np.empty((min(size, len(rows)), self.dim))
        # Products of float32 are exact in float64; NumPy sums each line in one and the same order.
        for some in in_parts(len(rows), size):
            vectors = self.vectors(rows[some])
            products = buffer[: len(vectors)]
            # "clip", as "raise" would write to a buffer first.
            np.take(wide, of_query[some], axis=0, out=products, mode="clip")
            products *= vectors
            products.sum(axis=1, out=scores[some])
        if not np.isfinite(scores).all():
            raise CheckpointError(f"{self.name}: its vectors are not finite; embed again")
        return scores.astype(np.float32)


class _Best:
    """The best k of each query so far.

    Attributes:
        scores: (Q, ≤ k) float32, the best first; -inf where there are fewer.
        rows: (Q, ≤ k) int64.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self.scores = np.full((queries, k), -np.inf, dtype=np.float32)
        self.rows = np.full((queries, k), -1, dtype=np.int64)

    @property
    def last(self) -> np.ndarray:
        """(Q,) the scores of the k-th; -inf where there is none."""
        return self.scores[:, -1].astype(np.float64)

    def add(self, of_query: np.ndarray, rows: np.ndarray, scores: np.ndarray) -> None:
        """Merges P pairs of queries and rows; pairs may not be there before."""
        kept = np.flatnonzero(scores >= self.scores[of_query, -1])
        of_query, rows, scores = of_query[kept], rows[kept], scores[kept]
        for query in np.unique(of_query):
            here = of_query == query
            all_scores = np.concatenate([self.scores[query], scores[here]])
            all_rows = np.concatenate([self.rows[query], rows[here]])
            # The places of rows that are not there yet come last, at -inf.
            order = np.lexsort((all_rows, -all_scores))[: self._k]
            self.scores[query], self.rows[query] = all_scores[order], all_rows[order]


def _not_ruled_out(block: Approximation, best: _Best) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query, row of the block) that may enter the best k: bound and k-th score overlap."""
    k = best.scores.shape[1]
    last = best.last
    worst = block.largest_error()
    if np.isinf(last).any() and len(block) > k:
        # k rows of this block have at least these scores: what is below is out.
        last = np.maximum(last, block.kth(k) - worst)
    # The comparison rounds once, which ``worst`` has room for.
    of_query, place = block.at_least(last - worst)
    if len(place):
        highest = block.scores(of_query, place) + block.error(of_query, place)
        kept = highest >= last[of_query]
        of_query, place = of_query[kept], place[kept]
    return of_query, place


def check_queries(query_embeds: np.ndarray, dim: int) -> np.ndarray:
    """(Q, D) float32 queries.

    Raises:
        ClipkitError: they have another D or are not finite.
    """
    queries = np.atleast_2d(np.ascontiguousarray(query_embeds, dtype=np.float32))
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise ClipkitError(
            f"query_embeds: shape {np.shape(query_embeds)}, where the index has vectors of "
            f"{dim}; embed the queries with the model that made it"
        )
    if not np.isfinite(queries).all():
        raise ClipkitError("query_embeds: not finite; is the model that made them?")
    return queries


def in_parts(length: int, size: int) -> Iterator[slice]:
    """0 to ``length`` in slices of ``size``, the last of what is left."""
    for begin in range(0, length, size):
        yield slice(begin, begin + size)

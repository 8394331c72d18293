"""(Q, D) queries → their nearest rows of a store, exactly.

Rows are read from disk in blocks, multiplied, and merged with the best so far, so that memory
depends on the block and not on the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from clipkit.errors import CheckpointError, ClipkitError
from clipkit.retrieval.store import EmbeddingStore

_BLOCK = 16_384  # rows at a time: 32 MiB at D = 512
_QUERIES = 256  # at a time: 16 MiB of scores a block


class Index:
    """Exact search by inner product, which for unit vectors is the cosine.

    Args:
        parts: arrays of (rows, D) that lie end to end; row numbers count through them.
        name: what to call them in a message.

    Raises:
        ClipkitError: there is nothing to search in, or D differs.
    """

    def __init__(self, parts: Sequence[np.ndarray], *, name: str = "index") -> None:
        self.name = name
        self.parts = [part for part in parts if len(part)]
        dims = {part.shape[1] for part in self.parts}
        if len(dims) != 1:
            raise ClipkitError(
                f"{name}: arrays of {sorted(dims)} columns; all must have as many"
                if dims
                else f"{name}: there is nothing to search in; it has no rows"
            )
        self.dim: int = dims.pop()

    @classmethod
    def open(cls, store: EmbeddingStore, kind: Literal["auto", "image", "text"] = "auto") -> Index:
        """An index over a store.

        Args:
            store: where the vectors are.
            kind: which of its vectors; auto: images, or texts where there are no images.

        Raises:
            CheckpointError: the store has no vectors of this kind.
        """
        if kind == "auto":
            kind = "image" if store.image_embeds else "text"
        parts = store.image_embeds if kind == "image" else store.text_embeds
        if not parts:
            raise CheckpointError(f"{store.folder}: no {kind} embeddings are in this store")
        return cls(parts, name=str(store.folder))

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n, D) float32, read from where they are."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        start = 0
        for part in self.parts:
            here = np.flatnonzero((rows >= start) & (rows < start + len(part)))
            out[here] = part[rows[here] - start]
            start += len(part)
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
        queries = np.atleast_2d(np.ascontiguousarray(query_embeds, dtype=np.float32))
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ClipkitError(
                f"query_embeds: shape {np.shape(query_embeds)}, where the index has vectors of "
                f"{self.dim}; embed the queries with the model that made it"
            )
        if not np.isfinite(queries).all():
            raise ClipkitError("query_embeds: not finite; is the model that made them?")
        if k < 1:
            raise ClipkitError(f"k: {k}; ask for 1 or more")
        k = min(k, len(self) if mask is None else int(mask.sum()))
        found = [
            self._search_block(queries[q : q + _QUERIES], k, mask)
            for q in range(0, max(len(queries), 1), _QUERIES)
        ]
        scores = np.concatenate([part for part, _ in found])
        rows = np.concatenate([part for _, part in found])
        return (scores[0], rows[0]) if np.ndim(query_embeds) == 1 else (scores, rows)

    def _search_block(
        self, queries: np.ndarray, k: int, mask: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        best = np.zeros((len(queries), 0), dtype=np.float32)  # (Q, ≤ k), the best first
        best_rows = np.zeros((len(queries), 0), dtype=np.int64)
        start = 0
        for part in self.parts:
            for begin in range(0, len(part), _BLOCK):
                block = np.asarray(part[begin : begin + _BLOCK], dtype=np.float32)
                scores = queries @ block.T  # (Q, n)
                if not np.isfinite(scores).all():
                    raise CheckpointError(
                        f"{self.name}: its vectors are not finite; embed again, and if that "
                        "does not help, look at the model"
                    )
                if mask is not None:
                    scores[:, ~mask[start : start + len(block)]] = -np.inf
                scores, rows = _top(scores, k)
                # What was there before has lower row numbers, so a stable sort keeps it first.
                scores = np.concatenate([best, scores], axis=1)
                rows = np.concatenate([best_rows, rows + start], axis=1)
                order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
                best = np.take_along_axis(scores, order, axis=1)
                best_rows = np.take_along_axis(rows, order, axis=1)
                start += len(block)
        return best, best_rows


def _top(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, n) → the k highest of each row and their columns, best first, lower column first."""
    if 0 < 4 * k < scores.shape[1]:
        # Partitioning alone leaves open which of several equal scores gets in. All of them are
        # let in, and the stable sort chooses.
        kth = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]  # (Q, 1)
        width = int((scores >= kth).sum(axis=1).max()) if len(scores) else k
        candidates = np.argsort(scores < kth, axis=1, kind="stable")[:, :width]
    else:
        candidates = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    kept = np.take_along_axis(scores, candidates, axis=1)
    order = np.argsort(-kept, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(kept, order, axis=1), np.take_along_axis(candidates, order, axis=1)

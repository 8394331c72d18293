"""Queries against a block of rows, fast and not quite right, and by how much it may be wrong.

Search is exact because of what is here: a scan tells for every row and query an approximate score
and a bound of its error, and a row is compared in full precision unless the bound proves that it
is not among the best. Two scans, one over the vectors as they are and one over 8-bit codes of a
quarter of the bytes; reading is what a search of few queries waits for.

**The bound of the codes.** A row x is kept as x~ = c + s z: c a centre that all rows share, s a
number and z a vector of whole numbers from -127 to 127. A query q is rounded to q~ = t w in the
same way, without a centre. With the residuals r = |x - x~| and p = |q - q~|, and a = s |z|,

    q·x = q·c + q~·(s z) + (q - q~)·(s z) + q·(x - x~),

so that by Cauchy-Schwarz, twice,

    | q·x - (q·c + t s (w·z)) |  ≤  |q| r + p a.

w·z is a sum of whole numbers in 32 bits, so the product and its accumulation round nothing (D up to
133,000). r is taken in float64 from the stored c, s and z, and rounded up.

**The bound of the plain scan.** A float32 product of D terms, in any order, fused or not, is off by
at most g Σ|q_d x_d| ≤ g |q| |x|, g = D u / (1 - D u), u = 2⁻²⁴ (N. Higham, Accuracy and Stability
of Numerical Algorithms, 2nd edition, section 3.1). So r = g |x|, p = 0.

**What is left**, in both: scaling and adding in float32, and the rounding of the exact score to
float32, by which results are ordered. Each of these few steps is off by at most u times something
not above M = |q| (|c| + a + r + |x|); 2⁻¹⁹ M covers 32 of them. Numbers that underflow are off by
less than the smallest normal float32 a term, which is added, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

_TINY = float(np.finfo(np.float32).tiny)
_UNIT = 2.0**-24
_SLACK = 2.0**-19
_ROUND_UP = 1 + 1e-6  # of float64 → float32, and of a float64 norm
LEVELS = 127
_GROUP = 64  # rows whose highest score is looked at first


@dataclass(frozen=True, slots=True)
class Approximation:
    """Scores of a block: q·x = offset + scale × raw, give or take ``error``.

    Attributes:
        raw: (n, Q) float32.
        scale: (Q,) float64, above 0.
        offset: (Q,) float64.
        residuals: (n,) r of each row.
        lengths: (n,) a of each row; None where all are 0.
        query_norms: (Q,) |q|.
        query_residuals: (Q,) p.
        slack: (Q,) what rounding adds.
    """

    raw: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    residuals: np.ndarray
    lengths: np.ndarray | None
    query_norms: np.ndarray
    query_residuals: np.ndarray
    slack: np.ndarray

    def __len__(self) -> int:
        return len(self.raw)

    def scores(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(P,) approximate scores of pairs (query, row of the block)."""
        raw = self.raw[rows, queries].astype(np.float64)
        scores: np.ndarray = self.offset[queries] + self.scale[queries] * raw
        return scores

    def kth(self, k: int) -> np.ndarray:
        """(Q,) scores that k rows reach: the k-th highest, or little less."""
        raw = self._highest() if len(self) >= _GROUP * k else self.raw
        kth = np.partition(raw, len(raw) - k, axis=0)[len(raw) - k]
        scores: np.ndarray = self.offset + self.scale * kth.astype(np.float64)
        return scores

    def at_least(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (query, row) whose approximate score is (Q,) ``scores`` or more, sorted so; they
        are compared in float32.

        Few rows are so near, so that the highest of a group tells of most that none is.
        """
        least = ((scores - self.offset) / self.scale).astype(np.float32)
        highest = self._highest()
        groups, queries = np.nonzero(highest >= least)
        if not len(highest) or 8 * len(groups) > highest.size:
            found, places = np.nonzero((self.raw >= least).T)
            return found, places
        rows = groups[:, None] + len(highest) * np.arange(_GROUP)
        found, member = np.nonzero(self.raw[rows, queries[:, None]] >= least[queries, None])
        first = _GROUP * len(highest)  # of the rows in no group
        more_rows, more_queries = np.nonzero(self.raw[first:] >= least)
        of_query = np.concatenate([queries[found], more_queries])
        places = np.concatenate([rows[found, member], first + more_rows])
        order = np.lexsort((places, of_query))
        return of_query[order], places[order]

    def _highest(self) -> np.ndarray:
        """(G, Q): of every G-th row from g on, the highest."""
        count, queries = self.raw.shape
        groups = count // _GROUP
        # Row g of each of _GROUP parts, as a reduction over the first axis is the fast one. Not by
        # torch, whose threads would be in the way of those of NumPy's products.
        parts = self.raw[: groups * _GROUP].reshape(_GROUP, groups * queries)
        highest: np.ndarray = parts.max(axis=0).reshape(groups, queries)
        return highest

    def error(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(P,) bounds of pairs (query, row of the block)."""
        bound: np.ndarray = self.query_norms[queries] * self.residuals[rows] + self.slack[queries]
        if self.lengths is not None:
            bound += self.query_residuals[queries] * self.lengths[rows]
        return bound

    def largest_error(self) -> np.ndarray:
        """(Q,) a bound that holds for every row of the block."""
        bound: np.ndarray = self.query_norms * float(self.residuals.max()) + self.slack
        if self.lengths is not None:
            bound += self.query_residuals * float(self.lengths.max())
        return bound


class FloatScan:
    """The vectors as they are. Their lengths are taken when a block is first read.

    Args:
        parts: arrays of (rows, D) that lie end to end.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])
        self.row_bytes = 4 * parts[0].shape[1]
        rows = int(self._ends[-1])
        self._norms = np.full(rows, -1, dtype=np.float32)  # -1: not known yet
        dim = parts[0].shape[1]
        self._underflow = dim * _TINY
        self._relative = dim * _UNIT / (1 - dim * _UNIT)

    def block_end(self, begin: int, end: int) -> int:
        """Where a block from ``begin`` on ends best, ``end`` or before: rows of one part need not
        be copied."""
        part_end = int(self._ends[np.searchsorted(self._ends, begin, side="right")])
        return min(end, part_end) if 8 * (part_end - begin) >= end - begin else end

    def prepare(self, queries: np.ndarray) -> None:
        """Takes (Q, D) float32 queries for the blocks that follow."""
        self._queries = queries
        self._query_norms = np.linalg.norm(queries.astype(np.float64), axis=1)

    def block(self, begin: int, end: int, rows: np.ndarray | None) -> Approximation:
        """The approximate scores of rows ``begin`` to ``end``, or of ``rows`` of them alone."""
        block = read_rows(self._parts, begin, end)
        norms = self._norms[begin:end]
        if norms.min() < 0:
            squares = np.einsum("nd,nd->n", block, block, dtype=np.float64)
            norms[:] = np.sqrt(squares) * _ROUND_UP
        if rows is not None:
            block, norms = block[rows], norms[rows]
        return Approximation(
            raw=block @ self._queries.T,
            scale=np.ones(len(self._queries)),
            offset=np.zeros(len(self._queries)),
            residuals=self._relative * norms,
            lengths=None,
            query_norms=self._query_norms,
            query_residuals=np.zeros(len(self._queries)),
            slack=_SLACK * self._query_norms * float(norms.max()) * 3 + self._underflow,
        )


class CodeScan:
    """8-bit codes of the vectors; see :mod:`clipkit.retrieval.codes` for where they are kept.

    Args:
        codes: (N, D) int8, z.
        steps: (N,) float32, s.
        residuals: (N,) float32, r.
        lengths: (N,) float32, a.
        centre: (D,) float32, c.
    """

    def __init__(
        self,
        codes: np.ndarray,
        steps: np.ndarray,
        residuals: np.ndarray,
        lengths: np.ndarray,
        centre: np.ndarray,
    ) -> None:
        self._codes, self._steps = codes, steps
        self.row_bytes = codes.shape[1]
        self._residuals, self._lengths = residuals, lengths
        self._centre = centre.astype(np.float64)
        self._centre_norm = float(np.linalg.norm(self._centre))

    def block_end(self, begin: int, end: int) -> int:
        """Where a block from ``begin`` on ends best: the codes are one array."""
        return end

    def prepare(self, queries: np.ndarray) -> None:
        """Takes (Q, D) float32 queries for the blocks that follow."""
        exact = queries.astype(np.float64)
        codes, steps = quantise(exact)
        self._query_codes = torch.from_numpy(codes)
        self._scale = steps.astype(np.float64)
        self._offset = exact @ self._centre
        self._query_norms = np.linalg.norm(exact, axis=1) * _ROUND_UP
        rounded = codes * self._scale[:, None]
        self._query_residuals = np.linalg.norm(exact - rounded, axis=1) * _ROUND_UP

    def block(self, begin: int, end: int, rows: np.ndarray | None) -> Approximation:
        """The approximate scores of rows ``begin`` to ``end``, or of ``rows`` of them alone."""
        here = slice(begin, end)
        codes, steps = self._codes[here], self._steps[here]
        residuals, lengths = self._residuals[here], self._lengths[here]
        if rows is not None:
            codes, steps = codes[rows], steps[rows]
            residuals, lengths = residuals[rows], lengths[rows]
        size = self._centre_norm + 2 * float(lengths.max()) + 2 * float(residuals.max())
        product = whole_product(torch.from_numpy(codes), self._query_codes)
        return Approximation(
            raw=product.float().mul_(torch.from_numpy(steps)[:, None]).numpy(),
            scale=self._scale,
            offset=self._offset,
            residuals=residuals,
            lengths=lengths,
            query_norms=self._query_norms,
            query_residuals=self._query_residuals,
            slack=_SLACK * self._query_norms * (size + self._centre_norm) + _TINY,
        )


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) → whole numbers (n, D) int8 and steps (n,) float32, step × number near the vector."""
    steps = (np.abs(vectors).max(axis=1, initial=0) / LEVELS).astype(np.float32)
    # Zeros, and what a float32 step cannot express, become zeros; the residual says what is lost.
    steps[steps < _TINY] = 1
    codes = np.rint(vectors / steps[:, None]).clip(-LEVELS, LEVELS).astype(np.int8)
    return codes, steps


def residual_norms(
    vectors: np.ndarray, centre: np.ndarray, codes: np.ndarray, steps: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) |x - x~| and (n,) |s z|, both rounded up to float32."""
    kept = codes * steps.astype(np.float64)[:, None]
    missing = np.linalg.norm(vectors.astype(np.float64) - centre - kept, axis=1)
    lengths = np.linalg.norm(kept, axis=1)
    return (
        (missing * _ROUND_UP + _TINY).astype(np.float32),
        (lengths * _ROUND_UP + _TINY).astype(np.float32),
    )


def whole_product(left: Tensor, right: Tensor) -> Tensor:
    """(n, D) and (Q, D) int8 → (n, Q) int32, exact; fastest with the larger one on the left."""
    # torch 2.14 gets the products of single columns wrong.
    if left.shape[1] > 1 and _has_whole_product():
        return torch._int_mm(left, right.T)
    # Sums below 2²⁴ are exact in float32; longer vectors are summed in parts.
    width = 1024
    total = torch.zeros(len(left), len(right), dtype=torch.float64)
    with torch.autocast("cpu", enabled=False):  # which would round the products
        for begin in range(0, left.shape[1], width):
            columns = slice(begin, begin + width)
            total += left[:, columns].float() @ right[:, columns].float().T
    return total.int()


@cache
def _has_whole_product() -> bool:
    """Whether torch multiplies 8-bit numbers here, and rightly: without VNNI some kernels add in
    16 bits, which the largest numbers overflow."""
    if not getattr(torch.cpu, "_is_vnni_supported", lambda: True)():
        return False
    largest = torch.full((8, 256), LEVELS, dtype=torch.int8)
    signs = torch.where(torch.arange(256) % 3 == 0, -1, 1).to(torch.int8)
    try:
        for right in (largest, largest * signs, -largest):
            expected = largest.double() @ right.double().T
            if not torch.equal(torch._int_mm(largest, right.T).double(), expected):
                return False
    except (AttributeError, RuntimeError):
        return False
    return True


def read_rows(parts: Sequence[np.ndarray], begin: int, end: int) -> np.ndarray:
    """Rows ``begin`` to ``end`` of arrays that lie end to end, (n, D) float32."""
    found = []
    start = 0
    for part in parts:
        low, high = max(begin - start, 0), min(end - start, len(part))
        if low < high:
            found.append(part[low:high])
        start += len(part)
    block = found[0] if len(found) == 1 else np.concatenate(found)
    return np.asarray(block, dtype=np.float32)

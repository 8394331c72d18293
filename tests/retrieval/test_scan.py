"""The bounds of the scans on vectors made to break them, and the exactness that rests on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipkit.retrieval import index as index_module
from clipkit.retrieval import scan as scan_module
from clipkit.retrieval.index import Index
from clipkit.retrieval.scan import CodeScan, FloatScan, quantise, residual_norms, whole_product

DIMS = (1, 2, 3, 17, 192, 512, 1024)


def _vectors(kind: str, rows: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.normal(size=(rows, dim))
    if kind == "near ties":  # apart by about one rounding of float32
        x = np.ones((rows, 1)) * x[:1] + 1e-7 * x
    elif kind == "clusters":  # apart by about one step of the codes
        x = x[rng.integers(0, 5, rows)] + 0.01 * x
    elif kind == "duplicates":
        x = x[rng.integers(0, 7, rows)]
    elif kind == "all equal":
        x = np.ones((rows, 1)) * x[:1]
    elif kind == "one large":  # one number a row decides the step, and all others round to 0
        x[np.arange(rows), rng.integers(0, dim, rows)] = 400
    elif kind == "lengths":  # from 1e-6 to 1e6, and zeros
        x *= 10.0 ** rng.integers(-6, 7, (rows, 1))
        x[::5] = 0
    elif kind == "tiny":
        x *= 1e-40
    if kind not in ("lengths", "tiny"):
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float32)


KINDS = (
    "spread", "near ties", "clusters", "duplicates", "all equal", "one large", "lengths", "tiny",
)  # fmt: skip


def _codes(x: np.ndarray, centre: np.ndarray) -> CodeScan:
    codes, steps = quantise(x - centre)
    residuals, lengths = residual_norms(x, centre, codes, steps)
    return CodeScan(codes, steps, residuals, lengths, centre)


def _brute_force(x: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By definition: float64 sums, rounded to float32; equal scores in the order of rows."""
    scores = np.stack([(x.astype(np.float64) * q).sum(axis=1) for q in queries]).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_search_is_exact_whatever_the_vectors(
    kind: str, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_BLOCK_SCORES", 500)
    rng = np.random.default_rng(dim)
    x = _vectors(kind, 403, dim, rng)
    queries = np.concatenate(
        [x[:4], x[:2] * 3, -x[:1], rng.normal(size=(3, dim)).astype(np.float32), x[:1] * 0]
    )
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    mask = rng.random(403) < 0.3
    for codes in (None, _codes(x, centre), _codes(x, 3 * centre)):
        for k in (1, 10, 403):
            scores, rows = Index([x[:150], x[150:]], codes=codes).search(queries, k)
            expected_scores, expected = _brute_force(x, queries, k)
            np.testing.assert_array_equal(rows, expected)
            np.testing.assert_array_equal(scores, expected_scores)
        _, rows = Index([x], codes=codes).search(queries, 5, mask=mask)
        chosen = np.flatnonzero(mask)
        np.testing.assert_array_equal(rows, chosen[_brute_force(x[mask], queries, 5)[1]])


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("kind", KINDS)
def test_no_score_is_further_off_than_its_bound(kind: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    x = _vectors(kind, 300, dim, rng)
    queries = np.concatenate([x[:9], -5 * x[:1], rng.normal(size=(5, dim)).astype(np.float32)])
    exact = queries.astype(np.float64) @ x.astype(np.float64).T
    for scan in (FloatScan([x]), _codes(x, x.mean(axis=0)), _codes(x, 0 * x[0])):
        scan.prepare(queries)
        block = scan.block(0, 300, None)
        of_query, rows = np.divmod(np.arange(exact.size), 300)
        score = block.scores(of_query, rows).reshape(exact.shape)
        bound = block.error(of_query, rows).reshape(score.shape)
        assert (np.abs(score - exact) <= bound).all()
        assert (bound <= block.largest_error()[:, None]).all()


def test_blocks_of_another_size_have_bounds_where_a_mask_left_rows_out() -> None:
    """The length of a row is taken when its block is first read."""
    x = _vectors("spread", 300, 16, np.random.default_rng(0))
    scan = FloatScan([x])
    scan.prepare(x[:1])
    scan.block(0, 100, None)
    scan.block(200, 300, None)
    fresh = FloatScan([x])
    fresh.prepare(x[:1])
    expected = fresh.block(0, 300, None).residuals
    np.testing.assert_array_equal(scan.block(0, 300, None).residuals, expected)


def test_the_bound_is_reached_by_the_vectors_that_it_is_made_for() -> None:
    """A bound that is twice what can happen would pass every test above, and be slow."""
    rng = np.random.default_rng(0)
    x = _vectors("spread", 1, 64, rng)
    scan = _codes(x, 0 * x[0])
    codes, steps = quantise(x)
    residual = x - codes * steps[:, None]
    scan.prepare(residual / np.linalg.norm(residual))
    block = scan.block(0, 1, None)
    off = np.linalg.norm(residual) - block.scores(np.array([0]), np.array([0]))[0]
    assert abs(off) > 0.5 * block.error(np.array([0]), np.array([0]))[0]


@pytest.mark.parametrize("dim", [1, 7, 64, 512, 1024, 4096])
def test_whole_numbers_are_multiplied_without_rounding(
    dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    left = rng.integers(-127, 128, (3, dim), dtype=np.int8)
    right = np.concatenate([rng.integers(-127, 128, (50, dim), dtype=np.int8), left * 0 + 127])
    expected = left.astype(np.int64) @ right.astype(np.int64).T
    for native in (True, False):
        if not native:
            monkeypatch.setattr(scan_module, "_has_whole_product", lambda: False)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # as a caller's may be
            found = whole_product(torch.from_numpy(left), torch.from_numpy(right)).numpy()
        np.testing.assert_array_equal(found, expected)


def test_half_precision_vectors_are_searched_as_the_numbers_that_they_are() -> None:
    rng = np.random.default_rng(0)
    x = _vectors("spread", 500, 32, rng).astype(np.float16)
    _, rows = Index([x]).search(x[:20].astype(np.float32), 5)
    expected = _brute_force(x.astype(np.float32), x[:20].astype(np.float32), 5)[1]
    np.testing.assert_array_equal(rows, expected)

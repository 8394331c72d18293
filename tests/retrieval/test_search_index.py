"""Exact search against a brute-force sort, ties included."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.retrieval import index as module
from clipkit.retrieval.index import Index


def _brute_force(rows: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ rows.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # lower rows first
    return np.take_along_axis(scores, order, axis=1), order


@pytest.mark.parametrize("block", [1, 7, 100, 16_384])
@pytest.mark.parametrize("k", [1, 5, 40, 1000])
def test_search_equals_a_brute_force_sort(
    block: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_SCORES", 4 * block)
    monkeypatch.setattr(module, "_QUERIES", 4)
    rng = np.random.default_rng(k)
    # Small whole numbers: products are exact, and many of them equal.
    rows = rng.integers(-2, 3, (333, 6)).astype(np.float32)
    queries = rng.integers(-2, 3, (9, 6)).astype(np.float32)
    scores, found = Index([rows[:100], rows[100:100], rows[100:]]).search(queries, k)
    expected_scores, expected = _brute_force(rows, queries, min(k, 333))
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(found, expected)


def test_of_equal_rows_the_first_come_first() -> None:
    rows = np.ones((500, 3), dtype=np.float32)
    _, found = Index([rows]).search(np.ones((2, 3), dtype=np.float32), 4)
    assert found.tolist() == [[0, 1, 2, 3]] * 2


def test_search_finds_each_vector_by_itself() -> None:
    rows = np.random.default_rng(0).normal(size=(2000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scores, found = Index([rows]).search(rows[::7], 1)
    assert found[:, 0].tolist() == list(range(0, 2000, 7))
    np.testing.assert_allclose(scores, 1, atol=1e-5)


def test_one_query_gives_one_row_of_results() -> None:
    rows = np.eye(5, dtype=np.float32)
    scores, found = Index([rows]).search(rows[3], 2)
    assert (scores.shape, found.tolist()) == ((2,), [3, 0])
    scores, found = Index([rows]).search(np.zeros((0, 5)), 2)
    assert (scores.shape, found.shape) == ((0, 2), (0, 2))


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ClipkitError, match="nothing to search in"):
        Index([np.zeros((0, 4), np.float32)])
    with pytest.raises(ClipkitError, match=r"\[3, 4\] columns"):
        Index([np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32)])
    index = Index([np.eye(4, dtype=np.float32)])
    with pytest.raises(ClipkitError, match="vectors of 4"):
        index.search(np.zeros((1, 5)), 1)
    with pytest.raises(ClipkitError, match="k: 0"):
        index.search(np.zeros((1, 4)), 0)

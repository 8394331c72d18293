"""Calibration, geometry, neighbours and compositionality against other implementations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from sklearn.neighbors import KNeighborsClassifier

from clipkit.evaluation import geometry, knn
from clipkit.evaluation.calibration import calibration
from clipkit.evaluation.compositionality import hard_negative_hits, winoground_hits
from clipkit.evaluation.few_shot import unit_rows
from clipkit.evaluation.geometry import alignment, effective_rank, modality_gap, uniformity
from clipkit.evaluation.knn import knn_scores


def _unit(seed: int, rows: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit_rows(rng.normal(size=(rows, dim)) + 0.5).astype(np.float32)


def test_the_calibration_error_is_that_of_a_loop_over_bins() -> None:
    rng = np.random.default_rng(0)
    confidences = np.concatenate([rng.random(300), [0, 1, 1, 0.2, 0.4], [np.nan] * 3])
    hits = (rng.random(308) < 0.6).astype(float)
    table = calibration(confidences, hits, bins=5)
    expected, known = 0.0, ~np.isnan(confidences)
    for low, high in [(-1, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1)]:
        inside = known & (confidences > low) & (confidences <= high + 1e-12)
        gap = abs(confidences[inside].mean() - hits[inside].mean())
        expected += inside.sum() / known.sum() * gap
    assert table.ece == pytest.approx(expected)
    assert table.counts.sum() == 305
    assert calibration(np.ones(4), np.ones(4)).ece == 0
    assert calibration(np.ones(4), np.zeros(4)).ece == 1
    assert np.isnan(calibration(np.ones(0), np.ones(0)).ece)
    assert np.isnan(calibration(np.ones(4), np.ones(4)).accuracies[:14]).all()
    with pytest.raises(ValueError, match="give probabilities"):
        calibration(np.array([14.0]), np.ones(1))


@pytest.mark.parametrize("block", [7, 2048])
def test_geometry_is_that_of_scipy_and_of_one_svd(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "_BLOCK", block)
    images, texts = _unit(0, 40, 12), _unit(1, 40, 12)
    images[3] = images[4]
    np.testing.assert_allclose(
        alignment(images, texts), np.linalg.norm(images.astype(float) - texts, axis=1) ** 2
    )
    squared = pdist(images.astype(float), "sqeuclidean")
    assert uniformity(images) == pytest.approx(np.log(np.mean(np.exp(-2 * squared))), abs=1e-7)
    gap = np.linalg.norm(images.astype(float).mean(axis=0) - texts.astype(float).mean(axis=0))
    assert modality_gap(images, texts) == pytest.approx(gap)
    for rows in (images, images[:5], np.repeat(images[:2], 30, axis=0)):
        values = np.linalg.svd(rows.astype(float), compute_uv=False)
        shares = values[values > 1e-12] / values.sum()
        expected = np.exp(-(shares * np.log(shares)).sum())
        assert effective_rank(rows) == pytest.approx(expected, abs=1e-9)


def test_geometry_at_its_ends() -> None:
    assert effective_rank(np.eye(9)) == pytest.approx(9)
    one = np.repeat(_unit(2, 1, 8), 50, axis=0)
    assert effective_rank(one) == pytest.approx(1)
    assert uniformity(one) == pytest.approx(0, abs=1e-6)
    assert not alignment(one, one).any()
    assert modality_gap(one, one) == 0
    for value in (effective_rank(one[:0]), uniformity(one[:1]), modality_gap(one[:0], one)):
        assert np.isnan(value)


@pytest.mark.parametrize("blocks", [(3, 11), (1024, 16384)])
def test_neighbours_vote_as_in_scikit_learn(
    blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "_QUERIES", blocks[0])
    monkeypatch.setattr(knn, "_TRAIN", blocks[1])
    train, queries = _unit(3, 90, 10), _unit(4, 25, 10)
    targets = np.random.default_rng(5).integers(0, 4, 90)  # of five classes one has no rows
    reference = KNeighborsClassifier(
        20, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
    ).fit(train.astype(float), targets)
    scores = knn_scores(train, targets, queries, 5)
    expected = reference.predict_proba(queries.astype(float))
    np.testing.assert_allclose(scores[:, :4], expected, atol=1e-5)
    assert not scores[:, 4].any()
    few = knn_scores(train[:3], targets[:3], queries, 5)  # k of 20, where there are three
    np.testing.assert_allclose(few.sum(axis=1), 1, atol=1e-6)


def test_compositional_hits_are_those_of_the_papers_conditions() -> None:
    rng = np.random.default_rng(6)
    scores = rng.integers(0, 4, (200, 2, 2)) / 4  # captions × images, with ties
    hits = winoground_hits(scores)
    for (c0, c1), text, image, group in zip(
        scores, hits["text"], hits["image"], hits["group"], strict=True
    ):
        assert text == (c0[0] > c1[0] and c1[1] > c0[1])
        assert image == (c0[0] > c0[1] and c1[1] > c1[0])
        assert group == (text and image)
    right, wrong = rng.integers(0, 4, 50) / 4, rng.integers(0, 4, (50, 2)) / 4
    assert hard_negative_hits(right, wrong).tolist() == [
        all(r > w for w in each) for r, each in zip(right, wrong, strict=True)
    ]
    assert not hard_negative_hits(right, right).any()
    assert not hard_negative_hits(np.array([np.nan]), np.array([0.1])).any()

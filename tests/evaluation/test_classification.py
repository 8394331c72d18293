"""Accuracy, recall, average precision and confusion against scikit-learn and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from clipkit.evaluation.classification import (
    average_precisions,
    class_ranks,
    confusion_counts,
    mean_per_class_recall,
    predicted_classes,
)


def _case(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    """(200, 9) scores and classes; the classes 7 and 8 have no rows."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 7, 200)
    scores = rng.integers(0, 4, (200, 9)) / 4 if ties else rng.normal(size=(200, 9))
    return scores, targets


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_they_are_scikit_learns(seed: int) -> None:
    scores, targets = _case(seed, ties=False)
    ranks = class_ranks(scores, targets)
    for k in (1, 3, 5):
        expected = sk.top_k_accuracy_score(targets, scores, k=k, labels=range(9))
        assert (ranks <= k).mean() == pytest.approx(expected)
    predicted = predicted_classes(scores, targets)
    assert predicted.tolist() == predicted_classes(scores).tolist()
    assert predicted.tolist() == scores.argmax(axis=1).tolist()
    assert mean_per_class_recall(predicted == targets, targets) == pytest.approx(
        sk.recall_score(targets, predicted, labels=range(7), average="macro")
    )
    np.testing.assert_array_equal(
        confusion_counts(targets, predicted, 9),
        sk.confusion_matrix(targets, predicted, labels=range(9)),
    )


@pytest.mark.parametrize("seed", range(3))
def test_ties_and_nan_count_against_the_model(seed: int) -> None:
    scores, targets = _case(seed, ties=True)
    scores[:20] = np.where(np.random.default_rng(seed).random((20, 9)) < 0.3, np.nan, scores[:20])
    scores = scores.astype(np.float32)
    ranks = class_ranks(scores, targets)
    for row, rank, target in zip(scores, ranks, targets, strict=True):
        own = -np.inf if np.isnan(row[target]) else row[target]
        others = np.delete(row, target)
        assert rank == 1 + sum(np.isnan(each) or each >= own - 1e-6 for each in others)
    predicted = predicted_classes(scores, targets)
    assert ((predicted == targets) == (ranks == 1)).all()
    for row, guess in zip(scores[20:], predicted[20:], strict=True):
        assert row[guess] == row.max()


def test_a_model_that_gives_all_classes_one_score_has_no_hits() -> None:
    scores, targets = np.full((5, 3), 0.25, np.float32), np.array([0, 1, 2, 0, 1])
    assert class_ranks(scores, targets).tolist() == [3] * 5
    assert (predicted_classes(scores, targets) != targets).all()
    precisions = average_precisions(scores, np.eye(3, dtype=bool)[targets])
    assert precisions == pytest.approx([(1 / 4 + 2 / 5) / 2, (1 / 4 + 2 / 5) / 2, 1 / 5])
    one = np.zeros((2, 1))  # of one class every image is
    assert class_ranks(one, np.zeros(2, int)).tolist() == [1, 1]
    assert predicted_classes(one, np.zeros(2, int)).tolist() == [0, 0]


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_scikit_learns_with_tied_wrong_ones_moved_up(ties: bool) -> None:
    rng = np.random.default_rng(7)
    scores = rng.integers(0, 6, (40, 30)) / 6 if ties else rng.normal(size=(40, 30))
    positives = rng.random((40, 30)) < 0.2
    positives[:, 4] = False
    moved = scores - (1e-3 * positives if ties else 0)
    # Right ones of one score stand one after the other, which scikit-learn takes as one step.
    moved = moved - 1e-6 * np.argsort(rng.random((40, 30)), axis=0)
    expected = [
        sk.average_precision_score(p, s) if p.any() else np.nan
        for p, s in zip(positives.T, moved.T, strict=True)
    ]
    np.testing.assert_allclose(average_precisions(scores, positives), expected, atol=1e-12)
    broken = np.where(positives & (rng.random((40, 30)) < 0.5), np.nan, scores)
    assert np.nanmean(average_precisions(broken, positives)) < np.nanmean(expected)

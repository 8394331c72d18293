"""(scores of images by class, the right classes) → accuracy, recall a class, average precision,
confusion.

Ties count against the model, as in retrieval: an image's rank is 1 + the number of wrong classes
that score as high as its right one, or higher. Classes without an image are left out of means.
"""

from __future__ import annotations

import numpy as np

TIE = 1e-6  # of cosines: equal ones differ by some 1e-7 of rounding


def class_ranks(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(N,) the rank of each image's right class, from 1.

    Args:
        scores: (N, C); cosines, or logits of that size.
        targets: (N,) int64, the right class.
    """
    right = np.take_along_axis(scores, targets[:, None], axis=1)  # (N, 1)
    lower = scores < right - TIE  # false for NaN, which so counts against the model
    ranks: np.ndarray = scores.shape[1] - lower.sum(axis=1)
    return ranks


def predicted_classes(scores: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64, the class that each image is given; where that is a tie with the right one, a
    wrong one of those.

    Args:
        scores: (N, C).
        targets: (N,) int64, the right class; none: ties go to the first class.
    """
    best: np.ndarray = np.nan_to_num(scores, nan=-np.inf).argmax(axis=1)
    if targets is None or scores.shape[1] < 2:
        return best
    tied = (best == targets) & (class_ranks(scores, targets) > 1)
    others = np.nan_to_num(scores[tied], nan=np.inf)
    np.put_along_axis(others, targets[tied][:, None], -np.inf, axis=1)
    best[tied] = others.argmax(axis=1)
    return best


def mean_per_class_recall(right: np.ndarray, targets: np.ndarray) -> float:
    """The mean over classes of the share of their images that are right.

    Args:
        right: (N,) 0 or 1.
        targets: (N,) int64; classes that do not occur are left out.
    """
    counts = np.bincount(targets)
    hits = np.bincount(targets, weights=right)
    return float((hits[counts > 0] / counts[counts > 0]).mean())


def average_precisions(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """(C,) the average precision of each class: the mean, over its images from the best on, of the
    share of its images among all up to there; others that score as high come before. NaN for a
    class without an image.

    Args:
        scores: (N, C).
        positives: (N, C) bool, which classes each image is of.
    """
    precisions = np.full(scores.shape[1], np.nan)
    for c in np.flatnonzero(positives.any(axis=0)):
        column, is_right = scores[:, c], positives[:, c]
        right = -np.sort(-np.nan_to_num(column[is_right], nan=-np.inf))
        wrong = np.sort(np.nan_to_num(column[~is_right], nan=np.inf))
        above = len(wrong) - np.searchsorted(wrong, right - TIE, side="left")
        place = np.arange(1, len(right) + 1)
        precisions[c] = (place / (place + above)).mean()
    return precisions


def confusion_counts(targets: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) int64: how many images of class i were taken for class j."""
    cells = np.asarray(targets, np.int64) * num_classes + np.asarray(predicted, np.int64)
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)

"""(confidence, whether it was right) → how far the one is from the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """The reliability table of M bins, and what it comes to.

    Attributes:
        ece: the expected calibration error, from 0 to 1; NaN of no rows.
        edges: (M + 1,), bin m holds the confidences above edge m and up to edge m + 1.
        counts: (M,) rows.
        confidences, accuracies: (M,) the means of the bin's rows; NaN of an empty one.
    """

    ece: float
    edges: np.ndarray
    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray


def calibration(confidences: np.ndarray, hits: np.ndarray, *, bins: int = 15) -> Calibration:
    """Whether of the rows with a confidence of 0.8 about 80% are right.

    Where they are not, ``ZeroShotClassifier.calibrate`` fits a temperature.

    Args:
        confidences: (N,) the probability of the class that a row was taken for; NaN rows are left
            out.
        hits: (N,) 1 where that was right, 0 else.
        bins: M, of equal width from 0 to 1; 0 itself is in the first.

    Raises:
        ValueError: a confidence is no probability, or the lengths differ.

    Reference: Guo et al., https://arxiv.org/abs/1706.04599, equation 3.
    """
    confidences, hits = np.asarray(confidences, np.float64), np.asarray(hits, np.float64)
    if confidences.shape != hits.shape or confidences.ndim != 1:
        raise ValueError(f"confidences {confidences.shape} and hits {hits.shape}: give both (N,)")
    known = ~np.isnan(confidences)
    confidences, hits = confidences[known], hits[known]
    # Float32 softmaxes may pass 1 by rounding.
    if len(confidences) and not -1e-5 <= confidences.min() <= confidences.max() <= 1 + 1e-5:
        raise ValueError(
            f"confidences: from {confidences.min()} to {confidences.max()}; give probabilities"
        )
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    means = []
    for values in (confidences, hits):
        sums = np.bincount(place, weights=values, minlength=bins)
        means.append(np.where(counts > 0, sums / counts.clip(1), np.nan))
    gaps = np.abs(means[0] - means[1])[counts > 0]
    shares = counts[counts > 0] / counts.sum() if len(gaps) else gaps
    ece = float(gaps @ shares) if len(gaps) else float("nan")
    return Calibration(ece, edges, counts, *means)

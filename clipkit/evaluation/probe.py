"""Labelled embeddings → a linear probe whose regularisation is chosen on rows kept apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipkit.data.rng import Purpose, permutation
from clipkit.evaluation.classification import class_ranks
from clipkit.evaluation.few_shot import ProbeFitter

_LEAST, _MOST, _STEP, _FINEST = -6.0, 6.0, 2.0, 1 / 8  # powers of ten


@dataclass(frozen=True)
class SweptProbe:
    """A linear probe and how its l2 was chosen.

    Attributes:
        weights, bias: (C, D) and (C,) of the logits.
        l2: the best on the validation rows; of several as good, the largest.
        accuracies: of the validation rows, of each l2 that was tried.
    """

    weights: np.ndarray
    bias: np.ndarray
    l2: float
    accuracies: dict[float, float]

    def scores(self, embeds: np.ndarray) -> np.ndarray:
        """(N, D) → (N, C) the logits but for a factor; see ``_scores``."""
        return _scores(embeds, self.weights, self.bias)


def swept_probe(
    embeds: np.ndarray,
    targets: np.ndarray,
    num_classes: int,
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    share: float = 0.1,
) -> SweptProbe:
    """Logistic regression; see ``linear_probe``. l2 is sought from 1e-6 to 1e6, a hundredfold at a
    time and then in halves of that around the best, down to eight steps a decade; with the best,
    it is fitted once more, to all rows.

    Args:
        embeds: (N, D) float32.
        targets: (N,) their classes.
        num_classes: C.
        validation: embeddings and classes that choose l2; none: ``held_apart`` of the rows.
        share: of the rows that are held apart, where there is no validation.

    Raises:
        ValueError: no class has two rows, so that none can be held apart.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, appendix A.3.
    """
    targets = np.asarray(targets, dtype=np.int64)
    if validation is None:
        apart = held_apart(targets, share)
        if not apart.any():
            raise ValueError("targets: no class has two rows, so that none can choose l2")
        validation = embeds[apart], targets[apart]
        fitted_embeds, fitted_targets = embeds[~apart], targets[~apart]
        whole = embeds, targets
    else:
        fitted_embeds, fitted_targets = embeds, targets
        whole = np.concatenate([embeds, validation[0]]), np.concatenate([targets, validation[1]])
    origin = np.zeros((num_classes, embeds.shape[1]), dtype=np.float32)
    fitter = ProbeFitter(fitted_embeds, fitted_targets, origin)
    accuracies: dict[float, float] = {}

    def accuracy(power: float) -> float:
        if power not in accuracies:
            weights, bias = fitter.fit(10.0**power)
            ranks = class_ranks(_scores(validation[0], weights, bias), validation[1])
            accuracies[power] = float((ranks == 1).mean())
        return accuracies[power]

    step = _STEP
    # From the strongest down: each fit begins where the one before it ended.
    powers = np.arange(_MOST, _LEAST - step, -step).tolist()
    best = max(powers, key=lambda p: (accuracy(p), p))
    while step > _FINEST:
        step /= 2
        near = [p for p in (best + step, best, best - step) if _LEAST <= p <= _MOST]
        best = max(near, key=lambda p: (accuracy(p), p))
    weights, bias = ProbeFitter(*whole, origin).fit(10.0**best)
    return SweptProbe(weights, bias, 10.0**best, {10.0**p: accuracies[p] for p in accuracies})


def _scores(embeds: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Logits made as large as cosines, for ``class_ranks``: of a strong l2 they are tiny, and would
    all be ties."""
    logits = embeds @ weights.T + bias
    logits -= logits.mean(axis=1, keepdims=True)
    scaled: np.ndarray = logits / max(float(np.abs(logits).max(initial=0)), 1e-30)
    return scaled


def held_apart(targets: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: of each class that has two rows or more this share, one at least, chosen at random
    and always in the same way."""
    apart = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        rows = np.flatnonzero(targets == label)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        order = permutation(0, Purpose.HOLDOUT, int(label), size=len(rows))
        apart[rows[order[:count]]] = True
    return apart

"""A few labelled embeddings → class means, a linear probe, a temperature: no training of towers."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def class_means(embeds: np.ndarray, targets: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, D) unit vectors, the direction of the mean of each class's embeddings.

    Args:
        embeds: (N, D), unit length.
        targets: (N,) int64, a class each; every class occurs.
        num_classes: C.
    """
    sums = np.zeros((num_classes, embeds.shape[1]))
    np.add.at(sums, targets, embeds)
    return unit_rows(sums).astype(np.float32)


def linear_probe(
    embeds: np.ndarray, targets: np.ndarray, start: np.ndarray, *, l2: float
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression: the minimum of Σ NLL + l2/2 · ‖weights − start‖².

    With ``start`` zero it is scikit-learn's ``LogisticRegression(C=1 / l2)``; with the weights of
    a zero-shot classifier, as l2 grows, it is that classifier. The bias is not regularised.

    Args:
        embeds: (N, D).
        targets: (N,) int64, a class each.
        start: (C, D), what the weights are drawn to, and where the search begins.
        l2: above 0.

    Returns:
        (C, D) weights and (C,) bias of the logits, float32.
    """
    return ProbeFitter(embeds, targets, start).fit(l2)


class ProbeFitter:
    """``linear_probe`` of the same rows with one l2 after the other; see there. Each search begins
    where the one before it ended."""

    def __init__(self, embeds: np.ndarray, targets: np.ndarray, start: np.ndarray) -> None:
        x, self._targets = torch.from_numpy(embeds).double(), torch.from_numpy(targets)
        self._origin = torch.from_numpy(start).double()
        self._mean = x.mean(dim=0)
        _, self._spread, self._axes = torch.linalg.svd(x - self._mean, full_matrices=False)
        self._turned = (x - self._mean) @ self._axes.T  # (N, R)
        self._before = (x - self._mean) @ self._origin.T  # (N, C)
        self._found = torch.zeros(len(start), len(self._axes), dtype=torch.float64)  # (C, R)
        self._shift = torch.zeros(len(start), dtype=torch.float64)

    def fit(self, l2: float) -> tuple[np.ndarray, np.ndarray]:
        """(C, D) weights and (C,) bias of the logits, float32."""
        # The search is for steps along the principal axes of the centred embeddings, each as long
        # as the loss is flat there: along the embeddings' own it took twenty times as long.
        lengths = 1 / (self._spread.square() / 4 + l2).sqrt()  # (R,)
        along = self._turned * lengths
        steps = (self._found / lengths).requires_grad_()  # (C, R)
        shift = self._shift.clone().requires_grad_()
        unit = 2 / len(along) ** 0.5
        search = torch.optim.LBFGS(
            [steps, shift],
            max_iter=500,
            history_size=20,
            tolerance_grad=1e-7,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            search.zero_grad()
            logits = self._before + along @ steps.T + unit * shift
            nll: Tensor = F.cross_entropy(logits, self._targets, reduction="sum")
            value: Tensor = nll + l2 / 2 * (steps * lengths).square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        with torch.enable_grad():
            search.step(loss)  # type: ignore[no-untyped-call]
        self._found, self._shift = steps.detach() * lengths, shift.detach()
        weights = self._origin + self._found @ self._axes
        bias = unit * self._shift - weights @ self._mean
        return weights.float().numpy(), bias.float().numpy()


def best_scale(logits: np.ndarray, targets: np.ndarray) -> float | None:
    """The factor on logits with the least negative log-likelihood of the targets.

    The likelihood is convex in it, so its slope is followed to where it is 0. None where there
    is no such place: every target has the highest logit, and a larger factor is always better;
    or the logits speak against the targets, and 0 is best.

    Args:
        logits: (N, C).
        targets: (N,) int64.

    Reference: temperature scaling, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    logits = logits.astype(np.float64)
    right = np.take_along_axis(logits, targets[:, None], axis=1)  # (N, 1)
    margins = logits - right  # (N, C)

    def slope(scale: float) -> float:
        weights = np.exp(scale * (logits - logits.max(axis=1, keepdims=True)))
        return float(((weights * margins).sum(axis=1) / weights.sum(axis=1)).mean())

    low, high = 0.0, 1e4 / max(float(np.ptp(logits, axis=1).max()), 1e-12)
    if slope(low) >= 0 or slope(high) <= 0:
        return None
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """(N, D) → the same at unit length; what is 0 stays 0."""
    units: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return units

"""The choice of a linear probe's l2 against scikit-learn over the same grid."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clipkit.evaluation.few_shot import unit_rows
from clipkit.evaluation.probe import held_apart, swept_probe


@pytest.fixture(scope="module")
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 150)
    noisy = rng.normal(size=(3, 20))[targets] + 2.5 * rng.normal(size=(150, 20))
    return unit_rows(noisy).astype(np.float32), targets


def test_the_best_l2_of_those_tried_is_scikit_learns(rows) -> None:
    embeds, targets = rows
    validation = embeds[:50], targets[:50]
    probe = swept_probe(embeds[50:], targets[50:], 3, validation)
    assert {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} < probe.accuracies.keys()
    assert len(probe.accuracies) <= 15
    for l2, accuracy in probe.accuracies.items():
        if 1e-1 <= l2 <= 1e2:  # elsewhere scikit-learn does not get to the minimum
            model = LogisticRegression(C=1 / l2, tol=1e-9, max_iter=50_000)
            model.fit(embeds[50:].astype(float), targets[50:])
            assert accuracy == pytest.approx(model.score(*validation), abs=0.021)  # one row of 50
    assert probe.accuracies[probe.l2] == max(probe.accuracies.values())
    model = LogisticRegression(C=1 / probe.l2, tol=1e-9, max_iter=50_000)
    model.fit(embeds.astype(float), targets)  # the last fit is to all rows
    ours = embeds @ probe.weights.T + probe.bias
    ours = np.exp(ours) / np.exp(ours).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours, model.predict_proba(embeds.astype(float)), atol=1e-3)


def test_rows_are_held_apart_by_class_and_always_the_same(rows) -> None:
    embeds, targets = rows
    targets = np.concatenate([targets, [3]])  # a class with one row
    apart = held_apart(targets, 0.1)
    assert (apart == held_apart(targets, 0.1)).all()
    for label in range(3):
        held, count = apart[targets == label].sum(), (targets == label).sum()
        assert held == round(count * 0.1)
    assert not apart[-1]
    first, second = swept_probe(embeds, targets[:-1], 3), swept_probe(embeds, targets[:-1], 3)
    assert first.l2 == second.l2
    np.testing.assert_array_equal(first.weights, second.weights)
    with pytest.raises(ValueError, match="no class has two rows"):
        swept_probe(embeds[:2], np.array([0, 1]), 2)

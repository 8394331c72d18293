"""Intervals and paired tests against scipy's, exact counts and what they promise."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from clipkit.evaluation.statistics import bootstrap_interval, paired_test, recall_interval


@pytest.mark.parametrize("kind", ["hits", "numbers"])
def test_the_interval_is_scipys(kind: str) -> None:
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.7).astype(float) if kind == "hits" else rng.gamma(2, size=400)
    ours = bootstrap_interval(values, resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    # Two draws of 20,000 means differ by some hundredths of their deviation.
    assert ours == pytest.approx(theirs, abs=0.08 * values.std() / 20)


def test_the_interval_leaves_nan_out_and_does_not_know_the_order() -> None:
    values = np.random.default_rng(1).normal(size=90)
    shuffled = np.random.default_rng(2).permutation(np.concatenate([values, [np.nan] * 30]))
    assert bootstrap_interval(shuffled) == bootstrap_interval(values)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]


def test_the_interval_of_one_row_is_its_value_and_of_none_nan() -> None:
    assert bootstrap_interval(np.array([0.25, np.nan])) == (0.25, 0.25)
    assert np.isnan(bootstrap_interval(np.array([np.nan]))).all()
    assert bootstrap_interval(np.ones(50)) == (1, 1)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_interval((rng.random(200) < 0.4).astype(float), seed=seed)
        covered += low <= 0.4 <= high
    assert 0.91 <= covered / 300 <= 0.99


def test_the_interval_of_the_mean_recall_is_that_of_resampled_rows() -> None:
    rng = np.random.default_rng(7)
    classes = np.array(["cat"] * 300 + ["dog"] * 40 + ["rabbit"] * 3)
    right = (rng.random(343) < np.repeat([0.9, 0.5, 0.4], [300, 40, 3])).astype(float)
    means = []
    for _ in range(4000):
        picks = rng.integers(0, 343, 343)
        drawn = classes[picks]
        means.append(np.mean([right[picks][drawn == each].mean() for each in set(drawn)]))
    expected = np.quantile(means, [0.025, 0.975])
    assert recall_interval(right, classes, resamples=20_000) == pytest.approx(expected, abs=0.02)
    assert recall_interval(np.ones(5), np.zeros(5)) == (1, 1)
    assert np.isnan(recall_interval(right[:0], classes[:0])).all()


def test_the_p_value_is_that_of_all_signs() -> None:
    rng = np.random.default_rng(4)
    for a, b in [
        (rng.normal(0.4, size=12), rng.normal(size=12)),
        (rng.integers(0, 3, 12) / 2, rng.integers(0, 2, 12) / 2),  # with equal rows
    ]:
        signs = np.array(list(itertools.product([1, -1], repeat=12)))
        exact = (np.abs(signs @ (a - b)) >= abs((a - b).sum()) - 1e-9).mean()
        assert paired_test(a, b, resamples=40_000).p_value == pytest.approx(exact, abs=0.01)


def test_of_hits_and_misses_it_is_mcnemars_test() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.random(3000) < 0.62).astype(float), (rng.random(3000) < 0.6).astype(float)
    result = paired_test(a, b, resamples=40_000)
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    exact = stats.binomtest(only_a, only_a + only_b).pvalue
    assert result.p_value == pytest.approx(exact, abs=0.01)
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert result.low < result.difference < result.high


def test_alike_models_do_not_differ_and_nan_rows_are_left_out() -> None:
    a = np.array([1.0, 0, 1, np.nan, 1])
    assert paired_test(a, a).p_value == 1
    b = np.array([0.0, 0, np.nan, 1, 1])
    assert paired_test(a, b) == paired_test(a[[0, 1, 4]], b[[0, 1, 4]])
    assert np.isnan(paired_test(a[:0], b[:0]).p_value)
    with pytest.raises(ValueError, match="of the same rows"):
        paired_test(a, b[:3])


def test_memory_does_not_grow_with_the_resamples() -> None:
    a, b = np.random.default_rng(6).normal(size=(2, 10_000))
    tracemalloc.start()
    bootstrap_interval(a)
    paired_test(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20  # at once they would be 2,000 × 10,000 × 8 bytes

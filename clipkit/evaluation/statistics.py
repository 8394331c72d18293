"""A column of per-row values → how sure a metric is, and whether two models differ.

A metric that is a mean over rows (a hit is 1, a miss 0) comes from the rows that happened to be
in the test set; others would have given another mean. The bootstrap says by how much; the
paired test says whether two models' difference could be chance. Rows whose value is NaN are none
of the metric's and are left out. The order of the rows plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Numbers of one block of resamples: 8 MiB of float64, so that memory does not grow.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PairedTest:
    """What two models' rows say of their difference.

    Attributes:
        difference: the mean of a − b over the rows that both have.
        low, high: its bootstrap interval, 95%.
        p_value: how often chance alone gives a difference as large, in either direction.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: np.ndarray, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Between which two numbers the mean of the rows lies: the percentile bootstrap.

    Args:
        values: (N,), a metric's value of each row; NaN rows are left out.
        level: share of the resamples' means between the two numbers.
        resamples: how many times N rows are drawn from the N, each as often as chance has it.
        seed: of the draws.

    Returns:
        The lower and the upper end. Of one row that row's value twice; of none NaN twice.

    Reference: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: {level}; give a number between 0 and 1")
    rows = _present(values)
    if len(rows) < 2:
        only = float(rows[0]) if len(rows) else float("nan")
        return only, only
    rng = np.random.default_rng(seed)
    distinct, counts = np.unique(rows, return_counts=True)  # sorted
    means = np.empty(resamples)
    if len(distinct) * 8 <= len(rows):
        # Hits and misses: how often each value is drawn is all there is to know.
        for block in _blocks(resamples, len(distinct)):
            drawn = rng.multinomial(len(rows), counts / len(rows), size=block.stop - block.start)
            means[block] = drawn @ distinct / len(rows)
    else:
        ordered = np.repeat(distinct, counts)
        for block in _blocks(resamples, len(rows)):
            picks = rng.integers(0, len(rows), (block.stop - block.start, len(rows)), np.int32)
            means[block] = ordered[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def recall_interval(
    right: np.ndarray,
    classes: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Between which two numbers the mean of the classes' recalls lies: the percentile bootstrap,
    over rows. A class that a resample draws no row of is left out of its mean.

    Args:
        right: (N,) 1 where a row was taken for its class, 0 else.
        classes: (N,) the class of each row, of any type that sorts.
        level, resamples, seed: see ``bootstrap_interval``.

    Returns:
        The lower and the upper end; of no row NaN twice.
    """
    right, rows = np.asarray(right, dtype=np.float64), len(right)
    if not rows:
        return float("nan"), float("nan")
    numbers = np.unique(classes, return_inverse=True)[1]
    counts = np.bincount(numbers)
    hits = np.bincount(numbers, weights=right).astype(np.int64)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for block in _blocks(resamples, 4 * len(counts)):
        size = block.stop - block.start
        # How often each class is drawn, and how often one of its hits is.
        drawn = rng.multinomial(rows, counts / rows, size=size)  # (size, C)
        right_ones = rng.binomial(drawn, hits / counts)
        recalls = np.where(drawn > 0, right_ones / drawn.clip(1), np.nan)
        means[block] = np.nanmean(recalls, axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_test(
    a: np.ndarray, b: np.ndarray, *, seed: int = 0, resamples: int = 10_000
) -> PairedTest:
    """Whether model a is better than model b on the same rows, and by how much.

    If the two were alike, each row's difference could as well have had the other sign. So the
    signs are drawn anew, ``resamples`` times, and the p-value is the share of draws, the one that
    was observed among them, whose mean is as far from 0.

    Args:
        a, b: (N,), a metric's values, row i of both the same image or query; a row that is NaN
            in one of them is left out.
        seed: of the draws.
        resamples: draws of signs; the least p-value is one in that number.

    Returns:
        NaN in all four where no row is left.

    Raises:
        ValueError: a and b differ in length.

    Reference: the sign-flip permutation test, Fisher, The Design of Experiments, 1935, § 21; with
    the observed draw counted, https://arxiv.org/abs/1603.05766.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a {a.shape} and b {b.shape}: give one value a row, of the same rows")
    rows = _present(a - b)
    if not len(rows):
        return PairedTest(*[float("nan")] * 4)
    low, high = bootstrap_interval(rows, seed=seed)
    total = abs(float(rows.sum()))
    slack = 1e-12 * float(np.abs(rows).sum())  # sums of the same numbers in another order
    sums = _sums_of_random_signs(np.abs(rows), resamples, np.random.default_rng(seed))
    extreme = int((np.abs(sums) >= total - slack).sum())
    return PairedTest(float(rows.mean()), low, high, (1 + extreme) / (1 + resamples))


def _sums_of_random_signs(
    sizes: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """(N,) sizes → (resamples,) sums of them, each with a sign by chance."""
    distinct, counts = np.unique(sizes[sizes > 0], return_counts=True)
    sums = np.empty(resamples)
    total = float(distinct @ counts)
    few = len(distinct) * 8 <= counts.sum()
    ordered = np.repeat(distinct, counts)
    for block in _blocks(resamples, len(distinct) if few else len(ordered)):
        times = block.stop - block.start
        if few:
            positive = rng.binomial(counts, 0.5, size=(times, len(distinct))) @ distinct
        else:
            random = rng.integers(0, 256, (times, -(-len(ordered) // 8)), np.uint8)
            bits = np.unpackbits(random, axis=1, count=len(ordered))
            positive = bits.astype(np.float64) @ ordered
        sums[block] = 2 * positive - total
    return sums


def _present(values: np.ndarray) -> np.ndarray:
    """The rows that are numbers, float64."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 1:
        raise ValueError(f"values {rows.shape}: give one a row")
    present: np.ndarray = rows[~np.isnan(rows)]
    return present


def _blocks(count: int, width: int) -> list[slice]:
    """``count`` rows of ``width`` numbers, in blocks that fit the memory of one."""
    step = max(1, _BLOCK // max(1, width))
    return [slice(at, min(at + step, count)) for at in range(0, count, step)]

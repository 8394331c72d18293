"""The same tasks of several runs → their differences on the rows that they share, tested."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipkit.display.figure import Figure
from clipkit.display.intervals import Interval, interval_chart
from clipkit.display.page import Cell, note, table
from clipkit.evaluation.report.runs import Run
from clipkit.evaluation.report.suites import Measured
from clipkit.evaluation.report.tables import show_metric, split_way
from clipkit.evaluation.statistics import PairedTest, paired_test


@dataclass(frozen=True, slots=True)
class Comparison:
    """A metric of a run against that of the first run, on the rows that both have.

    Attributes:
        task: name of the task.
        metric: which metric.
        base, other: names of the first run and of the other.
        values: the metric of both over the shared rows.
        rows: how many rows are shared.
        test: of other − base.
        group: which of the runs, from 0.
    """

    task: str
    metric: str
    base: str
    other: str
    values: tuple[float, float]
    rows: int
    test: PairedTest
    group: int


def compare_runs(
    runs: Sequence[Run], measured: Sequence[Measured]
) -> tuple[list[Comparison], list[str]]:
    """Compares every metric that is a mean over rows, of every run with the first that has the
    task.

    Returns:
        The comparisons; and sentences about rows that do not join.
    """
    found: list[Comparison] = []
    remarks: list[str] = []
    tasks = dict.fromkeys((each.suite_name, each.task.name) for each in measured)
    for suite, task in tasks:
        having = [m for m in measured if (m.suite_name, m.task.name) == (suite, task)]
        if len(having) < 2:
            continue
        base = having[0]
        base_rows = base.suite.read_samples(task)
        for other in having[1:]:
            other_rows = other.suite.read_samples(task)
            if not base_rows or not other_rows:
                remarks.append(
                    f"{task}: there are no values by row of {other.run.name} or of "
                    f"{base.run.name}, so they are not compared."
                )
                continue
            places, remark = _join(base_rows, other_rows, (base.run.name, other.run.name))
            if remark:
                remarks.append(f"{task}: {remark}")
            for metric in _metrics(base, other, base_rows, other_rows):
                a = np.asarray(base_rows[metric], np.float64)[places[0]]
                b = np.asarray(other_rows[metric], np.float64)[places[1]]
                both = ~np.isnan(a) & ~np.isnan(b)
                if both.any():
                    means = (float(a[both].mean()), float(b[both].mean()))
                    test = paired_test(b[both], a[both])
                    group = next(i for i, run in enumerate(runs) if run is other.run)
                    names = (base.run.name, other.run.name)
                    found.append(
                        Comparison(task, metric, *names, means, int(both.sum()), test, group)
                    )
    return found, remarks


def comparison_parts(
    found: Sequence[Comparison], remarks: Sequence[str]
) -> tuple[list[str], list[Figure]]:
    """What stands in the section, and a figure a task, all of one scale."""
    if not found:
        return [note(line) for line in remarks], []
    several = len({each.other for each in found}) > 1
    corrected = holm([each.test.p_value for each in found])
    rows: list[list[str | Cell]] = []
    for each, p in zip(found, corrected, strict=True):
        interval = f"{each.test.low:+.3f} to {each.test.high:+.3f}"
        rows.append(
            [
                each.task,
                " ".join(split_way(each.metric)).strip(),
                each.other,
                *(show_metric(each.metric, value) for value in each.values),
                Cell(f"{each.test.difference:+.3f}", interval),
                _probability(each.test.p_value),
                _probability(p),
                f"{each.rows:,}",
            ]
        )
    bases = list(dict.fromkeys(each.base for each in found))
    base = bases[0] if len(bases) == 1 else "the first run that has it"
    header = [
        "task", "metric", "run", f"of {base}", "of the run", "difference", "p", "p, corrected",
        "rows",
    ]  # fmt: skip
    count = "1 comparison" if len(found) == 1 else f"{len(found):,} comparisons"
    text = (
        f"Each run is compared with {base}, on the rows that both have: {count} in all. Under each "
        "difference: its 95% interval, a bootstrap over rows; p: how often chance alone gives a "
        "difference as large, by a paired permutation test. "
    )
    if len(found) > 1:
        text += (
            f"Of {len(found):,} comparisons some look certain by chance, so read the corrected p "
            "(Holm, over all of them); the intervals are not corrected."
        )
    parts = [note(text), table(header, rows, texts=(0, 1, 2)), *map(note, remarks)]
    reach = max(
        (abs(end) for each in found for end in (each.test.low, each.test.high) if end == end),
        default=0.0,
    )
    drawn = []
    for task in dict.fromkeys(each.task for each in found):
        lines = [
            Interval(
                " ".join(split_way(each.metric)).strip() + (f", {each.other}" if several else ""),
                each.test.difference,
                each.test.low,
                each.test.high,
                each.group if several else 0,
            )
            for each in found
            if each.task == task
        ]
        drawn.append(interval_chart(f"{task}: difference from {base}", lines, reach=reach))
    return parts, [each for each in drawn if each is not None]


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number, in their order; NaN stays NaN and counts for nothing.

    Reference: Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p == p)
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for place, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - place)))
        corrected[i] = largest
    return corrected


def _metrics(
    base: Measured, other: Measured, base_rows: dict[str, np.ndarray], rows: dict[str, np.ndarray]
) -> list[str]:
    """The metrics that both have by row."""
    return [
        metric
        for metric in base.task.metrics
        if metric in other.task.metrics
        and all(metric in each and each[metric].dtype.kind in "fiub" for each in (base_rows, rows))
    ]


def _join(
    a: dict[str, np.ndarray], b: dict[str, np.ndarray], names: tuple[str, str]
) -> tuple[tuple[np.ndarray, np.ndarray], str]:
    """The places of the rows that both have, in both; and a sentence where that is not all.

    A row is named by its key, direction and label, so that equal keys of other data do not join.
    What stands in a table more than once names no row, and joins with nothing.
    """
    left, right = _keys(a), _keys(b)
    shared = [key for key in left if key in right]
    places = tuple(np.array([each[key] for key in shared], np.int64) for each in (left, right))
    lengths = (len(next(iter(a.values()))), len(next(iter(b.values()))))
    missing = [length - len(shared) for length in lengths]
    remark = ""
    if not shared:
        remark = f"{names[0]} and {names[1]} have no row in common, so they are not compared."
    elif any(missing):
        remark = (
            f"{len(shared):,} rows are in both and are compared; {missing[0]:,} of {names[0]} and "
            f"{missing[1]:,} of {names[1]} are in one alone, or named more than once."
        )
    return (places[0], places[1]), remark


def _keys(rows: dict[str, np.ndarray]) -> dict[tuple[str, ...], int]:
    """Name → row, of those that stand there once."""
    keys = rows.get("key")
    if keys is None:
        return {}
    columns = [keys, *(rows[name] for name in ("direction", "label") if name in rows)]
    found: dict[tuple[str, ...], int] = {}
    twice = set()
    for i, name in enumerate(zip(*(map(str, column) for column in columns), strict=True)):
        if name in found:
            twice.add(name)
        found[name] = i
    return {name: i for name, i in found.items() if name not in twice}


def _probability(p: float) -> str:
    if p != p:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"

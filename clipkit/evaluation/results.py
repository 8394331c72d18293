"""The results of a suite on disk: one JSON, a Parquet file a task, a line a metric in a CSV.

``results.json`` is written last, and names the files that belong to it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.atomic import sync, write_json, write_text
from clipkit.errors import CheckpointError

FORMAT = 1
RESULTS = "results.json"
TABLE = "results.csv"
_COLUMNS = ("created", "model", "sha256", "suite", "task", "metric", "value", "low", "high")


@dataclass
class TaskResult:
    """What one task measured.

    Attributes:
        name: of the task.
        kind: ``zero_shot``, ``retrieval`` …
        metrics: from 0 to 1; ranks from 1.
        samples: columns of equal length, a row an image or a query: ``key``, which names the row
            for good, ``label`` and ``predicted`` where there are classes, and a column with the
            name of each metric that is the mean of it, NaN in rows that the metric is not of.
            Empty where there are no such rows.
        data: ``path``, ``samples``, ``skipped`` by reason, ``sha256`` of keys and labels or
            captions, and ``notes``, sentences that the reader of the metrics must know.
        intervals: of metrics, (low, high).
    """

    name: str
    kind: str
    metrics: dict[str, float]
    samples: dict[str, list[Any] | np.ndarray] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class SuiteResults:
    """The results of a suite as they were read.

    Attributes:
        folder: where they are.
        about: all of ``results.json`` but the tasks: ``model``, ``suite``, ``command``,
            ``created``, ``versions``, ``device``, ``precision``, ``ranks``.
        tasks: by name, in the order of the suite; ``samples`` are read by ``read_samples``.
        tables: the Parquet file of each task that has one.
    """

    folder: Path
    about: dict[str, Any]
    tasks: dict[str, TaskResult]
    tables: dict[str, Path]

    def read_samples(self, task: str) -> dict[str, np.ndarray]:
        """The columns of a task; empty where it has none.

        Raises:
            CheckpointError: the file cannot be read.
        """
        if task not in self.tables:
            return {}
        import pyarrow.parquet as pq

        path = self.tables[task]
        try:
            table = pq.read_table(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read; evaluate again") from error
        return {name: table[name].to_numpy() for name in table.column_names}


def write_results(
    folder: Path, results: Sequence[TaskResult], about: Mapping[str, Any], *, table: Path
) -> Path:
    """Writes the results of a suite; what was in the folder of an earlier run of it is replaced.

    Args:
        folder: made where it is not there.
        results: of the tasks.
        about: see ``SuiteResults``.
        table: the CSV that a line a metric is appended to.

    Returns:
        ``results.json``.

    Raises:
        CheckpointError: a file cannot be written.
    """
    tasks = {}
    try:
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        for each in results:
            record: dict[str, Any] = {
                "kind": each.kind,
                "metrics": each.metrics,
                "intervals": {name: list(ends) for name, ends in each.intervals.items()},
                "data": each.data,
            }
            if each.samples:
                record["samples"] = f"samples/{_file_name(each.name)}.parquet"
                _write_table(folder / record["samples"], each.samples)
            tasks[each.name] = record
        path = folder / RESULTS
        write_json(path, _finite({"format": FORMAT, **about, "tasks": tasks}))
        named = {record.get("samples") for record in tasks.values()}
        for old in (folder / "samples").glob("*.parquet"):
            if f"samples/{old.name}" not in named:
                old.unlink()
        _append(table, results, about)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return path


def read_results(folder: str | Path) -> SuiteResults:
    """What ``write_results`` wrote.

    Raises:
        CheckpointError: there are no results, or of another format.
    """
    path = Path(folder) / RESULTS
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: its format is {tree['format']!r}, and this clipkit reads {FORMAT}; "
                "evaluate again"
            )
        records = tree.pop("tasks")
        tasks = {
            name: TaskResult(
                name,
                record["kind"],
                {key: _number(value) for key, value in record["metrics"].items()},
                data=record["data"],
                intervals={
                    key: (_number(ends[0]), _number(ends[1]))
                    for key, ends in record["intervals"].items()
                },
            )
            for name, record in records.items()
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; clipkit eval --suite writes it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not the results of a suite; evaluate again") from None
    tables = {
        name: path.parent / record["samples"]
        for name, record in records.items()
        if record.get("samples")
    }
    return SuiteResults(path.parent, tree, tasks, tables)


def _write_table(path: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lengths = {name: len(values) for name, values in columns.items()}
    assert len(set(lengths.values())) == 1, f"columns of unequal length: {lengths}"
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(pa.table({name: _column(values) for name, values in columns.items()}), aside)
        sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _column(values: Any) -> Any:
    if isinstance(values, np.ndarray):
        return values
    # Half of a surrogate pair, as a file's name may hold, is no UTF-8.
    return [v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in values]


def _append(path: Path, results: Sequence[TaskResult], about: Mapping[str, Any]) -> None:
    """A line for each metric, after those that are there."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    if not before:
        writer.writerow(_COLUMNS)
    model, suite = about.get("model", {}), about.get("suite", {})
    facts = (about.get("created"), model.get("path"), model.get("sha256"), suite.get("path"))
    for each in results:
        for metric, value in each.metrics.items():
            ends = each.intervals.get(metric, ("", ""))
            writer.writerow([*facts, each.name, metric, value, *ends])
    write_text(path, before + lines.getvalue())


def _file_name(task: str) -> str:
    """A task's name as a file's: what is no letter, digit, dot, dash or underscore is escaped."""
    return "".join(c if c.isalnum() or c in "._-" else f"%{ord(c):02x}" for c in task).lstrip(".")


def _finite(tree: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    if isinstance(tree, np.generic):
        tree = tree.item()
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)

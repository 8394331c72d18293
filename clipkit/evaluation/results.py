"""The results of a suite on disk: one JSON, a Parquet file a task, a line a metric in a CSV.

``results.json`` is written last, and names the files that belong to it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.atomic import NO_LINKS, sync, write_json
from clipkit.errors import CheckpointError
from clipkit.lock import Claim, Held

FORMAT = 1
RESULTS = "results.json"
TABLE = "results.csv"
_WAIT = 180.0  # seconds for another that writes results; longer than for a dead one
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
        tasks: by name, in the order of the suite; ``samples`` that are on disk are read by
            ``read_samples``.
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
            return {name: np.asarray(values) for name, values in self.tasks[task].samples.items()}
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
        with _alone(table.parent):
            before = _tables_of(folder)
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
            named = {folder / record.get("samples", "") for record in tasks.values()}
            for old in before - named:
                old.unlink(missing_ok=True)
            _append(table, results, about)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({error.strerror or error})") from error
    return path


def check_places(folder: Path, table: Path) -> None:
    """Makes the folder of results, before anything is measured for it.

    Args:
        folder: see ``write_results``.
        table: likewise.

    Raises:
        CheckpointError: it cannot be made or written to, or something else is where files will be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for each in {folder, table.parent, folder / "samples"}:
            if each.exists() and not (each.is_dir() and os.access(each, os.W_OK)):
                why = "is read-only" if each.is_dir() else "is no folder"
                raise CheckpointError(f"{each}: {why}, and results are written there")
        for each in (folder / RESULTS, table):
            if each.is_dir():
                raise CheckpointError(f"{each}: is a folder, and results are written there")
        if table.exists():
            with table.open("rb") as file:
                first = file.readline(2**12)
            if first.strip() and first.strip() != ",".join(_COLUMNS).encode():
                raise CheckpointError(
                    f"{table}: has other columns than the results of a suite; move it away"
                )
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror})") from None


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
        tables = {
            name: path.parent / record["samples"]
            for name, record in records.items()
            if record.get("samples")
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; clipkit eval --suite writes it") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not the results of a suite; evaluate again") from None
    return SuiteResults(path.parent, tree, tasks, tables)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process after the other: two would mix their files, or lose lines of the CSV."""
    end = time.monotonic() + _WAIT
    claim = None
    while claim is None:
        try:
            claim = Claim(folder / ".results.lock")
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            break  # this file system cannot say who is first
        except Held as held:
            if time.monotonic() > end:
                raise CheckpointError(
                    f"{folder}: {held} writes results there and does not end; end it, and evaluate "
                    "again"
                ) from None
            time.sleep(0.1)
    try:
        yield
    finally:
        if claim is not None:
            claim.release()


def _tables_of(folder: Path) -> set[Path]:
    """The Parquet files of the results that are there; none of what cannot be read."""
    try:
        tables = read_results(folder).tables.values()
    except CheckpointError:
        return set()
    return {path for path in tables if path.parent == folder / "samples"}


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
    model, suite = about.get("model", {}), about.get("suite", {})
    facts = (about.get("created"), model.get("path"), model.get("sha256"), suite.get("path"))
    with path.open("ab+") as file:
        size = file.tell()
        if not size:
            writer.writerow(_COLUMNS)
        else:
            file.seek(-1, os.SEEK_END)
            lines.write("" if file.read(1) == b"\n" else "\n")  # a line that was cut stays alone
        for each in results:
            for metric, value in each.metrics.items():
                ends = each.intervals.get(metric, ("", ""))
                writer.writerow([*facts, each.name, metric, value, *ends])
        try:
            file.write(lines.getvalue().encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
        except OSError:  # a full disk, for one: no half of a header stays
            os.truncate(path, size)
            raise


def _file_name(task: str) -> str:
    """A task's name as a file's, each its own: what is no letter, digit, dash, underscore or inner
    dot is escaped; what is too long ends in a hash."""
    name = "".join(
        c if c.isalnum() or c in "_-" or (c == "." and i) else _escaped(c)
        for i, c in enumerate(task)
    )
    if len(name.encode()) > 200:
        digest = hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        name = f"{name[:40]}%{digest}"
    return name


def _escaped(character: str) -> str:
    return "".join(f"%{byte:02x}" for byte in character.encode("utf-8", "surrogatepass"))


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

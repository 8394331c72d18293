"""Results of suites → a table for each kind of task, with the interval of each metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clipkit.display.page import Cell, details, note, subheading, table
from clipkit.evaluation.report.runs import Run
from clipkit.evaluation.report.tables import (
    show_interval,
    show_metric,
    split_way,
)
from clipkit.evaluation.results import SuiteResults, TaskResult


@dataclass(frozen=True, slots=True)
class Measured:
    """A task of a suite of a run.

    Attributes:
        run: which run.
        suite: its results of the suite.
        suite_name: of the suite.
        task: its result.
    """

    run: Run
    suite: SuiteResults
    suite_name: str
    task: TaskResult

    def title(self, runs: Sequence[Run]) -> str:
        """What to call it where it stands alone."""
        return self.task.name if len(runs) == 1 else f"{self.task.name}, {self.run.name}"


def all_measured(runs: Sequence[Run]) -> list[Measured]:
    """All tasks of all runs: by suite, then by task, then by run."""
    found = []
    for suite in dict.fromkeys(name for run in runs for name in run.suites):
        having = [run for run in runs if suite in run.suites]
        for task in dict.fromkeys(name for run in having for name in run.suites[suite].tasks):
            for run in having:
                if task in run.suites[suite].tasks:
                    here = run.suites[suite]
                    found.append(Measured(run, here, suite, here.tasks[task]))
    return found


def headline(measured: Sequence[Measured], most: int = 4) -> list[tuple[str, str]]:
    """The first metrics of the first tasks, for large print."""
    facts = []
    for each in measured:
        for metric, value in list(each.task.metrics.items())[:1]:
            name = " ".join(split_way(metric)).strip()
            facts.append((f"{each.task.name}: {name}", show_metric(metric, value)))
    return facts[:most]


def by_task(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """All runs of a task; its name says of which suite it is where there are several."""
    suites = {each.suite_name for each in measured}
    found: dict[str, list[Measured]] = {}
    for each in measured:
        name = f"{each.task.name} of {each.suite_name}" if len(suites) > 1 else each.task.name
        found.setdefault(name, []).append(each)
    return found


def suite_parts(runs: Sequence[Run], measured: Sequence[Measured]) -> list[tuple[str, list[str]]]:
    """Heading and content of the section of each suite."""
    sections = []
    for suite in dict.fromkeys(each.suite_name for each in measured):
        here = [each for each in measured if each.suite_name == suite]
        parts = [note("Under each value: its 95% interval, a bootstrap over the rows of the task.")]
        if not any(each.task.intervals for each in here):
            parts = []
        for kind in dict.fromkeys(each.task.kind for each in here):
            of_kind = [each for each in here if each.task.kind == kind]
            parts.append(subheading(_kind_name(kind)))
            parts.append(_kind_table(runs, of_kind))
        parts += [note(line) for line in _remarks(runs, here)]
        parts.append(details("How it was measured", _how(here)))
        sections.append((f"Results of {suite}", parts))
    return sections


def _kind_name(kind: str) -> str:
    words = "".join(c if c.isalnum() else " " for c in kind).strip()
    return words[:1].upper() + words[1:]


def _kind_table(runs: Sequence[Run], measured: Sequence[Measured]) -> str:
    columns = list(dict.fromkeys(split_way(m)[1] for each in measured for m in each.task.metrics))
    counted = all("num_images" in each.task.metrics for each in measured)
    rows: list[list[str | Cell]] = []
    for each in measured:
        ways = dict.fromkeys(split_way(metric)[0] for metric in each.task.metrics)
        # What is of no direction stands in the row of the first one.
        for number, way in enumerate([way for way in ways if way] or [""]):
            cells: dict[str, str | Cell] = {}
            for metric, value in each.task.metrics.items():
                own, name = split_way(metric)
                if own == way or (not own and number == 0):
                    text = show_metric(metric, value)
                    interval = show_interval(each.task.intervals.get(metric))
                    cells[name] = Cell(text, interval) if interval else text
            rows.append(
                [
                    f"{each.task.name}  {way}".strip(),
                    *([each.run.name] if len(runs) > 1 else []),
                    *(cells.get(column, "") for column in columns),
                    *([] if counted else [_count(each.task.data.get("samples"))]),
                ]
            )
    names = ["task", *(["run"] if len(runs) > 1 else [])]
    header = [*names, *columns, *([] if counted else ["samples"])]
    return table(header, rows, texts=range(len(names)))


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"


def _remarks(runs: Sequence[Run], measured: Sequence[Measured]) -> Iterable[str]:
    """What the reader of the metrics must know, each sentence once."""
    lines: dict[str, None] = {}
    for each in measured:
        where = each.title(runs)
        skipped = each.task.data.get("skipped")
        if isinstance(skipped, dict) and skipped:
            told = ", ".join(f"{count:,} × {reason}" for reason, count in skipped.items())
            lines[f"{where}: left out {told}."] = None
        for line in each.task.data.get("notes") or []:
            lines[f"{where}: {line}"] = None
    for task in dict.fromkeys(each.task.name for each in measured):
        hashes = {each.task.data.get("sha256") for each in measured if each.task.name == task}
        if len(hashes) > 1:
            lines[f"{task}: the runs were not evaluated on the same samples."] = None
    return lines


def _how(measured: Sequence[Measured]) -> str:
    blocks = []
    for suite in {id(each.suite): each.suite for each in measured}.values():
        about = suite.about
        model, source = about.get("model") or {}, about.get("suite") or {}
        versions = ", ".join(f"{k} {v}" for k, v in (about.get("versions") or {}).items())
        facts = {
            "results": suite.folder if suite.tables else None,
            "model": model.get("path"),
            "SHA-256 of its weights": model.get("sha256"),
            "suite": source.get("path"),
            "SHA-256 of the suite": source.get("sha256"),
            "command": about.get("command"),
            "created": about.get("created"),
            "device": about.get("device"),
            "precision": about.get("precision"),
            "ranks": about.get("ranks"),
            "versions": versions,
        }
        lines = [f"{name}: {value}" for name, value in facts.items() if value]
        for task in suite.tasks.values():
            path = task.data.get("path")
            path = ", ".join(map(str, path)) if isinstance(path, list) else path
            lines.append(f"data of {task.name}: {path}, SHA-256 {task.data.get('sha256')}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)

"""A run's folder, or a model's → what is on disk of it: records, config, results of suites."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from clipkit.errors import CheckpointError
from clipkit.evaluation.results import RESULTS, SuiteResults, TaskResult, read_results


@dataclass(slots=True)
class Run:
    """What a report knows of a run.

    Attributes:
        folder: the run's, or the model's where there is no run.
        name: its folder's, with as many folders above it as tell it from the other runs.
        records: of ``metrics.jsonl``, in their order.
        config: of ``config.yaml``; empty where there is none.
        config_text: the file.
        status: of ``status.json``.
        suites: the results of suites by their name.
        faults: what is there and cannot be read, a sentence each.
    """

    folder: Path
    name: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    suites: dict[str, SuiteResults] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl`` of a kind: start, train, eval or spike."""
        return [record for record in self.records if record.get("kind") == kind]

    def model_folder(self) -> Path:
        """Where its model is, or would be."""
        inside = self.folder / "model"
        return inside if inside.is_dir() else self.folder


def read_runs(folders: Sequence[str | Path], *, strict: bool = False) -> list[Run]:
    """Reads what is there of each; a folder that is given twice is one.

    Args:
        folders: of runs or models; the ``model`` of a run means the run.
        strict: refuse what is no run, and what is damaged.

    Raises:
        CheckpointError: if ``strict``.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        path = Path(folder)
        if path.resolve().name == "model" and (path.parent / "config.yaml").is_file():
            path = path.parent
        run = found.setdefault(path.resolve(), _read_run(path))
        if strict and not path.is_dir():
            problem = "a file, not a folder" if path.exists() else "no such folder"
            raise CheckpointError(f"{path}: {problem}; name a run's folder, or a model's")
        if strict and run.faults:
            raise CheckpointError(run.faults[0])
        if strict and not _is_run(run):
            raise CheckpointError(
                f"{path}: this is no run and no model: there is no metrics.jsonl, config.yaml, "
                "status.json, config.json or eval/*/results.json in it; name a run's folder"
            )
    for path, name in zip(found, _names(list(found)), strict=True):
        found[path].name = name
    return list(found.values())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a line that was cut by a kill is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and is_finite(record.get("step")):
            records.append(record)
    return records


def split_name(record: Mapping[str, Any]) -> str:
    """How a record of evaluation is named: by its split, and whose weights were evaluated."""
    return f"{record.get('split')} (EMA)" if record.get("ema") else str(record.get("split"))


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether this is a number, and a finite one."""
    # An int may be larger than any float.
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max


def value_at(config: dict[str, Any], key: str) -> Any:
    """The value at a dotted key; None where it is not there."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _is_run(run: Run) -> bool:
    names = ("metrics.jsonl", "config.yaml", "status.json", "config.json", "model")
    return bool(run.suites) or any((run.folder / name).exists() for name in names)


def _names(folders: Sequence[Path]) -> list[str]:
    """The end of each path that no other has."""
    names = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        for length in range(1, len(folder.parts) + 1):
            end = folder.parts[-length:]
            if all(other.parts[-length:] != end for other in others):
                break
        names.append("/".join(end).replace(os.sep * 2, "/") or str(folder))
    return names


def _read_run(folder: Path) -> Run:
    run = Run(folder)
    run.records = read_metrics(folder / "metrics.jsonl")
    lines = _lines(folder / "metrics.jsonl")
    if lines > 1 and not run.records:
        run.faults.append(
            f"{folder / 'metrics.jsonl'}: not one of its {lines:,} lines is a record; restore it "
            "from a copy, or remove it"
        )
    path = folder / "config.yaml"
    if path.is_file():
        run.config_text = path.read_text(encoding="utf-8", errors="replace")
        try:
            tree = yaml.safe_load(run.config_text)
        except (yaml.YAMLError, RecursionError):
            tree = None
        if isinstance(tree, dict):
            run.config = tree
        else:
            run.faults.append(f"{path}: this is no config; restore it from a copy, or remove it")
    path = folder / "status.json"
    if path.is_file():
        run.status = _read_json(path, run.faults) or {}
    _read_suites(run)
    return run


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _read_json(path: Path, faults: list[str]) -> dict[str, Any] | None:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        faults.append(f"{path}: it cannot be read; restore it from a copy, or remove it")
        return None
    return tree


def _read_suites(run: Run) -> None:
    places = sorted((run.folder / "eval").glob(f"*/{RESULTS}"))
    inside = run.folder / "model" / "eval"
    places += sorted(inside.glob(f"*/{RESULTS}"))
    if (run.folder / RESULTS).is_file():  # where --out put them
        places.append(run.folder / RESULTS)
    for path in places:
        try:
            found = read_results(path.parent)
        except CheckpointError as error:
            run.faults.append(str(error))
            continue
        parts = [found.about.get(name, {}) for name in ("model", "suite", "versions")]
        if all(isinstance(each, dict) for each in parts) and all(
            map(_is_whole, found.tasks.values())
        ):
            run.suites.setdefault(path.parent.name, found)
        else:
            run.faults.append(f"{path}: not the results of a suite; evaluate again")


def _is_whole(task: TaskResult) -> bool:
    """Whether what a page shows of a task is of the right types."""
    data = task.data if isinstance(task.data, dict) else {"skipped": None}
    skipped = data.get("skipped", {})
    return (
        isinstance(task.kind, str)
        and isinstance(skipped, dict)
        and all(isinstance(count, int) for count in skipped.values())
        and isinstance(data.get("notes", []), list)
        and isinstance(data.get("sha256", ""), str)
    )

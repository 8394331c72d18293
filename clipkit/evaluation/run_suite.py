"""A suite + a model → the result of each task, by all ranks together; and what is written."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit._version import __version__
from clipkit.data import Reader
from clipkit.digest import weights_sha256
from clipkit.encoder import Encoder
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.results import TaskResult, write_results
from clipkit.evaluation.statistics import bootstrap_interval, recall_interval
from clipkit.evaluation.suite import Suite


def run_suite(
    suite: Suite, job: Job, remark_on: Callable[[Reader], str] = lambda _: ""
) -> Iterator[TaskResult | None]:
    """The result of each task, in the order of the suite; None on ranks but 0. Its data are open;
    all ranks must call it and go to the end.

    Args:
        suite: the tasks.
        job: the model and the ranks.
        remark_on: says of the source that a task judges what the reader of its metrics must know,
            or nothing; on rank 0.

    Raises:
        ClipkitError: a task cannot be run; the same on all ranks, said by rank 0.
    """
    for task in suite.tasks:
        with suite.naming(task):
            result = task.run(job)
            if result is not None and (remark := remark_on(task.readers[0])):
                result.data["notes"].append(remark)
            yield result


def headline(suite: Suite, result: TaskResult) -> str:
    """The metrics of a task in one line."""
    task = next(each for each in suite.tasks if each.name == result.name)
    shown = [name for name in task.headline if name in result.metrics]
    told = "  ".join(f"{name} {result.metrics[name]:.3f}" for name in shown)
    return f"{result.name}: {told}"


def remarks(result: TaskResult) -> list[str]:
    """What the reader of a task's metrics must know, a line each."""
    left_out = [
        f"left out {count:,} × {reason}" for reason, count in result.data["skipped"].items()
    ]
    return [f"{result.name}: {each}" for each in [*result.data["notes"], *left_out]]


def run_folder(model: Path) -> Path:
    """The run that a model's folder is of, or that folder."""
    return model.parent if model.name == "model" else model


def save_results(
    out: Path,
    table: Path,
    suite: Suite,
    results: Sequence[TaskResult],
    *,
    encoder: Encoder,
    command: str,
    ranks: int,
    weights: Path,
) -> None:
    """Writes what a suite has measured.

    Args:
        out: the folder.
        table: the CSV that lines are appended to.
        suite: which.
        results: of all its tasks.
        encoder: the model.
        command: that did it.
        ranks: that did it.
        weights: the folder with the weights' files.

    Raises:
        CheckpointError: it cannot be written.
    """
    for each in results:
        add_intervals(each)
    about = about_evaluation(suite, encoder=encoder, command=command, ranks=ranks, weights=weights)
    write_results(out, results, about, table=table)


def about_evaluation(
    suite: Suite, *, encoder: Encoder, command: str, ranks: int, weights: Path
) -> dict[str, Any]:
    """``SuiteResults.about``; see ``save_results``."""
    return {
        "model": {
            "path": str(weights),
            "sha256": weights_sha256(weights),
            "parameters": sum(p.numel() for p in encoder.model.parameters()),
        },
        "suite": {"path": suite.path, "sha256": suite.sha256},
        "command": command,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "device": str(encoder.device),
        "precision": str(encoder.dtype).removeprefix("torch."),
        "ranks": ranks,
    }


def add_intervals(result: TaskResult) -> None:
    """A 95% bootstrap interval for each metric that is a mean over rows, or over classes of rows.

    Not for ``ece`` and ``mAP``: that of a resample is larger by its very making (sampling noise
    adds to a calibration error, a row drawn twice follows itself in a ranking), so that its
    quantiles do not hold the truth as often as they say.
    """
    samples = result.samples
    result.intervals = {
        name: bootstrap_interval(np.asarray(samples[name]))
        for name in result.metrics
        if name in samples
    }
    if "mean_per_class_recall" in result.metrics:
        right, labels = np.asarray(samples["top1"]), np.asarray(samples["label"])
        result.intervals["mean_per_class_recall"] = recall_interval(right, labels)


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {
        "clipkit": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }

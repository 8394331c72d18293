"""``clipkit eval MODEL SOURCE`` where the source has classes: zero-shot accuracy, as a suite's."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from clipkit.atomic import write_json
from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import Reader, open_source
from clipkit.data.folder import FolderReader
from clipkit.data.layouts.find import NumberedFoldersError
from clipkit.display.arguments import source_options
from clipkit.display.console import (
    default_workers,
    format_table,
    plain_warnings,
    remark,
    shorten,
    source_name,
)
from clipkit.display.source_line import remark_source
from clipkit.encoder import Encoder, load
from clipkit.errors import ClipkitError, ConfigError, DataError
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.report import write_report
from clipkit.evaluation.report.tables import metric_name, show_interval, show_metric
from clipkit.evaluation.results import SuiteResults, TaskResult
from clipkit.evaluation.run_suite import about_evaluation, add_intervals, remarks, run_folder
from clipkit.evaluation.standard_sets import wds_keys
from clipkit.evaluation.suite import Suite, build_task
from clipkit.evaluation.tasks.zero_shot import ZeroShotTask
from clipkit.evaluation.trained_on import TrainedOn


def open_pairs(source: SourceConfig, args: argparse.Namespace) -> Reader | None:
    """The source's reader, where retrieval is to be measured on it; None where its classes are.

    ``--task`` decides, then the options that only one of the two has, then the source: captions
    mean retrieval; names of folders, ``.cls`` members, class labels and a column of labels
    without one of captions mean classification.

    Raises:
        ConfigError: options of both tasks are given.
        DataError: the source has neither captions nor classes, or cannot be read.
    """
    of_classes = [name for name in ("label", "templates") if getattr(args, name) is not None]
    of_pairs = [name for name in ("caption", "captions", "gallery") if getattr(args, name)]
    task = args.task or ("zero_shot" if of_classes else "retrieval" if of_pairs else None)
    if task is None and args.class_names is not None:
        task = "zero_shot"
    if task is not None:
        if odd := of_pairs if task == "zero_shot" else of_classes:
            other = "retrieval" if task == "zero_shot" else "zero_shot"
            raise ConfigError(
                f"--{odd[0]}: goes with --task {other}, and this is {task}; leave one of them out"
            )
        return open_source(source) if task == "retrieval" else None
    if "class_names" in wds_keys(source.path):
        return None
    try:
        reader = open_source(source)
    except NumberedFoldersError:
        return None
    except DataError:
        if _has_labels(source):
            return None
        raise
    return None if reader.understood.classes else reader


def _has_labels(source: SourceConfig) -> bool:
    """Whether a source without captions has labels. Folders are none of these: a reader that takes
    their names for captions says so, and one that refuses them knows why."""
    try:
        reader = open_source(LabelSource(**vars(source)), progress=False)
    except ClipkitError:
        return False
    return not (isinstance(reader, FolderReader) and reader.understood.classes)


def run_zero_shot(args: argparse.Namespace) -> int:
    """Measures accuracy on the classes of a source and prints a table."""
    data = source_options(args)
    keys = {
        "label": args.label,
        "class_names": data.pop("class_names", None),
        "templates": args.templates,
    }
    given: dict[str, Any] = {key: value for key, value in keys.items() if value is not None}
    given["data"] = {"path": args.source, **data}
    with plain_warnings():
        task = build_task(source_name(args.source), {"kind": "zero_shot", **given})
        assert isinstance(task, ZeroShotTask)
        task.open(progress=True)
        remark_source(task.data.reader)
        classes = list(task.data.classes)
        remark(
            f"zero-shot classification into {len(classes):,} classes ({_some(classes)}), where "
            f"guessing is right in {1 / len(classes):.1%}; templates: {_some(task.templates)}; "
            "--task retrieval measures retrieval instead"
        )
        encoder = load(args.model)
        workers = default_workers() if args.workers is None else args.workers
        result = task.run(Job(encoder, args.batch_size, workers, progress=True))
    assert result is not None  # as there is one rank
    if said := TrainedOn.of_model(encoder).remark(task.data.reader):
        result.data["notes"].append(said)
    add_intervals(result)
    print(_table(result, len(classes)))
    for line in remarks(result):
        remark(line)
    if args.json:
        record = {
            "model": str(args.model),
            "source": args.source,
            "task": "zero_shot",
            "label": args.label,
            "class_names": args.class_names,
            "templates": task.templates,
            "classes": len(classes),
            "metrics": result.metrics,
            "intervals": {name: list(ends) for name, ends in result.intervals.items()},
            "data": result.data,
        }
        write_json(Path(args.json), record)
    if args.html:
        suites = {result.name: _as_suite(task, result, encoder, given)}
        write_report(run_folder(encoder.folder), suites=suites, out=Path(args.html))
        remark(f"the page is {args.html}")
    return 0


def _some(names: list[str]) -> str:
    return shorten(", ".join(names), 60)


def _table(result: TaskResult, classes: int) -> str:
    """A line a metric, over how many images and classes."""
    counts = [f"{result.data['samples']:,}", f"{classes:,}"]
    rows = [
        [
            metric_name(metric),
            show_metric(metric, value),
            show_interval(result.intervals.get(metric)),
            *counts,
        ]
        for metric, value in result.metrics.items()
    ]
    return format_table(["", "value", "95% interval", "images", "classes"], rows, right=(1, 3, 4))


def _as_suite(
    task: ZeroShotTask, result: TaskResult, encoder: Encoder, keys: dict[str, Any]
) -> SuiteResults:
    """The result as that of a suite of one task, for the report."""
    told = json.dumps(keys, sort_keys=True).encode()
    suite = Suite(task.name, hashlib.sha256(told).hexdigest(), [task])
    command = shlex.join(["clipkit", *sys.argv[1:]])
    folder = encoder.folder
    about = about_evaluation(suite, encoder=encoder, command=command, ranks=1, weights=folder)
    return SuiteResults(folder, about, {result.name: result}, {})

"""``clipkit eval MODEL --suite FILE``: on one process or under a launcher."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from clipkit.display.arguments import source_options
from clipkit.display.console import default_workers, format_table, plain_warnings, remark
from clipkit.encoder import Encoder, load
from clipkit.errors import ConfigError
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.results import TABLE, TaskResult, check_places
from clipkit.evaluation.run_suite import (
    remarks,
    run_folder,
    run_suite,
    save_results,
)
from clipkit.evaluation.shares import at_rank_zero, rank_zero_first
from clipkit.evaluation.suite import Suite, load_suite
from clipkit.evaluation.trained_on import TrainedOn
from clipkit.launcher import launched_device, launched_share

_WAIT = timedelta(hours=12)  # for a rank that embeds its share, or for what rank 0 computes


def run_suite_command(args: argparse.Namespace) -> int:
    """Measures a model by all tasks of a suite, prints a table, writes the results."""
    for option, given in (
        *((f"--{key.replace('_', '-')}", value) for key, value in source_options(args).items()),
        ("--gallery", args.gallery),
        ("--task", args.task),
        ("--label", args.label),
        ("--templates", args.templates),
        ("--json", args.json),
        ("--html", args.html),
    ):
        if given:
            raise ConfigError(
                f"{option}: it goes with a source; with --suite, tasks have keys of their own and "
                "results are written to --out"
            )
    rank, ranks = launched_share()
    with _together(ranks), plain_warnings():
        suite = rank_zero_first(lambda: load_suite(args.suite), ranks)
        rank_zero_first(lambda: suite.open(progress=rank == 0), ranks)
        if rank == 0:
            suite.remark_sources()
        encoder = rank_zero_first(lambda: load(args.model, device=launched_device()), ranks)
        out, table = at_rank_zero(lambda: _places(args.out, encoder, suite), ranks) or (None, None)
        job = Job(
            encoder,
            batch_size=args.batch_size,
            workers=default_workers() if args.workers is None else args.workers,
            rank=rank,
            world_size=ranks,
            progress=True,
        )
        results = []
        trained_on = TrainedOn.of_model(encoder) if rank == 0 else TrainedOn(None, told=False)
        for result in run_suite(suite, job, trained_on.remark):
            if result is not None:
                results.append(result)
                for line in remarks(result):
                    remark(line)

        def save() -> None:
            assert out is not None
            assert table is not None
            command = shlex.join(["clipkit", *sys.argv[1:]])
            save_results(
                out,
                table,
                suite,
                results,
                encoder=encoder,
                command=command,
                ranks=ranks,
                weights=encoder.folder,
            )
            print(_table(results))
            remark(f"the results are in {out}")

        at_rank_zero(save, ranks)
    return 0


def _places(out: str | None, encoder: Encoder, suite: Suite) -> tuple[Path, Path]:
    """The folder of the results, made, and the CSV of them and earlier ones."""
    if out is not None:
        folder, table = Path(out), Path(out) / TABLE
    else:
        if not Path(encoder.name or "").is_dir():
            raise ConfigError(
                f"--out: {encoder.name} is from the hub; name a folder for the results"
            )
        home = run_folder(encoder.folder) / "eval"
        folder, table = home / suite.name, home / TABLE
    check_places(folder, table)
    return folder, table


@contextlib.contextmanager
def _together(ranks: int) -> Iterator[None]:
    """Ranks that a launcher has started find one another."""
    if ranks == 1:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _table(results: list[TaskResult]) -> str:
    """A line a metric."""
    rows = []
    for each in results:
        for number, (metric, value) in enumerate(each.metrics.items()):
            shown = f"{value:,.0f}" if metric.startswith("num_") else f"{value:.4g}"
            low, high = each.intervals.get(metric, (None, None))
            between = "" if low is None else f"{low:.4g} – {high:.4g}"
            first = ["", ""] if number else [each.name, each.kind]
            rows.append([*first, metric, shown, between])
    return format_table(["task", "kind", "metric", "value", "95% interval"], rows, right=[3])

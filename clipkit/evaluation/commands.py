"""``clipkit eval`` and ``clipkit classify``: arguments, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipkit.display.arguments import (
    add_source_arguments,
    count,
    positive,
    source_from,
)
from clipkit.imports import quick_imports

if TYPE_CHECKING:
    from clipkit.evaluation.zero_shot_result import ZeroShotResult


def add_eval_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit eval``."""
    parser.add_argument("model", help="a run, or a model's folder or hub name")
    parser.add_argument(
        "source", nargs="?", help="images with captions or classes: a folder, file, glob or URL"
    )
    parser.add_argument(
        "--task",
        choices=("retrieval", "zero_shot"),
        help="what to measure; by itself retrieval where there are captions, else zero-shot "
        "classification",
    )
    parser.add_argument(
        "--label", metavar="FIELD", help="the field with the classes, e.g. cls or json.species"
    )
    parser.add_argument(
        "--templates",
        metavar="TEXT",
        help="what stands around the name of a class: 'a photo of a {}', or a set, e.g. photo",
    )
    parser.add_argument(
        "--suite", metavar="FILE", help="in place of a source: a YAML that names tasks and data"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="of a suite's results; RUN/eval/SUITE where it is left out"
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--captions",
        choices=("first", "join"),
        help="of several captions of a row: the first alone, or one text of them all; without it "
        "each is a text",
    )
    parser.add_argument(
        "--gallery",
        action="extend",
        nargs="+",
        default=[],
        metavar="SOURCE",
        help="more images that the right ones must be told apart from",
    )
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N")
    parser.add_argument("--workers", type=count, metavar="N", help="processes that read images")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there, too")
    parser.add_argument("--html", metavar="FILE", help="write a page with searches there, too")
    parser.set_defaults(run=run_eval)


def run_eval(args: argparse.Namespace) -> int:
    """Measures retrieval in both directions and prints a table; or the tasks of a suite."""
    from pathlib import Path

    from clipkit.errors import ConfigError

    if (args.source is None) == (args.suite is None):
        raise ConfigError("eval: give a source, or --suite FILE, and not both")
    if args.suite is not None:
        with quick_imports():
            from clipkit.evaluation.suite_command import run_suite_command

        return run_suite_command(args)
    if args.out is not None:
        raise ConfigError("--out: it goes with --suite; --json and --html name files")

    with quick_imports():
        from clipkit.atomic import write_json
        from clipkit.config.schema import SourceConfig
        from clipkit.data import open_source
        from clipkit.display.console import (
            default_workers,
            format_table,
            plain_warnings,
            remark,
            remark_cut,
            source_name,
        )
        from clipkit.display.source_line import remark_source
        from clipkit.encoder import load
        from clipkit.errors import DataError
        from clipkit.evaluation.caveats import IN_TRAINING, caveats, is_measured
        from clipkit.evaluation.embedding import Job
        from clipkit.evaluation.gallery import retrieval_gallery
        from clipkit.evaluation.report import metric_rows, write_report
        from clipkit.evaluation.retrieval import embed_retrieval_set, summarise
        from clipkit.evaluation.run_suite import run_folder
        from clipkit.evaluation.trained_on import TrainedOn
        from clipkit.evaluation.zero_shot_command import open_pairs, run_zero_shot

    source = source_from(args, args.source, captions=args.captions or "random")
    reader = open_pairs(source, args)
    if reader is None:
        return run_zero_shot(args)
    galleries = [open_source(SourceConfig(path=path, caption="none")) for path in args.gallery]
    for each in [reader, *galleries]:
        remark_source(each)
    if args.task is None and args.caption is None:
        remark("retrieval, as there are captions; --task zero_shot measures classification instead")
    encoder = load(args.model)
    workers = default_workers() if args.workers is None else args.workers
    job = Job(encoder, args.batch_size, workers, progress=True)
    with plain_warnings():
        collected = embed_retrieval_set(job, reader, gallery=galleries)
    assert collected is not None  # as there is one rank
    metrics = summarise(collected, device=encoder.device)
    trained_on = TrainedOn.of_model(encoder)
    if seen := trained_on.count(reader):
        metrics[IN_TRAINING] = seen
    notes = caveats(metrics)
    if seen is None and (remarked := trained_on.remark(reader)):
        notes.append(remarked)
    if not is_measured(metrics):
        raise DataError(f"{args.source}: {notes[0]}")
    header, rows = metric_rows({"": metrics})
    table = [[row[0].strip(), *row[1:]] for row in rows]
    print(format_table(header, table, right=range(1, len(header))))
    if collected.skipped:
        first = collected.skipped[0]
        remark(f"{len(collected.skipped)} samples skipped; {first.origin}: {first.reason}")
    remark_cut(collected.num_truncated, len(collected.captions), encoder.preprocess.context_length)
    for note in notes:
        remark(f"{args.source}: {note}")
    if args.json:
        record = {
            "model": str(args.model),
            "source": args.source,
            "caption": args.caption,
            "captions": args.captions,
            "gallery": args.gallery,
            "metrics": metrics,
            "notes": notes,
        }
        write_json(Path(args.json), record)
    if args.html:
        # Other texts or more images are another question, which the name must tell.
        name = source_name(args.source)
        name += "".join(f", {each}" for each in (args.caption, args.captions) if each)
        shown = retrieval_gallery(
            collected, [reader, *galleries], title=f"Searches with the texts of {name}"
        )
        name += f", among {metrics['num_images']:,.0f} images" if args.gallery else ""
        write_report(
            run_folder(encoder.folder),
            results={name: metrics},
            galleries=[shown],
            out=Path(args.html),
        )
        remark(f"the page is {args.html}")
    return 0


def add_classify_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit classify``."""
    parser.add_argument("model", help="a run, or a model's folder or hub name")
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="a file, glob, or folder of them"
    )
    parser.add_argument(
        "--labels",
        required=True,
        metavar="A,B,C|FILE",
        help="the classes in words, between commas, in quotes where one holds a comma; or a file: "
        "one a line, or a CSV, JSON or YAML of labels and names",
    )
    parser.add_argument(
        "--templates",
        metavar="TEXT",
        help="what stands around a label, e.g. 'a photo of a {}', or the name of a set: none, "
        "photo, art, sketch, satellite, texture, medical, microscope, product, scene, action, "
        "text",
    )
    parser.add_argument(
        "--other",
        type=float,
        metavar="P",
        help="below this probability of its likeliest label, from 0 to 1, an image is other",
    )
    parser.add_argument("--urls", action="store_true", help="fetch images that are given as URLs")
    parser.add_argument("-k", type=positive, default=3, metavar="N", help="labels an image")
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N")
    parser.add_argument("--json", action="store_true", help="print a JSON object an image")
    parser.set_defaults(run=run_classify, rest="images")


def run_classify(args: argparse.Namespace) -> int:
    """Prints the likeliest labels of each image; images that cannot be read are named, skipped
    and counted."""
    import sys

    with quick_imports():
        from clipkit.data.label_file import read_labels
        from clipkit.display.console import plain_warnings, remark
        from clipkit.encoder import load
        from clipkit.errors import ConfigError, DataError
        from clipkit.evaluation.zero_shot import ZeroShotClassifier

    names = _image_files(args.images)
    given = read_labels(args.labels)
    labels = given.labels()
    if len(labels) == 1:
        raise ConfigError(
            f"--labels: {next(iter(labels))!r} alone, which every image would be; give at least "
            "two, between commas or as lines of a file"
        )
    for note in given.notes:
        remark(note)
    encoder = load(args.model)
    with plain_warnings():
        classifier = ZeroShotClassifier(encoder, labels, args.templates, other=args.other)
    failed = 0
    # On a terminal the results themselves are the progress.
    for result in classifier.stream(
        names, batch_size=args.batch_size, urls=args.urls, progress=not sys.stdout.isatty()
    ):
        _print_result(result, args.k, width=max(map(len, names)), as_json=args.json)
        faults = [fault for fault in result.faults if fault is not None]
        failed += len(faults)
        for fault in faults:
            remark(fault)
    if failed:
        remark(f"{failed} of {len(names)} images cannot be read and were skipped")
    if failed == len(names):
        raise DataError(f"{names[0]}: not one of {len(names)} images can be read")
    return 0


def _image_files(names: Sequence[str]) -> list[str]:
    """Folders → the images in them; globs → what they match. Of a folder it says how many images it
    has, and which other files are left out.

    Raises:
        DataError: a glob matches nothing, or there is no image in all of them.
    """
    from pathlib import Path

    from clipkit.data.files import expand
    from clipkit.display.console import remark
    from clipkit.evaluation.images import folder_images

    found: list[str] = []
    for name in [each for given in names for each in expand(given)]:
        if Path(name).is_dir():
            images, others = folder_images(name)
            found += images
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(6))
            rest = f" · left out {others.total():,}: {kinds}" if others else ""
            remark(f"{name}: {len(images):,} images · first: {Path(images[0]).name}{rest}")
        else:
            found.append(name)  # what is missing is named when it is its turn
    return found


def _print_result(result: ZeroShotResult, k: int, *, width: int, as_json: bool) -> None:
    """A line an image that can be read."""
    import json

    from clipkit.evaluation.zero_shot_result import format_result

    for each, line in zip(result, format_result(result, k=k, width=width).split("\n"), strict=True):
        if each.fault is not None:
            continue
        if as_json:
            scores = [{"label": label, "score": score} for label, score in each.top(k)]
            record = {"image": each.name, "label": each.label, "labels": scores}
            line = json.dumps(record, ensure_ascii=False)
        print(line)

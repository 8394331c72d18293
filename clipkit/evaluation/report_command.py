"""``clipkit report``: arguments, and what is printed."""

from __future__ import annotations

import argparse


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit report``."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or a model's; several are compared"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the page to write; default: report.html in the folder of one run, here for several",
    )
    parser.add_argument(
        "--figures",
        metavar="FOLDER",
        help="write each figure there, too: as SVG, and as PNG with the extra [figures]",
    )
    parser.add_argument(
        "--no-model",
        action="store_true",
        help="load no model: no similarities, and no searches in what it was evaluated on",
    )
    parser.set_defaults(run=run_report, rest="runs")


def run_report(args: argparse.Namespace) -> int:
    """Writes the page anew from what is on disk, and says where it is."""
    from clipkit.display.console import plain_warnings, remark
    from clipkit.display.figure import PNG_EXTRA, can_write_png
    from clipkit.evaluation.report import write_report

    out = args.out
    if out is None and len(args.runs) > 1:
        out = "report.html"
    with plain_warnings():
        path = write_report(
            args.runs,
            out=out,
            figures=args.figures,
            load_models=not args.no_model,
            strict=True,
        )
    if args.figures and not can_write_png():
        remark(f"the figures are SVG files alone; for PNG files too: {PNG_EXTRA}")
    print(path)
    return 0

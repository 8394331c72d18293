"""``clipkit data filter``: arguments, and what is printed."""

from __future__ import annotations

import argparse

from clipkit.display.arguments import add_source_arguments, count, positive, source_from


def add_filter_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit data filter``."""
    add_source_arguments(parser)
    parser.add_argument("--workers", type=count, metavar="N", help="processes that decode")
    parser.add_argument("out", help="the list to write, a .parquet file")
    parser.add_argument("--min-edge", type=positive, metavar="PIXELS", help="of the shorter edge")
    parser.add_argument("--max-aspect", type=float, metavar="R", help="longer edge over shorter")
    parser.add_argument("--min-caption", type=count, metavar="N", help="characters")
    parser.add_argument("--max-caption", type=count, metavar="N", help="characters")
    parser.add_argument(
        "--duplicates",
        choices=("exact", "near", "embedding"),
        help="of samples that are the same byte for byte keep the first; near, embedding: and of "
        "images that look the same, or are the same to the model; several captions of an image "
        "stay or go together",
    )
    parser.add_argument(
        "--near-bits", type=count, default=8, metavar="N",
        help="of 128, in which images that look the same may differ (8)",
    )  # fmt: skip
    parser.add_argument(
        "--similarity", type=float, default=0.95, metavar="COS",
        help="from which images are the same to the model (0.95)",
    )  # fmt: skip
    parser.add_argument("--model", metavar="FOLDER", help="a run, a model's folder or hub name")
    parser.add_argument(
        "--min-score", type=float, metavar="COS", help="of image and caption, by the model"
    )
    parser.add_argument(
        "--keep", type=float, metavar="SHARE", help="of what is left, by score: 0.3 keeps 30%%"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a list that is there")
    parser.set_defaults(run=run_filter)


def run_filter(args: argparse.Namespace) -> int:
    """Writes a list, and says what is left out and why."""
    import numpy as np

    from clipkit.config.schema import FilterConfig
    from clipkit.display.console import default_workers, format_table, plain_warnings, remark
    from clipkit.retrieval.filter import Conditions, filter_source

    conditions = Conditions(
        sample=FilterConfig(
            min_edge=args.min_edge,
            max_aspect=args.max_aspect,
            min_caption=args.min_caption,
            max_caption=args.max_caption,
        ),
        duplicates=args.duplicates,
        near_bits=args.near_bits,
        similarity=args.similarity,
        min_score=args.min_score,
        keep=args.keep,
    )
    with plain_warnings():
        chosen = filter_source(
            source_from(args, args.source, count="index"),
            args.out,
            conditions,
            model=args.model,
            workers=default_workers() if args.workers is None else args.workers,
            overwrite=args.overwrite,
        )
    for damage in chosen.damage:
        remark(damage)
    rows = [("kept", len(chosen.rows)), *chosen.dropped.most_common()]
    shown = [[what, f"{n:,}", f"{n / chosen.samples:.1%}"] for what, n in rows]
    print(format_table([args.source, "number", "share"], shown, right=[1, 2]))
    if chosen.all_scores is not None:
        low, middle, high = np.quantile(chosen.all_scores, [0.05, 0.5, 0.95])
        print(f"\nscores: 5% {low:.3f}, median {middle:.3f}, 95% {high:.3f}", end="")
        print(f"; kept from {chosen.threshold:.3f} on")
    print(f"\n{args.out}: {len(chosen.rows):,} of {chosen.samples:,} samples")
    return 0

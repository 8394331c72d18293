"""``clipkit embed``: arguments, and what is printed."""

from __future__ import annotations

import argparse

from clipkit.display.arguments import count, positive

_NO_CAPTION = ("no caption", "empty caption")  # reasons to leave a sample out


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit embed``."""
    parser.add_argument("model", help="a run, or a model's folder or hub name")
    parser.add_argument("source", help="images, with captions or without: a folder, file, glob…")
    parser.add_argument("out", help="the folder to write the embeddings to")
    parser.add_argument(
        "--caption", metavar="FIELD", help="the field with the captions; none: images only"
    )
    parser.add_argument("--batch-size", type=positive, default=256, metavar="N")
    parser.add_argument("--workers", type=count, metavar="N", help="processes that read images")
    parser.add_argument("--overwrite", action="store_true", help="replace a store that is there")
    parser.set_defaults(run=run_embed)


def run_embed(args: argparse.Namespace) -> int:
    """Writes a store, and says what is in it."""
    from clipkit.config.schema import SourceConfig
    from clipkit.display.console import default_workers, plain_warnings, remark, remark_cut
    from clipkit.retrieval.embed import embed

    with plain_warnings():
        store = embed(
            args.model,
            SourceConfig(path=args.source, caption=args.caption),
            args.out,
            batch_size=args.batch_size,
            workers=default_workers() if args.workers is None else args.workers,
            overwrite=args.overwrite,
        )
    for reason, number in store.manifest["skipped"].items():
        remedy = "; --caption none embeds all images" if reason in _NO_CAPTION else ""
        remark(f"{args.source}: left out {number:,} × {reason}{remedy}")
    remark_cut(store.manifest["num_truncated"], len(store), store.manifest["context_length"])
    if args.caption is None and not store.text_embeds:
        remark(f"{args.source}: no captions are there, so the store is of images only")
    kinds = "images and captions" if store.text_embeds else "images"
    print(f"{args.out}: {kinds} of {len(store):,} samples, {store.dim} numbers each")
    return 0

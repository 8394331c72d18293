"""``clipkit embed``: arguments, and what is printed."""

from __future__ import annotations

import argparse

from clipkit.display.arguments import add_source_arguments, count, positive, source_from
from clipkit.imports import quick_imports

_NO_CAPTION = ("no caption", "empty caption")  # reasons to leave a sample out


def add_embed_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit embed``."""
    parser.add_argument("model", help="a run, or a model's folder or hub name")
    parser.add_argument("source", help="images, with captions or without, or texts: see docs/store")
    parser.add_argument("out", help="the folder of the store; run again, it is gone on with")
    add_source_arguments(parser)
    parser.add_argument("--only", choices=("images", "texts"), help="embed these alone")
    parser.add_argument("--batch-size", type=positive, metavar="N", help="samples at a time (256)")
    parser.add_argument(
        "--part-rows", type=positive, metavar="N", help="samples a part: what one rank does at once"
    )
    parser.add_argument("--dtype", choices=("float32", "float16"), help="of the stored arrays")
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16", "int8"),
        default="auto",
        help="to compute in; auto: bf16 (or fp16) where it is measured to be faster and the "
        "vectors stay what they are; int8: on a CPU, where it may be faster still; "
        "refused where a cosine is below 0.999",
    )
    parser.add_argument(
        "--columns", metavar="A,B", help="fields of the samples to keep; none: none of them"
    )
    parser.add_argument("--workers", type=count, metavar="N", help="processes that read images")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a store that is there, once it is known that the new one can be made",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="embed what is new or changed in the source of a finished store, and remove what is "
        "gone; makes the store where there is none",
    )
    parser.set_defaults(run=run_embed)


def run_embed(args: argparse.Namespace) -> int:
    """Writes a store, or what is missing of it, and says what is in it."""
    import os
    from pathlib import Path

    with quick_imports():
        from clipkit.display.console import plain_warnings, remark, remark_cut
        from clipkit.errors import ConfigError
        from clipkit.retrieval.embed import embed

    for only, name, field in (
        ("images", "--caption", args.caption),
        ("texts", "--image", args.image),
    ):
        if args.only == only and field not in (None, "none"):
            raise ConfigError(f"{name} {field}: is not used with --only {only}; leave one of them")
    is_kept = not args.overwrite and not args.update
    was_there = is_kept and (Path(args.out).expanduser() / "manifest.json").exists()
    with plain_warnings():
        store = embed(
            args.model,
            source_from(args, args.source),
            args.out,
            images=args.only != "texts",
            texts=args.only != "images",
            batch_size=args.batch_size,
            part_rows=args.part_rows,
            dtype=args.dtype,
            precision=args.precision,
            columns=None if args.columns is None else _names(args.columns),
            workers=args.workers,
            overwrite=args.overwrite,
            update=args.update,
        )
    if os.environ.get("RANK", "0") != "0":
        return 0  # the first rank tells
    if was_there:
        remark(f"{args.out}: it was complete already")
    manifest = store.manifest
    for reason, number in manifest["skipped"].items():
        remedy = "; --caption none embeds all images" if reason in _NO_CAPTION else ""
        remark(f"{args.source}: left out {number:,} × {reason}{remedy}")
    for name, number in manifest["unfit"].items():
        remark(f"column {name}: {number:,} values are no {manifest['columns'][name]}, and null")
    remark_cut(manifest["num_truncated"], len(store), manifest["context_length"])
    if others := manifest.get("num_other_captions"):
        remark(
            f"{args.source}: {others:,} further captions are not embedded, only the first of each "
            "sample; a source with a row a caption embeds all, and search gives one hit an image"
        )
    if replaced := manifest.get("num_replaced"):
        remark(
            f"{args.source}: {replaced:,} captions hold � in place of bytes that are not UTF-8; "
            "save them as UTF-8"
        )
    if args.caption is None and args.only is None and not store.text_embeds:
        remark(f"{args.source}: no captions are there, so the store is of images only")
    kinds = " and ".join(
        name
        for name, parts in (("images", store.image_embeds), ("captions", store.text_embeds))
        if parts
    )
    print(f"{args.out}: {kinds} of {len(store):,} samples, {store.dim} numbers each")
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]

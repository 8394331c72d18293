"""``clipkit embed`` and ``clipkit search``: arguments, and what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipkit.display.arguments import count, positive

if TYPE_CHECKING:
    from clipkit.retrieval.search import Hit


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


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit search``."""
    parser.add_argument("model", help="the model that made the store")
    parser.add_argument("store", help="the folder that clipkit embed wrote")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to look for, in words")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="what to look for, as a picture; may be repeated",
    )
    parser.add_argument("-k", type=positive, default=5, metavar="N", help="results a query")
    parser.add_argument("--json", action="store_true", help="print a JSON object a query")
    parser.add_argument("--html", metavar="FILE", help="write a page with the pictures, too")
    parser.set_defaults(run=run_search, rest="texts")


def run_search(args: argparse.Namespace) -> int:
    """Prints what each query finds."""
    from pathlib import Path

    import numpy as np

    from clipkit.display.console import plain_warnings, remark
    from clipkit.encoder import load
    from clipkit.errors import ConfigError
    from clipkit.retrieval.search import search_embeds
    from clipkit.retrieval.store import EmbeddingStore

    if not args.texts and not args.image:
        raise ConfigError("search: nothing to look for; give a text, or --image FILE")
    store = EmbeddingStore(args.store)
    encoder = load(args.model)
    store.check_model(encoder)
    with plain_warnings():
        query_embeds = np.concatenate(
            [encoder.encode_text(args.texts), encoder.encode_image(args.image)]
        )
    found = search_embeds(encoder, store, query_embeds, args.k)
    queries = [*args.texts, *args.image]
    for query, hits in zip(queries, found, strict=True):
        _print_hits(query, hits, as_json=args.json)
    if args.html:
        from clipkit.atomic import write_text
        from clipkit.retrieval.page import search_page

        images = [None] * len(args.texts) + [Path(name) for name in args.image]
        html, fault = search_page(store, queries, found, images=images)
        write_text(Path(args.html), html)
        if fault:
            remark(fault)
        remark(f"the page is {args.html}")
    return 0


def _print_hits(query: str, hits: Sequence[Hit], *, as_json: bool) -> None:
    import dataclasses
    import json
    import shutil
    import sys

    from clipkit.display.console import display_width, escape_control, format_table, shorten

    if as_json:
        record = {"query": query, "hits": [dataclasses.asdict(hit) for hit in hits]}
        print(json.dumps(record, ensure_ascii=False))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    names = [(shorten(escape_control(hit.key), 60), escape_control(hit.origin)) for hit in hits]
    fixed = 7 + max(
        (display_width(key) + display_width(origin) for key, origin in names), default=0
    )
    room = max(24, width - fixed - 6)
    rows = [
        [f"{hit.score:.3f}", shorten(hit.caption or "", room), key, origin]
        for hit, (key, origin) in zip(hits, names, strict=True)
    ]
    print(f'"{shorten(query, 100)}"')
    print(format_table(["score", "caption", "key", "origin"], rows, right=[0]))
    print()

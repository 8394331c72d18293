"""``clipkit index``: arguments, and what is printed."""

from __future__ import annotations

import argparse


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit index``."""
    parser.add_argument("store", help="the folder that clipkit embed wrote")
    parser.add_argument(
        "--kind",
        choices=("auto", "image", "text"),
        default="auto",
        help="of which vectors; auto: images, or captions where there are no images",
    )
    parser.set_defaults(run=run_index)


def run_index(args: argparse.Namespace) -> int:
    """Makes an index, and says what it is."""
    from clipkit.retrieval.codes import build_codes
    from clipkit.retrieval.store import EmbeddingStore

    store = EmbeddingStore(args.store)
    kind = ("image" if store.image_embeds else "text") if args.kind == "auto" else args.kind
    size = build_codes(store, kind)
    print(
        f"{args.store}: exact search among {len(store):,} {kind} embeddings now reads {size:,} "
        f"bytes, {size / max(len(store), 1):,.0f} a row, in place of {4 * store.dim:,}"
    )
    return 0

"""``clipkit index``: arguments, and what is printed."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipkit.retrieval.store import EmbeddingStore


def add_index_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit index``."""
    parser.add_argument("store", help="the folder that clipkit embed wrote")
    parser.add_argument(
        "--kind",
        choices=("auto", "image", "text"),
        default="auto",
        help="of which vectors; auto: images, or captions where there are no images",
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="a faiss index, for clipkit search --approximate; without: codes for exact search",
    )
    parser.add_argument(
        "--memory",
        type=byte_count,
        metavar="SIZE",
        help="that the approximate index may take, such as 500MB; 2GB",
    )
    parser.add_argument(
        "--recall",
        type=float,
        metavar="SHARE",
        help="of the 10 best that it should find; 0.95",
    )
    parser.add_argument(
        "--to",
        nargs=2,
        metavar=("lancedb", "URI"),
        help="write vectors and columns into a database of LanceDB: a folder, or its address",
    )
    parser.add_argument("--table", help="its name in that database; the store folder's name")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a table of that name in the database"
    )
    parser.set_defaults(run=run_index)


def byte_count(text: str) -> int:
    """``500MB``, ``2GB``, ``1.5GiB``, or a number of bytes."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(I?)B?)?B?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write 500MB or 2GB")
    power = " KMGT".index(match[2] or " ")
    size = float(match[1]) * (1024 if match[3] else 1000) ** power
    return int(min(size, 2**63))  # more than any memory, and it may be infinite


def run_index(args: argparse.Namespace) -> int:
    """Makes an index, and says what it is."""
    from clipkit.errors import ConfigError
    from clipkit.retrieval.codes import build_codes
    from clipkit.retrieval.store import EmbeddingStore

    store = EmbeddingStore(args.store)
    kind = ("image" if store.image_embeds else "text") if args.kind == "auto" else args.kind
    given = {"memory": args.memory, "recall": args.recall}
    limits = {name: value for name, value in given.items() if value is not None}
    if limits and not args.approximate:
        raise ConfigError("index: --memory and --recall go with --approximate")
    if args.to:
        return _export(args, store, kind)
    if args.table or args.overwrite:
        raise ConfigError("index: --table and --overwrite go with --to lancedb URI")
    if args.approximate:
        from clipkit.display.console import remark
        from clipkit.retrieval.approximate import build_approximate

        built = build_approximate(store, kind, **limits)
        print(
            f"{args.store}: {built.factory} of {len(store):,} {kind} embeddings, {built.bytes:,} "
            f"bytes\nrecall@10 {built.recall:.3f} against exact search, on {built.queries}\n"
            f"{built.milliseconds:.2f} ms a query, the median, where exact search takes "
            f"{built.exact_milliseconds:.2f}"
        )
        if built.recall < built.wanted:
            remark(
                f"THE RECALL OF {built.wanted} IS NOT REACHED: it is {built.recall:.3f} at the "
                "effort that was chosen; give more --memory if a more exact kind would fit then "
                "(docs/search.md), or search without --approximate"
            )
        return 0
    size = build_codes(store, kind)
    print(
        f"{args.store}: exact search among {len(store):,} {kind} embeddings now reads {size:,} "
        f"bytes, {size / max(len(store), 1):,.0f} a row, in place of {4 * store.dim:,}"
    )
    return 0


def _export(args: argparse.Namespace, store: EmbeddingStore, kind: str) -> int:
    from clipkit.errors import ConfigError
    from clipkit.retrieval.lance import VECTOR, write_lancedb

    engine, uri = args.to
    if engine != "lancedb":
        raise ConfigError(f"index: --to {engine}: no such engine; there is lancedb")
    if args.approximate:
        raise ConfigError("index: --to and --approximate make two things; give one of them")
    table = args.table or store.folder.resolve().name
    schema = write_lancedb(store, kind, uri, table, overwrite=args.overwrite)
    print(
        f"{uri}: table {table}, {len(store):,} {kind} embeddings as {schema.field(VECTOR).type} "
        f"and {len(schema) - 1} columns"
    )
    return 0

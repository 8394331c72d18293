"""``clipkit search``: arguments, queries from a file, and what is printed."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipkit.display.arguments import positive
from clipkit.imports import quick_imports

if TYPE_CHECKING:
    from clipkit.retrieval.query import SearchQuery
    from clipkit.retrieval.result import SearchResult
    from clipkit.retrieval.search import StoreIndex
    from clipkit.retrieval.store import EmbeddingStore

_K = 5  # results a query
_GROUPS, _OF_GROUP = 100, 24  # of near-duplicates, on a page
_FIELDS = ("text", "image", "negative", "weights", "like")


def add_search_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit search``."""
    parser.add_argument("store", help="the folder that clipkit embed wrote")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to look for, in words")
    parser.add_argument(
        "--model", help="the model that made the store; left out: the one that the store names"
    )
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="what to look for, as a picture; may be repeated; with one TEXT, both together",
    )
    parser.add_argument(
        "--negative",
        action="append",
        default=[],
        metavar="TEXT",
        help="what it should not be, in words; may be repeated; for each query",
    )
    parser.add_argument(
        "--queries",
        metavar="FILE",
        help="a query a line; in a .jsonl file objects with text, image, negative, weights, like",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="COND",
        help="only items that meet it, such as width>=512, lang=en, caption~apple; may be repeated",
    )
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="STORE",
        help="a further store of the same model, searched together with it; may be repeated",
    )
    parser.add_argument(
        "--duplicates",
        type=float,
        metavar="COSINE",
        help="look for no TEXT but for items that are as near to each other, such as 0.95",
    )
    parser.add_argument("-k", type=positive, metavar="N", help="results a query; 5")
    parser.add_argument(
        "--kind",
        choices=("auto", "image", "text"),
        default="auto",
        help="search images or captions; auto: images, or captions where there are no images",
    )
    parser.add_argument(
        "--approximate",
        action="store_true",
        help="search what clipkit index --approximate made; with --where search stays exact",
    )
    parser.add_argument(
        "--rows",
        action="store_true",
        help="each row is a hit; without it, rows of the same image file are one hit",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object a query")
    parser.add_argument("--html", metavar="FILE", help="write a page with the pictures, too")
    parser.set_defaults(run=run_search, rest="texts")


def run_search(args: argparse.Namespace) -> int:
    """Prints what each query finds."""
    with quick_imports():
        from clipkit.display.console import plain_warnings, remark
        from clipkit.errors import DataError
        from clipkit.retrieval.store import EmbeddingStore

    _check_order(args.store, args.texts)
    alone = args.duplicates is not None
    queries = _no_queries(args) if alone else _queries(args)
    store, *also = [EmbeddingStore(name) for name in (args.store, *args.also)]
    with quick_imports():
        importlib.import_module("clipkit.retrieval.search")  # by which an index is opened

    for query in queries:
        rows = sum(map(len, (store, *also)))
        if query.like is not None and not 0 <= query.like < rows:
            names = " + ".join((args.store, *args.also))
            raise DataError(
                f"{query.place}: like: {query.like} is no row of {names}; 0 to {rows - 1}"
            )
    index = store.index(args.kind, args.model, approximate=args.approximate, also=also)
    if alone:
        _print_duplicates(index, args)
        return 0
    if args.approximate and args.where:
        remark("with --where, search is exact")
    with plain_warnings():
        found = index.search_many(
            queries, where=args.where, k=_K if args.k is None else args.k, rows=args.rows
        )
    for result in found:
        _print_result(result, as_json=args.json)
    if args.html:
        _write_page(args.html, index.stores, found)
    return 0


def _print_duplicates(index: StoreIndex, args: argparse.Namespace) -> None:
    """Prints each group, and what would be left without the duplicates."""
    from clipkit.display.console import remark

    groups = rows = 0
    shown = []
    for result in index.duplicates(
        args.duplicates, where=args.where, rows=args.rows, progress=True
    ):
        groups += 1
        rows += len(result) - 1
        if groups <= _GROUPS:
            shown.append(result)
        _print_result(result, as_json=args.json)
    items = len(index) if args.rows else index.count_items()
    remark(f"{rows:,} of {items:,} are near-duplicates, of {groups:,} others")
    if args.html:
        if groups > len(shown) or any(len(result) > _OF_GROUP for result in shown):
            remark(f"the page has the {_GROUPS} largest groups, and {_OF_GROUP} of each, at most")
        _write_page(args.html, index.stores, shown, most=_OF_GROUP)


def _write_page(
    name: str,
    stores: Sequence[EmbeddingStore],
    found: Sequence[SearchResult],
    most: int | None = None,
) -> None:
    from pathlib import Path

    from clipkit.atomic import write_text
    from clipkit.display.console import remark
    from clipkit.retrieval.page import search_page

    html, fault = search_page(stores, found, most=most)
    write_text(Path(name), html)
    if fault:
        remark(fault)
    remark(f"the page is {name}")


def _no_queries(args: argparse.Namespace) -> list[SearchQuery]:
    """None; what --duplicates has no use for is refused.

    Raises:
        ConfigError: names it.
    """
    from clipkit.errors import ConfigError

    for name in ("texts", "image", "negative", "queries", "approximate", "k", "model"):
        if getattr(args, name):
            what = {"texts": "TEXT", "k": "-k"}.get(name, f"--{name}")
            raise ConfigError(
                f"search: --duplicates compares all with all, exactly; leave out {what}"
            )
    return []


def _check_order(store: str, texts: Sequence[str]) -> None:
    """The model came first once, and people remember.

    Raises:
        ConfigError: the store is given second.
    """
    from pathlib import Path

    from clipkit.errors import ConfigError

    def is_store(name: str) -> bool:
        return (Path(name).expanduser() / "manifest.json").is_file()

    if texts and not is_store(store) and is_store(texts[0]):
        raise ConfigError(
            f"search: the store comes first: clipkit search {texts[0]} TEXT…; it names its model "
            f"itself, and --model {store} names another place of it"
        )


def _queries(args: argparse.Namespace) -> list[SearchQuery]:
    """What is asked, in the order texts, images, file."""
    from clipkit.errors import ConfigError
    from clipkit.retrieval.query import SearchQuery

    negative = tuple(args.negative)
    if len(args.texts) == 1 and len(args.image) == 1:
        queries = [SearchQuery(args.texts[0], args.image[0], negative=negative)]
    else:
        queries = [SearchQuery(text, negative=negative) for text in args.texts]
        queries += [SearchQuery(image=image, negative=negative) for image in args.image]
    if args.queries:
        queries += _read_queries(args.queries, negative)
    if not queries:
        raise ConfigError(
            "search: nothing to look for; give a TEXT, --image FILE, or --queries FILE"
        )
    return queries


def _read_queries(name: str, negative: tuple[str, ...]) -> list[SearchQuery]:
    """The queries of a file."""
    import json
    from pathlib import Path

    from clipkit.data.tokenize import clean_caption
    from clipkit.errors import ConfigError, DataError
    from clipkit.retrieval.query import SearchQuery

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]} stands in it twice")
        return dict(pairs)

    path = Path(name).expanduser()
    try:
        # Not splitlines: JSON may hold what Unicode calls a line separator.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    queries = []
    for number, line in enumerate(lines, 1):
        if clean_caption(line) is None:
            continue
        where = f"{path}, line {number}"
        if path.suffix != ".jsonl":
            queries.append(SearchQuery(line, negative=negative, place=where))
            continue
        try:
            fields = json.loads(line, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: is no JSON ({error})") from error
        _check_fields(fields, where, {"negative"} if negative else set())
        below = fields.get("negative", [])
        below = (below,) if isinstance(below, str) else tuple(below)
        try:
            negatives = *below, *negative
            queries.append(SearchQuery(**{**fields, "negative": negatives}, place=where))
        except ConfigError as error:
            raise DataError(f"{where}: {error}") from error
    if not queries:
        raise DataError(f"{path}: there are no queries in it; write one a line")
    return queries


def _check_fields(fields: object, where: str, others: set[str]) -> None:
    """Refuses an object that is no query.

    Args:
        fields: of the object.
        where: file and line.
        others: parts of the query that come from elsewhere.

    Raises:
        DataError: it names the line and the part.
    """
    import difflib
    from pathlib import Path

    from clipkit.data.tokenize import clean_caption
    from clipkit.errors import DataError

    if not isinstance(fields, dict):
        raise DataError(f'{where}: not an object; write {{"text": "…"}}, for example')
    for name, value in fields.items():
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, 1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(_FIELDS)}."
            raise DataError(f"{where}: {name}: no such part of a query. {hint}")
        texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
        fits = {
            "text": isinstance(value, str),
            "image": isinstance(value, str),
            "negative": isinstance(value, str) or texts,
            "weights": isinstance(value, dict),
            "like": isinstance(value, int) and not isinstance(value, bool),
        }
        if not fits[name]:
            raise DataError(f"{where}: {name}: {value!r} is of the wrong kind")
        words = {"text": [value], "negative": value if texts else [value]}.get(name, [])
        if None in map(clean_caption, words):
            raise DataError(f"{where}: {name}: an empty text; leave it out")
        if name == "image" and "://" not in value and not Path(value).expanduser().is_file():
            raise DataError(f"{where}: image: {value}: no such file")
        parts = {*_FIELDS} - {part for part in fields if fields[part] != []} - others
        if name == "weights" and (odd := [part for part in value if part in parts]):
            raise DataError(f"{where}: weights: {odd[0]} is no part of this query; leave it out")


def _print_result(result: SearchResult, *, as_json: bool) -> None:
    import dataclasses
    import json
    import shutil
    import sys

    from clipkit.retrieval.result import format_hits, plain_value

    if as_json:
        hits = [dataclasses.asdict(hit) for hit in result]
        for hit in hits:
            hit["metadata"] = {name: plain_value(value) for name, value in hit["metadata"].items()}
        print(json.dumps({"query": result.query.title, "hits": hits}, ensure_ascii=False))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
    print(result.query)
    print(format_hits(result, width=width))
    print()

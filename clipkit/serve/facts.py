"""A store → what its page shows before anything is asked; a hit → JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.display.console import escape_control, short_path
from clipkit.retrieval.result import Hit, plain_value
from clipkit.retrieval.search import StoreIndex
from clipkit.retrieval.store import EmbeddingStore

_TEXT = 2_000  # characters of a caption or field that are shown
_EXAMPLES = 6
_FEW = 40  # different values that are offered in a list
_COUNTED_ROWS = 1_000_000  # above, the table stays on disk, and values are not counted
_NOT_FOR_FILTERS = ("source_row", "offset", "image_hash")


def store_facts(index: StoreIndex, *, fault: str | None) -> dict[str, Any]:
    """What ``/api/store`` answers.

    Args:
        index: of one or more stores; a column is there once, whichever of them have it.
        fault: why no pictures can be shown; None where they can.
    """
    stores, first = index.stores, index.store
    columns: dict[str, dict[str, Any]] = {}
    for store in stores:
        for field in store.schema:
            if field.name not in _NOT_FOR_FILTERS and (of := _kind(field.type)):
                column = _column(store, field.name, of)
                known = columns.get(field.name)
                columns[field.name] = column if known is None else _joined(known, column)
    return {
        "id": store_id(stores),
        "name": " + ".join(short_path(str(store.folder)) for store in stores),
        "stores": [{"name": short_path(str(store.folder)), "rows": len(store)} for store in stores],
        "rows": len(index),
        "dim": first.dim,
        "model": short_path(str(first.manifest["model"])),
        "searched": index.kind,
        "fault": None if fault is None else escape_control(fault),
        "columns": [*columns.values()],
        "examples": list(dict.fromkeys(text for store in stores for text in _examples(store)))[
            :_EXAMPLES
        ],
    }


def store_id(stores: Sequence[EmbeddingStore]) -> str:
    """A name for the state of stores: browsers keep pictures under it."""
    facts = [
        sorted((name, part["sha256"]) for name, part in store.manifest["parts"].items())
        for store in stores
    ]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def hit_json(hit: Hit, number: int, state: str) -> dict[str, Any]:
    """A hit as ``/api/search`` answers it.

    Args:
        hit: what was found.
        number: its row, counted through all stores.
        state: the ``store_id`` of them.
    """
    return {
        "row": number,
        "store": short_path(hit.store),
        "more": hit.more,
        "score": round(hit.score, 6),
        "key": _shown(hit.key),
        "caption": None if hit.caption is None else _shown(hit.caption),
        "origin": _shown(short_path(hit.origin)),
        "metadata": {
            name: _plain(short_path(value) if name == "path" else value)
            for name, value in hit.metadata.items()
            if value is not None
        },
        "picture": f"api/pictures/{number}?v={state}",
    }


def _column(store: EmbeddingStore, name: str, kind: str) -> dict[str, Any]:
    """Its name and kind; the least and highest of numbers, the values of texts that have few."""
    facts: dict[str, Any] = {"name": name, "kind": kind}
    if len(store) > _COUNTED_ROWS:
        return facts
    column = store.table[name]  # from here on in memory, which makes every search faster
    if kind == "number":
        bounds = pc.min_max(column).as_py()
        facts |= {end: _plain(bounds[end]) for end in ("min", "max")}
    elif kind == "text":
        counts = pc.value_counts(column)
        if len(counts) <= min(_FEW, len(column) // 2):
            pairs = sorted(counts.to_pylist(), key=lambda pair: -pair["counts"])
            facts["values"] = [_shown(pair["values"]) for pair in pairs if pair["values"]]
    return facts


def _joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A column that two stores have, perhaps of two kinds."""
    if one["kind"] != other["kind"]:
        return {"name": one["name"], "kind": "text"}
    column = {"name": one["name"], "kind": one["kind"]}
    if "min" in one and "min" in other:
        for end, choose in (("min", min), ("max", max)):
            bounds = [each[end] for each in (one, other) if each[end] is not None]
            column[end] = choose(bounds, default=None)
    if "values" in one and "values" in other:
        values = list(dict.fromkeys([*one["values"], *other["values"]]))
        if len(values) <= _FEW:
            column["values"] = values
    return column


def _kind(kind: pa.DataType) -> str | None:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "bool"
    return "number" if pa.types.is_integer(kind) or pa.types.is_floating(kind) else None


def _examples(store: EmbeddingStore) -> list[str]:
    """Some short captions, always the same ones."""
    rows = np.random.default_rng(0).permutation(len(store))[: 20 * _EXAMPLES]
    captions = [text for text in store.items(rows)["caption"].to_pylist() if text]
    short = [text for text in dict.fromkeys(captions) if len(text) <= 40]
    return short[:_EXAMPLES]


def _plain(value: Any) -> Any:
    """As JSON has it, and no longer than is shown."""
    value = plain_value(value)
    return _shown(value) if isinstance(value, str) else value


def _shown(text: str) -> str:
    # A lone surrogate, as of a file's name that is not UTF-8, cannot be sent.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= _TEXT else text[: _TEXT - 1] + "…"

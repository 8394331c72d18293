"""A store → what its page shows before anything is asked; a hit → JSON."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.display.console import escape_control, short_path
from clipkit.retrieval.result import Hit, plain_value
from clipkit.retrieval.store import EmbeddingStore

_TEXT = 2_000  # characters of a caption or field that are shown
_EXAMPLES = 6
_FEW = 40  # different values that are offered in a list
_COUNTED_ROWS = 1_000_000  # above, the table stays on disk, and values are not counted
_NOT_FOR_FILTERS = ("source_row", "offset", "image_hash")


def store_facts(store: EmbeddingStore, *, kind: str, fault: str | None) -> dict[str, Any]:
    """What ``/api/store`` answers.

    Args:
        store: which one.
        kind: whether its images or its texts are searched.
        fault: why no pictures can be shown; None where they can.
    """
    return {
        "id": store_id(store),
        "name": short_path(str(store.folder)),
        "rows": len(store),
        "dim": store.dim,
        "model": short_path(str(store.manifest["model"])),
        "searched": kind,
        "fault": None if fault is None else escape_control(fault),
        "columns": [
            _column(store, field.name, of)
            for field in store.schema
            if field.name not in _NOT_FOR_FILTERS and (of := _kind(field.type))
        ],
        "examples": _examples(store),
    }


def store_id(store: EmbeddingStore) -> str:
    """Changes with what is in the store: pictures are kept by browsers under it."""
    facts = sorted((name, part["sha256"]) for name, part in store.manifest["parts"].items())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def hit_json(hit: Hit, store: str) -> dict[str, Any]:
    """A hit as ``/api/search`` answers it.

    Args:
        hit: what was found.
        store: its ``store_id``.
    """
    return {
        "row": hit.row,
        "score": round(hit.score, 6),
        "key": _shown(hit.key),
        "caption": None if hit.caption is None else _shown(hit.caption),
        "origin": _shown(short_path(hit.origin)),
        "metadata": {
            name: _plain(short_path(value) if name == "path" else value)
            for name, value in hit.metadata.items()
            if value is not None
        },
        "picture": f"api/pictures/{hit.row}?v={store}",
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

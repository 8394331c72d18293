"""Rows of a store → another store, with vectors and columns of one's own."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.digest import sha256
from clipkit.retrieval.store import EmbeddingStore


def cut_store(
    store: EmbeddingStore,
    folder: Path,
    rows: np.ndarray,
    image_embeds: np.ndarray,
    fields: dict[str, tuple[str, list[Any]]] | None = None,
    cut: int = 7,
    hashes: np.ndarray | None = None,
    **manifest: Any,
) -> Path:
    """Writes a store of images alone, in two parts.

    Args:
        store: whose model and source.
        folder: of the new one.
        rows: (N,) of the store, which may repeat.
        image_embeds: (N, D) that they get.
        fields: names of further columns, with types and N values.
        cut: where the second part begins.
        hashes: (N,) of the images; none: all differ, and from those of other stores as well.
        manifest: what else it says.
    """
    folder.mkdir()
    table = store.items(rows)
    # Each row is an image of its own, as its vector is.
    place = table.schema.get_field_index("image_hash")
    if hashes is None:
        hashes = zlib.crc32(str(folder).encode()) * 2**20 + np.arange(len(rows))
    table = table.set_column(place, "image_hash", pa.array(hashes, pa.int64()))
    for name, (kind, values) in (fields or {}).items():
        types = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string()}
        table = table.append_column(pa.field(name, types[kind]), pa.array(values, types[kind]))
    facts = {}
    for number, part in enumerate((slice(0, cut), slice(cut, None))):
        items = table.slice(part.start, None if part.stop is None else part.stop - part.start)
        if not len(items):
            continue
        paths = folder / f"items-{number:05d}.parquet", folder / f"image_embeds-{number:05d}.npy"
        pq.write_table(items, paths[0])
        np.save(paths[1], image_embeds[part])
        for path in paths:
            size = path.stat().st_size
            facts[path.name] = {"rows": len(items), "bytes": size, "sha256": sha256(path)}
    tree = {
        **store.manifest,
        "rows": len(rows),
        "most_rows_an_image": None,
        "dtype": str(image_embeds.dtype),
        "columns": {name: kind for name, (kind, _) in (fields or {}).items()},
        "parts": facts,
        **manifest,
    }
    (folder / "manifest.json").write_text(json.dumps(tree))
    return folder

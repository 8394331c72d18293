"""Embeddings → a store: written part by part at constant memory, aside, and then renamed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit._version import __version__
from clipkit.atomic import put_in_place
from clipkit.config.schema import SourceConfig
from clipkit.errors import CheckpointError
from clipkit.retrieval.store import (
    FORMAT,
    SCHEMA,
    TABLE,
    VERSION,
    EmbeddingStore,
    encoder_hashes,
    read_manifest,
    sha256,
)

if TYPE_CHECKING:
    from clipkit.encoder import Encoder

PART_ROWS = 65_536  # 128 MiB at D = 512


class StoreWriter:
    """Writes a store aside, part by part, at constant memory; ``finish`` gives it its name.

    Args:
        folder: the store to make.
        overwrite: whether a store that is there may be replaced.

    Raises:
        CheckpointError: ``folder`` is there and may not be replaced, or is no store.
    """

    def __init__(self, folder: str | Path, *, overwrite: bool = False) -> None:
        self.folder = Path(os.path.abspath(Path(folder).expanduser()))
        _check_free(self.folder, overwrite)
        self._aside = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(self._aside, ignore_errors=True)
        try:
            self._aside.mkdir(parents=True)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder}: cannot be made ({error.strerror}); name another folder"
            ) from error
        self._table = pq.ParquetWriter(self._aside / TABLE, SCHEMA)
        self._pending: dict[str, list[np.ndarray]] = {}
        self._items: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        self._parts: dict[str, dict[str, Any]] = {}
        self.rows = 0

    def add(
        self,
        *,
        keys: Sequence[str],
        captions: Sequence[str | None],
        origins: Sequence[str],
        source_rows: Sequence[int],
        image_embeds: np.ndarray | None,
        text_embeds: np.ndarray | None,
    ) -> None:
        """Appends n items; what is None must be None each time.

        Args:
            keys: n names.
            captions: n texts, or None where there is none.
            origins: n places, for people.
            source_rows: n rows in the source.
            image_embeds: (n, D) float32, unit length.
            text_embeds: the same.
        """
        for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
            if embeds is not None:
                assert len(embeds) == len(keys)
                self._pending.setdefault(name, []).append(embeds)
        for column, values in zip(
            self._items.values(), (keys, captions, origins, source_rows), strict=True
        ):
            column.extend(values)
        self.rows += len(keys)
        if len(self._items["key"]) >= PART_ROWS:
            self._flush()

    def finish(
        self,
        encoder: Encoder,
        source: SourceConfig,
        *,
        fingerprint: str,
        skipped: Mapping[str, int],
    ) -> EmbeddingStore:
        """Writes the manifest and puts the store in its place.

        Args:
            encoder: the model the vectors are of.
            source: where the items came from.
            fingerprint: of the source; see ``Reader``.
            skipped: how many samples could not be used, by reason.
        """
        self._flush()
        self._table.close()
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "rows": self.rows,
            "dim": encoder.embed_dim,
            "dtype": "float32",
            "normalised": True,
            "model": encoder.name,
            **encoder_hashes(encoder),
            "source": dataclasses.asdict(source),
            "source_fingerprint": fingerprint,
            "skipped": dict(skipped),
            "parts": self._parts,
            "clipkit": __version__,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (self._aside / "manifest.json").write_text(text, encoding="utf-8")
        put_in_place(self._aside, self.folder)
        return EmbeddingStore(self.folder)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves nothing behind of a store that was not finished."""
        self._table.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    def _flush(self) -> None:
        """What has gathered becomes one part of each kind and one row group of the table."""
        if not self._items["key"]:
            return
        self._table.write_table(pa.table(self._items, schema=SCHEMA))
        self._items = {name: [] for name in SCHEMA.names}
        for name, arrays in self._pending.items():
            embeds = np.concatenate(arrays).astype(np.float32, copy=False)
            number = sum(file.startswith(f"{name}-") for file in self._parts)
            path = self._aside / f"{name}-{number:05d}.npy"
            np.save(path, embeds, allow_pickle=False)
            self._parts[path.name] = {
                "rows": len(embeds),
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
        self._pending = {}


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if folder.is_dir() and not any(folder.iterdir()):
        return
    try:
        read_manifest(folder)
    except CheckpointError:
        raise CheckpointError(
            f"{folder}: it is there and is no store of embeddings; name another folder"
        ) from None
    if not overwrite:
        raise CheckpointError(
            f"{folder}: this store is there already; give --overwrite to replace it, or another "
            "name"
        )

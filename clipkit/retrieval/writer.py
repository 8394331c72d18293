"""Embeddings → a store: written part by part at constant memory, aside, and then renamed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit._version import __version__
from clipkit.atomic import put_in_place, remove_stale
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
        folder: the store to make; a link is followed, and its target made or replaced.
        encoder: the model the vectors are of. Its files must stay as they are until ``finish``.
        overwrite: whether a store that is there may be replaced.

    Raises:
        CheckpointError: ``folder`` is there and may not be replaced, or is no store, or cannot
            be written.
    """

    def __init__(self, folder: str | Path, encoder: Encoder, *, overwrite: bool = False) -> None:
        self.folder = Path(os.path.realpath(Path(folder).expanduser()))
        self._encoder = encoder
        self._hashes = encoder_hashes(encoder)
        self._aside = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.tmp")
        with self._plain_errors():
            _check_free(self.folder, overwrite)
            remove_stale(self.folder)
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside.mkdir(parents=True)
            # Opened by us: pyarrow takes no path that is not UTF-8.
            self._file = (self._aside / TABLE).open("wb")
            self._table = pq.ParquetWriter(self._file, SCHEMA)
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
        # File names need not be UTF-8; a Parquet table must be.
        keys, origins = [_as_utf8(key) for key in keys], [_as_utf8(origin) for origin in origins]
        for column, values in zip(
            self._items.values(), (keys, captions, origins, source_rows), strict=True
        ):
            column.extend(values)
        self.rows += len(keys)
        if len(self._items["key"]) >= PART_ROWS:
            self._flush()

    def finish(
        self,
        source: SourceConfig,
        *,
        fingerprint: str,
        skipped: Mapping[str, int],
        num_truncated: int,
    ) -> EmbeddingStore:
        """Writes the manifest and puts the store in its place.

        Args:
            source: where the items came from.
            fingerprint: of the source; see ``Reader``.
            skipped: how many samples could not be used, by reason.
            num_truncated: how many captions were cut at the context length.

        Raises:
            CheckpointError: the model's files have changed, or the store cannot be written.
        """
        encoder = self._encoder
        if encoder_hashes(encoder) != self._hashes:
            raise CheckpointError(
                f"{encoder.folder}: the model there has changed since it was loaded, so the store "
                "would name the wrong one; embed again"
            )
        self._flush()
        with self._plain_errors():
            self._table.close()
            self._file.close()
            self._parts[TABLE] = _facts(self._aside / TABLE, self.rows)
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "rows": self.rows,
            "dim": encoder.embed_dim,
            "dtype": "float32",
            "normalised": True,
            "model": encoder.name,
            **self._hashes,
            "source": dataclasses.asdict(source),
            "source_fingerprint": fingerprint,
            "skipped": dict(skipped),
            "num_truncated": num_truncated,
            "context_length": encoder.preprocess.context_length,
            "parts": self._parts,
            "clipkit": __version__,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        with self._plain_errors():
            # Half a surrogate pair, from a path that is not UTF-8, becomes JSON's escape for it.
            (self._aside / "manifest.json").write_text(text, "utf-8", errors="backslashreplace")
            put_in_place(self._aside, self.folder)
        return EmbeddingStore(self.folder)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves nothing behind of a store that was not finished."""
        with suppress(OSError):  # on a full disk its last bytes cannot be written
            self._table.close()
        with suppress(OSError):
            self._file.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """A full disk and its like as one sentence."""
        try:
            yield
        except OSError as error:
            # NumPy tells no cause where a write stops half way.
            reason = error.strerror or f"is the disk full? {error}"
            raise CheckpointError(
                f"{self.folder}: cannot be written ({reason}); make room or name another folder"
            ) from error

    def _flush(self) -> None:
        """What has gathered becomes one part of each kind and one row group of the table."""
        if not self._items["key"]:
            return
        with self._plain_errors():
            self._write_out()

    def _write_out(self) -> None:
        self._table.write_table(pa.table(self._items, schema=SCHEMA))
        self._items = {name: [] for name in SCHEMA.names}
        for name, arrays in self._pending.items():
            embeds = np.concatenate(arrays).astype(np.float32, copy=False)
            number = sum(file.startswith(f"{name}-") for file in self._parts)
            path = self._aside / f"{name}-{number:05d}.npy"
            np.save(path, embeds, allow_pickle=False)
            self._parts[path.name] = _facts(path, len(embeds))
        self._pending = {}


def _facts(path: Path, rows: int) -> dict[str, Any]:
    return {"rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}


def _as_utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


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

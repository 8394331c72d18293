"""Embeddings ↔ a folder that NumPy and any Parquet reader understand without clipkit.

    manifest.json            what is here, of which model, with sizes and hashes; written last
    items.parquet            a row an item: key, caption, origin, source_row
    image_embeds-00000.npy   (rows, D) float32, unit length; the parts lie end to end
    text_embeds-00000.npy    the same, where captions were embedded

A store is written aside and renamed, so a folder with this name is a whole one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit.config.load import source_from_dict
from clipkit.config.schema import SourceConfig
from clipkit.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from clipkit.encoder import Encoder
    from clipkit.retrieval.search import Kind, StoreIndex

FORMAT, VERSION = "clipkit-embeddings", 1
TABLE = "items.parquet"
VERIFIED_BYTES = 256 * 2**20  # up to this size a store is hashed when opened: tenths of a second
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("origin", pa.string()),  # where the item came from, for people
        ("source_row", pa.int64()),  # its row in the source, for showing it again
    ]
)


class EmbeddingStore:
    """A store opened for reading; the vectors stay on disk and are mapped into memory.

    Args:
        folder: what ``clipkit embed`` wrote.

    Raises:
        CheckpointError: it is not a store, or parts of it are missing, cut off or damaged.
            Damage that leaves the size alone is found up to ``VERIFIED_BYTES``.

    Attributes:
        folder: where it is.
        manifest: what ``manifest.json`` says.
        image_embeds: (rows, D) float32 parts, end to end; none where no images were embedded.
        text_embeds: the same of captions.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = read_manifest(self.folder)
        self._verify()
        self.image_embeds = self._parts("image_embeds")
        self.text_embeds = self._parts("text_embeds")

    def __len__(self) -> int:
        return int(self.manifest["rows"])

    def __repr__(self) -> str:
        return f"EmbeddingStore({str(self.folder)!r}): {len(self):,} × {self.dim}"

    @property
    def dim(self) -> int:
        """D."""
        return int(self.manifest["dim"])

    @property
    def source(self) -> SourceConfig:
        """Where the items came from.

        Raises:
            CheckpointError: the manifest does not say it in words we know.
        """
        where = f"{self.folder / 'manifest.json'}, source"
        try:
            return source_from_dict(self.manifest["source"], where=where)
        except ConfigError as error:
            raise CheckpointError(f"{where}: {error}") from error

    @cached_property
    def table(self) -> pa.Table:
        """The items, one a row: key, caption, origin, source_row."""
        try:
            # Opened by us: pyarrow takes no path that is not UTF-8.
            with (self.folder / TABLE).open("rb") as file:
                table = pq.read_table(file)
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{self.folder / TABLE}: cannot be read; embed again into another folder"
            ) from error
        if not table.schema.equals(SCHEMA):
            raise CheckpointError(
                f"{self.folder / TABLE}: its columns are {', '.join(table.column_names)}, not "
                f"{', '.join(SCHEMA.names)} as this clipkit writes them; embed again"
            )
        if table.num_rows != len(self):
            raise CheckpointError(
                f"{self.folder / TABLE}: {table.num_rows} rows, where the manifest says "
                f"{len(self)}; embed again into another folder"
            )
        return table

    def items(self, rows: Sequence[int] | np.ndarray) -> pa.Table:
        """The items of some rows, in that order."""
        return self.table.take(pa.array(rows, pa.int64()))

    def index(
        self,
        kind: Kind = "auto",
        model: str | Path | Encoder | None = None,
        *,
        approximate: bool = False,
    ) -> StoreIndex:
        """The store ready to be searched.

        Args:
            kind: among which vectors: ``image``, ``text``, or ``auto``: images, or texts where
                there are no images.
            model: what made the store; none: found where the manifest says it is.
            approximate: whether to search what ``clipkit index --approximate`` made.

        Raises:
            CheckpointError: the store has no vectors of this kind, or another model made it; or
                there is no such index.
        """
        from clipkit.retrieval.search import StoreIndex

        return StoreIndex(self, kind, model, approximate=approximate)

    def check_model(self, encoder: Encoder) -> None:
        """Refuses a model other than the one that made the store: scores between the vectors
        of two models mean nothing.

        Raises:
            CheckpointError: names both models.
        """
        theirs, ours = encoder_hashes(encoder), self.manifest
        for name, words in (("weights_sha256", "weights"), ("preprocess_sha256", "preprocessing")):
            if theirs[name] != ours[name]:
                raise CheckpointError(
                    f"{self.folder}: made with the model {ours['model']} ({words} "
                    f"{ours[name][:12]}), not with {encoder.name} ({theirs[name][:12]}); name that "
                    "model, or embed again with this one"
                )

    def _verify(self) -> None:
        """Sizes of all files, and the hashes of a store that is small enough."""
        facts_of = self.manifest["parts"]
        small = sum(facts["bytes"] for facts in facts_of.values()) <= VERIFIED_BYTES
        for file, facts in facts_of.items():
            path = self.folder / file
            if not path.is_file():
                raise CheckpointError(
                    f"{path}: this part of the store is missing; copy the store again, or embed "
                    "again into another folder"
                )
            if path.stat().st_size != facts["bytes"]:
                raise CheckpointError(
                    f"{path}: {path.stat().st_size} bytes, where the manifest says "
                    f"{facts['bytes']}; copy the store again, or embed again into another folder"
                )
            try:
                damaged = small and sha256(path) != facts["sha256"]
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
            if damaged:
                raise CheckpointError(
                    f"{path}: damaged, it is not what the manifest's hash says; copy the store "
                    "again, or embed again into another folder"
                )

    def _parts(self, name: str) -> list[np.ndarray]:
        parts = []
        for file, facts in self.manifest["parts"].items():
            if not file.startswith(f"{name}-"):
                continue
            path = self.folder / file
            try:
                part = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: not an array of numbers; embed again") from error
            if part.shape != (facts["rows"], self.dim) or part.dtype != np.float32:
                raise CheckpointError(
                    f"{path}: {part.dtype} {part.shape}, where the manifest says float32 "
                    f"{(facts['rows'], self.dim)}; embed again into another folder"
                )
            parts.append(part)
        if parts and sum(map(len, parts)) != len(self):
            raise CheckpointError(f"{self.folder}: its parts do not hold {len(self)} rows")
        return parts


def encoder_hashes(encoder: Encoder) -> dict[str, str]:
    """``weights_sha256`` and ``preprocess_sha256``: what makes two models' vectors comparable.

    Raises:
        CheckpointError: the model is in no folder.
    """
    folder = encoder.folder
    digests = [sha256(path) for path in sorted(folder.glob("model*.safetensors"))]
    if not digests:
        raise CheckpointError(f"{folder}: the weights (model.safetensors) are no longer there")
    weights = digests[0] if len(digests) == 1 else _sha256_text(" ".join(digests))
    preprocess = json.dumps(dataclasses.asdict(encoder.preprocess), sort_keys=True)
    tokenizer = folder / "tokenizer.json"
    texts = sha256(tokenizer) if tokenizer.is_file() else ""
    return {"weights_sha256": weights, "preprocess_sha256": _sha256_text(preprocess + texts)}


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; make a store with clipkit embed")
    if not path.is_file():
        raise CheckpointError(
            f"{folder}: there is no manifest.json, so this is no store of embeddings, or an "
            "unfinished one; make one with clipkit embed"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read; embed again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the manifest of a store; make one with clipkit embed")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: version {manifest.get('version')} of the format, where this clipkit reads "
            f"{VERSION}; embed again, or use the clipkit that wrote it ({manifest.get('clipkit')})"
        )
    for key, is_valid in _VALID.items():
        if not is_valid(manifest.get(key)):
            raise CheckpointError(f"{path}: {key} is missing or broken; embed again")
    return manifest


def _well_formed(parts: Any) -> bool:
    """Whether names are plain: a manifest from elsewhere must not lead out of its folder."""
    return isinstance(parts, dict) and all(
        Path(name).name == name
        and isinstance(facts, dict)
        and _is_count(facts.get("rows"))
        and _is_count(facts.get("bytes"))
        and _is_text(facts.get("sha256"))
        for name, facts in parts.items()
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


_VALID: dict[str, Callable[[Any], bool]] = {
    "rows": _is_count,
    "dim": _is_count,
    "model": _is_text,
    "weights_sha256": _is_text,
    "preprocess_sha256": _is_text,
    "source": _is_dict,
    "skipped": _is_dict,
    "parts": _well_formed,
}


def _sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

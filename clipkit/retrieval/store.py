"""Embeddings ↔ a folder that NumPy and any Parquet reader understand without clipkit.

    manifest.json            what is here, of which model, with sizes and hashes; written last
    items-00000.parquet      a row an item: key, caption, where it came from, the source's fields
    image_embeds-00000.npy   (rows, D) float32 or float16, unit length
    text_embeds-00000.npy    the same, where captions were embedded
    plan.json                how the store was made, and is gone on with

Parts lie end to end, in the order of the source; docs/store.md has all of it.
"""

from __future__ import annotations

import dataclasses
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
from clipkit.digest import sha256, text_sha256, weights_sha256
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.columns import TYPES, table_schema
from clipkit.retrieval.images import columns_of_images, count_images, images_of
from clipkit.retrieval.parts import Parts
from clipkit.retrieval.plan import READABLE, VERSION, read_plan

if TYPE_CHECKING:
    from clipkit.encoder import Encoder
    from clipkit.retrieval.search import Kind, StoreIndex

FORMAT = "clipkit-embeddings"
TABLE = "items-"
VERIFIED_BYTES = 256 * 2**20  # up to this size a store is hashed when opened: tenths of a second
_DTYPES = ("float32", "float16")


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
        image_embeds: (rows, D) parts, end to end, float32 or float16 as ``manifest["dtype"]``
            says; none where no images were embedded.
        text_embeds: the same of captions.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest = read_manifest(self.folder)
        self._verify()
        self.image_embeds = self._parts("image_embeds")
        self.text_embeds = self._parts("text_embeds")
        if sum(rows for _, rows in self._tables) != len(self):
            raise CheckpointError(f"{self.folder}: its parts do not hold {len(self)} rows")

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
        """The items, one a row: key, caption, origin, source_row, path, offset, width, height,
        and the source's fields. All of it is in memory then; see ``items``."""
        return pa.concat_tables([self._read(i) for i in range(len(self._tables))])

    def items(
        self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """The items of some rows, in that order; no more is read of the table than they need,
        and nothing once all of it is in memory.

        Args:
            rows: which ones.
            columns: their names; none: all.

        Raises:
            IndexError: there is no such row.
            CheckpointError: the table cannot be read.
        """
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(self)):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()} of {len(self)}")
        if "table" in self.__dict__:  # in memory already
            table = self.table if columns is None else self.table.select(columns)
            return table.take(pa.array(wanted, pa.int64()))
        distinct, place = np.unique(wanted, return_inverse=True)
        file = np.searchsorted(self._ends, distinct, side="right")
        pieces = []
        for number in np.unique(file).tolist():
            start = int(self._ends[number - 1]) if number else 0
            pieces.append(self._read(number, distinct[file == number] - start, columns))
        if not pieces:
            empty = self.schema.empty_table()
            return empty if columns is None else empty.select(columns)
        return pa.concat_tables(pieces).take(pa.array(place, pa.int64()))

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        return table_schema(self.manifest["columns"], self.manifest["version"])

    @cached_property
    def _tables(self) -> list[tuple[str, int]]:
        """Names and rows of the table's files."""
        parts = self.manifest["parts"].items()
        return [(name, facts["rows"]) for name, facts in parts if name.startswith(TABLE)]

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([rows for _, rows in self._tables], dtype=np.int64)

    @cached_property
    def most_rows_an_image(self) -> int:
        """How many rows the image with the most rows has; 1 where rows have no images."""
        most = self.manifest.get("most_rows_an_image")
        if not self.image_embeds or not len(self):
            return 1
        return most if _is_count(most) and most else count_images(*self._images)[1]

    def images_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) rows → (n,) int64 numbers of their images, the same for the same image; and (n,)
        bool, False for a row without an image, or whose image is not known."""
        if not self.image_embeds:
            return np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=bool)
        if self.most_rows_an_image == 1 and "_images" not in self.__dict__:
            return images_of(self.items(rows, columns_of_images(self.schema)))
        numbers, known = self._images
        return numbers[rows], known[rows]

    def rows_an_image(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows → (n,) int64, how many rows of this store have the image of each."""
        if self.most_rows_an_image == 1:
            return np.ones(len(rows), dtype=np.int64)
        wanted, known = self.images_of(rows)
        numbers = self._sorted_images
        first, last = (np.searchsorted(numbers, wanted, side=side) for side in ("left", "right"))
        return np.where(known, last - first, 1)

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """``images_of`` all rows."""
        columns = columns_of_images(self.schema)
        found = [images_of(self._read(i, columns=columns)) for i in range(len(self._tables))]
        numbers, known = zip(*found, strict=True)
        return np.concatenate(numbers), np.concatenate(known)

    @cached_property
    def _sorted_images(self) -> np.ndarray:
        numbers, known = self._images
        return np.sort(numbers[known])

    def _read(
        self,
        number: int,
        rows: np.ndarray | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """A file of the table: all of it, or some of its rows, which ascend; all columns, or
        some."""
        name, length = self._tables[number]
        path = self.folder / name
        try:
            # Opened by us: pyarrow takes no path that is not UTF-8.
            with path.open("rb") as handle, pq.ParquetFile(handle) as file:
                schema, there = file.schema_arrow, file.metadata.num_rows
                if schema.equals(self.schema) and there == length:
                    if rows is None:
                        return file.read(columns=columns)
                    return _read_rows(file, rows, columns)
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{path}: cannot be read; embed again with --overwrite"
            ) from error
        if there != length:
            raise CheckpointError(
                f"{path}: {there} rows, where the manifest says {length}; embed again with "
                "--overwrite"
            )
        raise CheckpointError(
            f"{path}: its columns are {', '.join(schema.names)}, not "
            f"{', '.join(self.schema.names)} as the manifest says; embed again with --overwrite"
        )

    def index(
        self,
        kind: Kind = "auto",
        model: str | Path | Encoder | None = None,
        *,
        approximate: bool = False,
        also: Sequence[EmbeddingStore] = (),
    ) -> StoreIndex:
        """The store ready to be searched, alone or together with others.

        Args:
            kind: among which vectors: ``image``, ``text``, or ``auto``: images, or texts where
                there are no images.
            model: what made the store; none: found where the manifest says it is.
            approximate: whether to search what ``clipkit index --approximate`` made.
            also: further stores of the same model, searched as if their rows came after these.

        Raises:
            CheckpointError: a store has no vectors of this kind, or another model made it; or
                there is no such index.
        """
        from clipkit.retrieval.search import StoreIndex

        return StoreIndex(self, kind, model, approximate=approximate, also=also)

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

    def check_same_model(self, other: EmbeddingStore) -> None:
        """Refuses a store that another model made.

        Raises:
            CheckpointError: names both stores and models.
        """
        theirs, ours = other.manifest, self.manifest
        for name, words in (("weights_sha256", "weights"), ("preprocess_sha256", "preprocessing")):
            if theirs[name] != ours[name]:
                raise CheckpointError(
                    f"{other.folder}: made with the model {theirs['model']} ({words} "
                    f"{theirs[name][:12]}), where {self.folder} is of {ours['model']} "
                    f"({ours[name][:12]}); their scores cannot be compared, so search each alone"
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
                    "again with --overwrite"
                )
            if path.stat().st_size != facts["bytes"]:
                raise CheckpointError(
                    f"{path}: {path.stat().st_size} bytes, where the manifest says "
                    f"{facts['bytes']}; copy the store again, or embed again with --overwrite"
                )
            try:
                damaged = small and sha256(path) != facts["sha256"]
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
            if damaged:
                raise CheckpointError(
                    f"{path}: damaged, it is not what the manifest's hash says; copy the store "
                    "again, or embed again with --overwrite"
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
                raise CheckpointError(
                    f"{path}: not an array of numbers; embed again with --overwrite"
                ) from error
            dtype = self.manifest["dtype"]
            if part.shape != (facts["rows"], self.dim) or part.dtype != np.dtype(dtype):
                raise CheckpointError(
                    f"{path}: {part.dtype} {part.shape}, where the manifest says {dtype} "
                    f"{(facts['rows'], self.dim)}; embed again with --overwrite"
                )
            parts.append(part)
        if parts and sum(map(len, parts)) != len(self):
            raise CheckpointError(f"{self.folder}: its parts do not hold {len(self)} rows")
        return parts


def _read_rows(file: pq.ParquetFile, rows: np.ndarray, columns: Sequence[str] | None) -> pa.Table:
    """Ascending rows of a Parquet file, of which only the row groups are read that hold them."""
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    ends = np.cumsum(groups, dtype=np.int64)
    group = np.searchsorted(ends, rows, side="right")
    pieces = []
    for number in np.unique(group).tolist():
        start = int(ends[number - 1]) if number else 0
        within = pa.array(rows[group == number] - start, pa.int64())
        pieces.append(file.read_row_group(number, columns=columns).take(within))
    return pa.concat_tables(pieces)


# Of transformers, and of open_clip.
def encoder_hashes(encoder: Encoder) -> dict[str, str]:
    """``weights_sha256`` and ``preprocess_sha256``: what makes two models' vectors comparable.

    Raises:
        CheckpointError: the model is in no folder.
    """
    folder = encoder.folder
    weights = weights_sha256(folder)
    preprocess = json.dumps(dataclasses.asdict(encoder.preprocess), sort_keys=True)
    tokenizer = folder / "tokenizer.json"
    texts = sha256(tokenizer) if tokenizer.is_file() else ""
    return {"weights_sha256": weights, "preprocess_sha256": text_sha256(preprocess + texts)}


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; make a store with clipkit embed")
    if not path.is_file():
        plan = read_plan(folder)
        if plan is not None:
            parts = Parts(folder, plan)
            parts.look()
            raise CheckpointError(
                f"{folder}: unfinished, {len(parts.records)} of {plan.parts} parts are done; run "
                "the same clipkit embed again, and it goes on"
            )
        raise CheckpointError(
            f"{folder}: there is no manifest.json, so this is no store of embeddings; make one "
            "with clipkit embed"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: cannot be read, it is damaged; embed again with --overwrite"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the manifest of a store; make one with clipkit embed")
    if manifest.get("version") not in READABLE:
        raise CheckpointError(
            f"{path}: version {manifest.get('version')} of the format, where this clipkit reads "
            f"{VERSION}; embed again with --overwrite, or use the clipkit that wrote it "
            f"({manifest.get('clipkit')})"
        )
    for key, is_valid in _VALID.items():
        if not is_valid(manifest.get(key)):
            raise CheckpointError(
                f"{path}: {key} is missing or broken; embed again with --overwrite"
            )
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
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


_VALID: dict[str, Callable[[Any], bool]] = {
    "rows": _is_count,
    "dim": _is_count,
    "dtype": lambda value: value in _DTYPES,
    "columns": lambda value: (
        isinstance(value, dict) and all(kind in TYPES for kind in value.values())
    ),
    "model": _is_text,
    "weights_sha256": _is_text,
    "preprocess_sha256": _is_text,
    "source": _is_dict,
    "skipped": _is_dict,
    "parts": _well_formed,
}

"""Embeddings → the files of one part, and the manifest of all: whole or not at all.

What is written takes the memory of one part, however large the store is.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit._version import __version__
from clipkit.atomic import HashedFile, sync, write_json
from clipkit.errors import CheckpointError
from clipkit.retrieval.columns import fit, own_columns, table_schema
from clipkit.retrieval.images import Told, columns_of_images, count_images, images_of
from clipkit.retrieval.parts import MANIFEST, read_record, record_path, remove_leftovers
from clipkit.retrieval.plan import Plan
from clipkit.retrieval.store import FORMAT, TABLE
from clipkit.types import Item, Skip

_ROW_GROUP = 2_048  # rows of the table that are read for one of them


@dataclass(frozen=True, slots=True)
class OldPart:
    """A part of the store as it was before an update, of the same rows as a new one.

    Attributes:
        folder: where it is.
        files: their names, with what the manifest says of them; the table first.
    """

    folder: Path
    files: dict[str, dict[str, Any]]

    @property
    def table(self) -> pa.Table:
        """The rows."""
        with (self.folder / next(iter(self.files))).open("rb") as file:
            return pq.read_table(file)


class PartWriter:
    """Gathers a part and writes it.

    Args:
        folder: of the store.
        plan: of the store.
        number: of the part.
    """

    def __init__(self, folder: Path, plan: Plan, number: int) -> None:
        self._folder, self._plan, self._number = folder, plan, number
        self._schema = table_schema(plan.columns, plan.version)
        self._own = len(own_columns(plan.version))
        self._values: list[list[Any]] = [[] for _ in self._schema]
        self._embeds: dict[str, list[np.ndarray]] = {}
        self._skipped: Counter[str] = Counter()
        self._example: str | None = None
        self._unfit: Counter[str] = Counter()
        self._truncated = self._replaced = self._others = 0

    def add(
        self,
        *,
        keys: Sequence[str],
        source_rows: Sequence[int],
        items: Sequence[Item],
        image_embeds: np.ndarray | None = None,
        text_embeds: np.ndarray | None = None,
        told: Sequence[Told] = (),
        skipped: Sequence[Skip] = (),
        truncated: int = 0,
        replaced: int = 0,
    ) -> None:
        """Appends n items; what is None must be None each time.

        Args:
            keys: n names.
            source_rows: n rows in the source.
            items: n descriptions.
            image_embeds: (n, D) float32, unit length.
            text_embeds: the same.
            told: n images' hashes and numbers of further captions; none: not known.
            skipped: samples that have no row.
            truncated: captions that were cut.
            replaced: captions that hold U+FFFD, in place of bytes that are not UTF-8.
        """
        for name, embeds in (("image_embeds", image_embeds), ("text_embeds", text_embeds)):
            if embeds is not None:
                assert len(embeds) == len(keys)
                self._embeds.setdefault(name, []).append(embeds.astype(self._plan.dtype))
        hashes = [each.image_hash for each in told] or [None] * len(keys)
        for key, row, item, image_hash in zip(keys, source_rows, items, hashes, strict=True):
            own = (
                *(
                    _as_utf8(key),
                    item.caption,
                    _as_utf8(item.origin),
                    row,
                    _as_utf8(_absolute(item.path)),
                ),
                *(item.offset, item.width, item.height, image_hash),
            )
            for values, value in zip(self._values[: self._own], own, strict=False):
                values.append(value)
            of_columns = zip(self._values[self._own :], self._plan.columns.items(), strict=True)
            for values, (name, kind) in of_columns:
                value, fits = fit(item.metadata.get(name), kind)
                values.append(value)
                self._unfit[name] += not fits
        for skip in skipped:
            self._skipped[skip.reason] += 1
            self._example = self._example or f"{skip.origin}: {skip.reason}"
        self._truncated += truncated
        self._replaced += replaced
        self._others += sum(each.others for each in told)

    def finish(self, old: OldPart | None = None) -> dict[str, Any]:
        """Writes the files, and then the record by which the part counts as done.

        Args:
            old: a part with the same vectors: its files are taken, and none like them written.

        Returns:
            The record: this one's, or that of another process that was quicker.

        Raises:
            CheckpointError: the part cannot be written.
        """
        folder, rows = self._folder, len(self._values[0])
        written: list[tuple[Path, Path, dict[str, Any]]] = []
        kept = {} if old is None else dict(old.files)
        with plain_errors(folder):
            try:
                if rows:
                    for name, arrays in self._embeds.items():
                        if old is None:
                            array = np.concatenate(arrays)
                            path = self._path(name, "npy")
                            written.append(_write_aside(path, rows, _array_to(array)))
                    table = self._table()
                    if old is None or not table.equals(old.table):
                        kept = {n: facts for n, facts in kept.items() if not n.startswith(TABLE)}
                        path = self._path(TABLE.removesuffix("-"), "parquet")
                        written.append(_write_aside(path, rows, _table_to(table)))
                # A process that was thought dead may have been slow: what counts stays.
                there = read_record(folder, self._number)
                if there is not None:
                    return there
                for aside, path, _ in written:
                    aside.replace(path)
                sync(folder)
            finally:
                for aside, _, _ in written:
                    with suppress(OSError):
                        aside.unlink(missing_ok=True)
            record = {
                "rows": rows,
                "skipped": dict(sorted(self._skipped.items())),
                "example": self._example,
                "truncated": self._truncated,
                "replaced": self._replaced,
                "others": self._others,
                "unfit": {name: n for name, n in self._unfit.items() if n},
                "files": {path.name: facts for _, path, facts in written},
                "kept": kept,
            }
            write_json(record_path(folder, self._number), record)
            sync(folder)
        return record

    def _table(self) -> pa.Table:
        columns = zip(self._values, self._schema, strict=True)
        return pa.table(
            [pa.array(values, field.type) for values, field in columns], schema=self._schema
        )

    def _path(self, name: str, extension: str) -> Path:
        """Name of a file of this part; updates give it another name each time."""
        generation = f".{self._plan.generation}" if self._plan.generation else ""
        return self._folder / f"{name}-{self._number:05d}{generation}.{extension}"


def write_manifest(
    folder: Path,
    plan: Plan,
    records: Mapping[int, dict[str, Any]],
    *,
    count_changes: Callable[[list[Path]], dict[str, int]] | None = None,
) -> None:
    """Finishes a store of which all parts are done; who does it and how often is all one.

    Args:
        folder: of the store, or of the update that is made in it.
        plan: of the store.
        records: of all parts.
        count_changes: of an update, counts the changes, given its tables.

    Raises:
        CheckpointError: it cannot be written.
    """
    skipped, unfit = Counter(plan.dropped), Counter[str]()
    for record in records.values():
        skipped.update(record["skipped"])
        unfit.update(record["unfit"])
    files = {
        name: facts
        for number in sorted(records)
        for name, facts in {**records[number]["files"], **records[number].get("kept", {})}.items()
    }
    found = ((folder / name, folder.parent / name) for name in files if name.startswith(TABLE))
    tables = [made if made.exists() else old for made, old in found]
    with plain_errors(folder):
        num_images, most_rows = _count_images(tables) if plan.images else (0, 1)
        changes = {} if count_changes is None else {"update": count_changes(tables)}
    manifest = {
        "format": FORMAT,
        "version": plan.version,
        "rows": sum(record["rows"] for record in records.values()),
        "dim": plan.dim,
        "dtype": plan.dtype,
        "normalised": True,
        "model": plan.model,
        "weights_sha256": plan.weights_sha256,
        "preprocess_sha256": plan.preprocess_sha256,
        "precision": plan.precision,
        "cosines": plan.cosines,
        "source": plan.source,
        "source_fingerprint": plan.source_fingerprint,
        "source_texts_sha256": plan.source_texts_sha256,
        "source_rows": plan.rows,
        "columns": plan.columns,
        "skipped": dict(sorted(skipped.items())),
        "unfit": dict(sorted(unfit.items())),
        "num_truncated": sum(record["truncated"] for record in records.values()),
        "num_replaced": sum(record["replaced"] for record in records.values()),
        "num_other_captions": sum(record.get("others", 0) for record in records.values()),
        "context_length": plan.context_length,
        "num_images": num_images,
        "most_rows_an_image": most_rows,
        "generation": plan.generation,
        **changes,
        "parts": files,
        "clipkit": __version__,
    }
    write_json(folder / MANIFEST, manifest)
    with plain_errors(folder):
        sync(folder)
    remove_leftovers(folder)


def _count_images(tables: Sequence[Path]) -> tuple[int, int]:
    """The different images, and the rows of the image with the most."""
    numbers, known = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for path in tables:
        with path.open("rb") as handle, pq.ParquetFile(handle) as file:
            found = images_of(file.read(columns=columns_of_images(file.schema_arrow)))
        numbers.append(found[0])
        known.append(found[1])
    return count_images(np.concatenate(numbers), np.concatenate(known))


@contextmanager
def plain_errors(folder: Path) -> Iterator[None]:
    """A full disk and its like as one sentence."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror or error}); make room, and the same "
            "command goes on, or name another folder"
        ) from error


def _write_aside(
    path: Path, rows: int, fill: Callable[[HashedFile], None]
) -> tuple[Path, Path, dict[str, Any]]:
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            hashed = HashedFile(file)
            fill(hashed)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    return aside, path, {"rows": rows, "bytes": hashed.size, "sha256": hashed.hash.hexdigest()}


def _array_to(array: np.ndarray) -> Callable[[HashedFile], None]:
    return lambda file: np.lib.format.write_array(file, array, allow_pickle=False)


def _table_to(table: pa.Table) -> Callable[[HashedFile], None]:
    return lambda file: pq.write_table(table, file, row_group_size=_ROW_GROUP)


def _absolute(path: str) -> str:
    """As seen from anywhere, where it is a local file."""
    return os.path.abspath(path) if os.path.exists(path) else path


def _as_utf8(text: str) -> str:
    """File names need not be UTF-8; a Parquet table must be."""
    return text.encode("utf-8", "replace").decode("utf-8")

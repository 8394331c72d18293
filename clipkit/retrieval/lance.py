"""A store → a table of LanceDB, an engine that searches beyond one machine; batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipkit._version import __version__
from clipkit.display.console import progress_bar
from clipkit.errors import CheckpointError, ClipkitError, ConfigError
from clipkit.retrieval.codes import vectors_of
from clipkit.retrieval.scan import read_rows
from clipkit.retrieval.store import TABLE

if TYPE_CHECKING:
    from clipkit.retrieval.store import EmbeddingStore

VECTOR = "vector"  # the column that LanceDB searches if none is named
_ROWS = 8192  # a batch
_BYTES = 32 * 2**20  # of its vectors


def write_lancedb(
    store: EmbeddingStore,
    kind: str,
    uri: str,
    table: str,
    *,
    overwrite: bool = False,
    progress: bool = True,
) -> pa.Schema:
    """Writes one kind of a store's vectors, and all its columns, as a table.

    The column ``vector`` is a fixed-size list of D float32 or float16, as the store has them. The
    table's metadata names the model: ``model``, ``weights_sha256``, ``preprocess_sha256``, and
    ``kind`` and ``clipkit``.

    Args:
        store: what is written.
        kind: ``image`` or ``text``.
        uri: the database: a folder, or an address that LanceDB knows.
        table: its name there.
        overwrite: whether a table of this name is replaced.
        progress: whether to show a progress bar.

    Returns:
        The table's columns.

    Raises:
        ConfigError: lancedb is not installed.
        CheckpointError: the table is there already or cannot be written, or the store is damaged.
    """
    lancedb = _import_lancedb()
    parts = vectors_of(store, kind)
    schema = _schema(store, kind)
    faults: list[ClipkitError] = []
    with progress_bar("write", len(store), "row", show=progress) as bar:

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                for batch in _batches(store, parts, schema):
                    yield batch
                    bar.update(len(batch))
            except ClipkitError as error:
                faults.append(error)  # LanceDB would wrap it in a traceback
                raise

        begun = False
        try:
            database = lancedb.connect(uri)
            there = _names(database)
            if table in there and not overwrite:
                raise CheckpointError(
                    f"{uri}: a table {table} is there already; name another with --table, or give "
                    "--overwrite"
                )
            begun = table not in there
            reader = pa.RecordBatchReader.from_batches(schema, batches())
            made = database.create_table(
                table, data=reader, mode="overwrite" if overwrite else "create"
            )
            rows = made.count_rows()
        except ClipkitError:
            raise
        except Exception as error:  # LanceDB's own are of many kinds, RuntimeError most of all
            if begun:
                _drop(database, table)
            if faults:
                raise faults[0] from None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"{uri}: LanceDB cannot write {table} ({reason[0]})") from error
    if rows != len(store):
        raise CheckpointError(
            f"{uri}: {table} has {rows:,} rows, where {len(store):,} were written; is another "
            "process writing it?"
        )
    return schema


def _schema(store: EmbeddingStore, kind: str) -> pa.Schema:
    """The store's columns and the vector. LanceDB takes no dots in names."""
    dtype = pa.from_numpy_dtype(np.dtype(store.manifest["dtype"]))
    fields: list[pa.Field] = []
    taken = {VECTOR}
    for field in store.schema:
        name = field.name.replace(".", "_")
        while name in taken:
            name = f"meta_{name}"
        taken.add(name)
        fields.append(field.with_name(name))
    fields.append(pa.field(VECTOR, pa.list_(dtype, store.dim)))
    about = {
        name: str(store.manifest[name]) for name in ("model", "weights_sha256", "preprocess_sha256")
    }
    return pa.schema(fields, metadata={**about, "kind": kind, "clipkit": __version__})


def _batches(
    store: EmbeddingStore, parts: list[np.ndarray], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    dtype = np.dtype(store.manifest["dtype"])
    size = max(min(_ROWS, _BYTES // (4 * store.dim)), 1)
    begin = 0
    for name in store.manifest["parts"]:
        if not name.startswith(TABLE):
            continue
        path = store.folder / name
        try:
            with path.open("rb") as handle, pq.ParquetFile(handle) as file:
                for items in file.iter_batches(size):
                    block = read_rows(parts, begin, begin + len(items)).astype(dtype, copy=False)
                    vectors = pa.FixedSizeListArray.from_arrays(pa.array(block.ravel()), store.dim)
                    columns = [*items.columns, vectors]
                    yield pa.RecordBatch.from_arrays(columns, schema=schema)
                    begin += len(items)
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{path}: cannot be read; embed again with --overwrite"
            ) from error


def _names(database: Any) -> set[str]:
    """The names of all tables, of which LanceDB tells some at a time."""
    names: set[str] = set()
    page = database.list_tables()
    names.update(page.tables)
    while page.page_token:
        page = database.list_tables(page_token=page.page_token)
        names.update(page.tables)
    return names


def _drop(database: Any, table: str) -> None:
    """What was begun and is not whole. The first error is the one that counts."""
    try:
        database.drop_table(table, ignore_missing=True)
    except Exception:
        return


def _import_lancedb() -> Any:
    try:
        import lancedb
    except ImportError as error:
        raise ConfigError(
            "--to lancedb takes lancedb; pip install 'clipkit-pretraining[lancedb]'"
        ) from error
    return lancedb

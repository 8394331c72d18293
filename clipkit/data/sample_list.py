"""A list of samples that stay: a Parquet file of rows of one source, and how they were chosen.

Columns: ``row`` int64, ascending; ``key`` string; ``score`` float32, null where none was asked
for. The schema's metadata hold JSON under ``clipkit``: version, source, fingerprint, samples,
and whatever else the writer says of the choice.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.atomic import sync
from clipkit.data import files
from clipkit.data.reader import Reader
from clipkit.errors import CheckpointError, DataError

_VERSION = 1
_NAME = b"clipkit"


def write_list(
    path: Path,
    whole: Reader,
    rows: np.ndarray,
    *,
    keys: Sequence[str],
    scores: np.ndarray | None,
    about: dict[str, Any],
) -> None:
    """Writes a list aside and renames it.

    Args:
        path: the file.
        whole: the source that the rows are of.
        rows: (M,) ascending.
        keys: M names.
        scores: (M,) or None.
        about: how they were chosen, as JSON.

    Raises:
        CheckpointError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    about = {
        "version": _VERSION,
        "source": whole.source.path,
        "fingerprint": whole.fingerprint,
        "samples": len(whole),
        "kept": len(rows),
        **about,
    }
    table = pa.table(
        {
            "row": pa.array(rows, pa.int64()),
            "key": pa.array([_text(key) for key in keys], pa.string()),
            "score": pa.array(
                np.zeros(len(rows)) if scores is None else scores,
                pa.float32(),
                mask=np.full(len(rows), scores is None),
            ),
        }
    ).replace_schema_metadata({_NAME: json.dumps(about, ensure_ascii=False)})
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, aside)
        sync(aside)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}).") from error


def read_list(path: str, whole: Reader) -> tuple[np.ndarray, str]:
    """The rows of a list, ascending, and a hash that changes when the list does.

    Raises:
        DataError: it is missing, is no such list, or is one of another source.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        data = files.read_all(
            str(Path(path).expanduser()) if not files.is_url(path) else path, 2**34
        )
    except OSError as error:
        raise DataError(f"{path}: the list cannot be read ({error.strerror or error}).") from error
    try:
        table = pq.read_table(io.BytesIO(data))
        about = json.loads((table.schema.metadata or {})[_NAME])
        version, fingerprint, source = about["version"], about["fingerprint"], about["source"]
        if table.schema.field("row").type != pa.int64() or table["row"].null_count:
            raise TypeError("rows that are no whole numbers")
        rows = table["row"].to_numpy()
    except (pa.ArrowException, LookupError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: is not a list that clipkit data filter wrote; name one, or leave "
            "filter.list out."
        ) from error
    if version != _VERSION:
        raise DataError(
            f"{path}: a list of version {version}, where {_VERSION} is read; write it again with "
            "clipkit data filter."
        )
    if fingerprint != whole.fingerprint:
        raise DataError(
            f"{path}: is a list of other samples ({source} as it was then) than "
            f"{whole.source.path} holds now (files, counts or columns differ); write it again "
            "with clipkit data filter."
        )
    if len(rows) and (rows[0] < 0 or rows[-1] >= len(whole) or (np.diff(rows) <= 0).any()):
        raise DataError(f"{path}: damaged, its rows are not those of {whole.source.path}.")
    return rows, files.digest(rows.tobytes().hex())


def _text(key: str) -> str:
    return key.encode("utf-8", "replace").decode("utf-8")

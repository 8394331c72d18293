"""``column op value`` → which rows of a store meet it.

    width>=512        numbers compare as numbers
    lang=en           = and != compare as the column's kind
    caption~apple     contains, whatever the case
    caption!=         is not empty

Operators are ``= != < <= > >= ~``. Several conditions must all be met. A row whose value is
missing meets none but ``!=``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.store import TABLE

if TYPE_CHECKING:
    from clipkit.retrieval.store import EmbeddingStore

_CONDITION = re.compile(r"\s*(?P<column>[^=!<>~]+?)\s*(?P<op>!=|<=|>=|=|<|>|~)\s*(?P<value>.*?)\s*")
_COMPARE = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def rows_where(store: EmbeddingStore, where: str | Sequence[str]) -> np.ndarray | None:
    """Which rows meet conditions.

    Args:
        store: whose columns are looked at.
        where: one condition, or several that must all be met.

    Returns:
        (N,) bool; None where there are no conditions.

    Raises:
        ConfigError: a condition cannot be read, names no column, or compares with a value that
            the column cannot have.
    """
    conditions = [where] if isinstance(where, str) else list(where)
    if not conditions:
        return None
    columns = {condition: _column(store.schema, condition) for condition in conditions}
    parts = []
    for table in _tables(store, sorted(set(columns.values()))):
        mask = np.ones(len(table), dtype=bool)
        for condition, name in columns.items():
            mask &= _meets(table, name, condition)
        parts.append(mask)
    return np.concatenate([np.zeros(0, dtype=bool), *parts])


def _column(schema: pa.Schema, condition: str) -> str:
    """The column that a condition looks at."""
    match = _CONDITION.fullmatch(condition)
    if match is None:
        raise ConfigError(
            f"where: {condition!r} is no condition; write COLUMN OP VALUE, such as 'width>=512', "
            f"with one of {' '.join(_COMPARE)} ~"
        )
    name = match["column"]
    if name not in schema.names:
        near = difflib.get_close_matches(name, schema.names, 1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(schema.names)}."
        raise ConfigError(f"where: {name}: no such column. {hint}")
    return str(name)


def _tables(store: EmbeddingStore, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of the store, file by file, so that no more is in memory than one has."""
    for name in store.manifest["parts"]:
        if not name.startswith(TABLE):
            continue
        path = store.folder / name
        try:
            with path.open("rb") as file:
                yield pq.read_table(file, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{path}: cannot be read; embed again with --overwrite"
            ) from error


def _meets(table: pa.Table, name: str, condition: str) -> np.ndarray:
    match = _CONDITION.fullmatch(condition)
    assert match is not None
    op, text = match["op"], match["value"]
    column = table[name]
    if op == "~":
        if not _is_text(column.type):
            raise ConfigError(f"where: {condition!r}: ~ looks into texts; {name} is {column.type}")
        met = pc.match_substring(column, text, ignore_case=True)
    else:
        met = _COMPARE[op](column, _value(text, column.type, condition, name))
    filled = pc.fill_null(met, op == "!=")
    array: np.ndarray = (
        filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy()
    )
    return array.astype(bool, copy=False)


def _value(text: str, kind: pa.DataType, condition: str, name: str) -> pa.Scalar:
    """A value as a column of this type has them."""
    try:
        if _is_text(kind):
            return pa.scalar(text, kind)
        if pa.types.is_boolean(kind):
            return pa.scalar({"true": True, "false": False}[text.lower()])
        if pa.types.is_integer(kind):
            try:
                return pa.scalar(int(text), pa.int64())
            except (ValueError, OverflowError):
                return pa.scalar(float(text))  # width<=0.5 has a meaning, and so has <1e30
        if pa.types.is_floating(kind):
            return pa.scalar(float(text))
        return pa.scalar(text).cast(kind)
    except (ValueError, KeyError, pa.ArrowException) as error:
        raise ConfigError(
            f"where: {condition!r}: {name} is {kind}, which {text!r} is not"
        ) from error


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

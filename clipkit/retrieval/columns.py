"""The columns of a store's table: our own, and those of the source's fields, with fixed types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipkit.data import Reader, SampleError
from clipkit.data.reader import NONE, field_of
from clipkit.errors import ConfigError

OWN = pa.schema(
    [
        ("key", pa.string()),
        ("caption", pa.string()),
        ("origin", pa.string()),  # where the item came from, for people
        ("source_row", pa.int64()),  # its row in the source, for showing it again
        ("path", pa.string()),  # the file that holds the image, or the text …
        ("offset", pa.int64()),  # … and the byte where it begins, in a tar
        ("width", pa.int32()),  # pixels of the upright picture, before it was resized
        ("height", pa.int32()),
        ("image_hash", pa.int64()),  # the same number for the same image file
    ]
)
_FIRST_WITH_HASHES = 3  # the version of the layout from which on image_hash is there
_LOOK = 1_000  # samples, to find the fields and their types
TYPES = {
    "bool": pa.bool_(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
}


def find_columns(reader: Reader, asked: Sequence[str] | None) -> dict[str, str]:
    """Fields of the source's samples and the Arrow types that their columns get.

    Args:
        reader: the source; its first samples are looked at.
        asked: names of fields, ``a.b`` a field inside one; none: all that hold plain values.

    Raises:
        ConfigError: a field is not there.
    """
    if asked is not None and list(asked) in ([], [NONE]):
        return {}
    found: dict[str, str] = {}
    seen: set[str] = set()
    for row in range(min(_LOOK, len(reader))):
        try:
            metadata = reader[row].metadata
        except SampleError:
            continue
        seen.update(metadata)
        for name in metadata if asked is None else asked:
            kind = _kind(field_of(metadata, name))
            if kind is not None:
                found[name] = _common(found.get(name), kind)
    if asked is None:
        return dict(sorted(found.items()))
    for name in asked:
        if name not in found:
            there = f"there are {', '.join(sorted(seen))}" if seen else "there are none"
            raise ConfigError(
                f"--columns: none of the first {min(_LOOK, len(reader)):,} samples has a plain "
                f"value in the field {name!r}; {there}"
            )
    return {name: found[name] for name in asked}


def own_columns(version: int) -> pa.Schema:
    """The columns that every store of a version of the layout has."""
    return OWN if version >= _FIRST_WITH_HASHES else OWN.remove(OWN.get_field_index("image_hash"))


def table_schema(columns: Mapping[str, str], version: int = _FIRST_WITH_HASHES) -> pa.Schema:
    """Of the table, given fields and their types; a field with a name of ours is ``meta_…``."""
    schema = own_columns(version)
    for name, kind in columns.items():
        name = name.encode("utf-8", "replace").decode("utf-8")
        while name in schema.names:
            name = f"meta_{name}"
        schema = schema.append(pa.field(name, TYPES[kind]))
    return schema


def join_tables(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of several stores, end to end. A column that one lacks is null there; of two types
    a column gets the one that takes values of both."""
    kinds: dict[str, pa.DataType] = {}
    for field in (field for table in tables for field in table.schema):
        kind = kinds.setdefault(field.name, field.type)
        if kind != field.type:
            numbers = {kind, field.type} == {pa.int64(), pa.float64()}
            exact = numbers and all(_is_exact_float(table, field.name) for table in tables)
            kinds[field.name] = pa.float64() if exact else pa.string()
    schema = pa.schema(kinds.items())
    return pa.concat_tables(
        [
            pa.table(
                [
                    table[name].cast(kind)
                    if name in table.column_names
                    else pa.nulls(len(table), kind)
                    for name, kind in kinds.items()
                ],
                schema=schema,
            )
            for table in tables
        ]
    )


def _is_exact_float(table: pa.Table, name: str) -> bool:
    """Whether a column, if it is one of whole numbers, has none that a float64 would round."""
    if name not in table.column_names or table[name].type != pa.int64():
        return True
    bounds = pc.min_max(table[name]).as_py()
    return all(abs(bound) <= 2**53 for bound in bounds.values() if bound is not None)


def fit(value: Any, kind: str) -> tuple[Any, bool]:
    """A value as its column takes it, None where it cannot; and whether it could."""
    if value is None:
        return None, True
    ours = _kind(value)
    if ours is None or _common(ours, kind) != kind:
        return None, False
    if kind == "string":
        return str(value).encode("utf-8", "replace").decode("utf-8"), True
    return (float(value) if kind == "float64" else value), True


def _kind(value: Any) -> str | None:
    """The type of one value; None where it is nothing, or nothing plain."""
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, int | np.integer):
        return "int64" if -(2**63) <= value < 2**63 else "string"
    if isinstance(value, float | np.floating):
        return "float64"
    if value is None or isinstance(value, bytes | Mapping | list | tuple | set | np.ndarray):
        return None
    return "string"


def _common(one: str | None, other: str) -> str:
    """A type that takes values of both."""
    if one is None or one == other:
        return other
    return "float64" if {one, other} == {"int64", "float64"} else "string"

"""Parquet files → one dataset, whatever the shards' columns differ in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from clipkit.config.schema import SourceConfig
from clipkit.data import files, remote
from clipkit.data.arrow import DatasetReader
from clipkit.data.magic import content_of, is_parquet
from clipkit.errors import DataError

_INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_FLOATS = ("float16", "float32", "float64")
_LARGE = {"string": "large_string", "binary": "large_binary"}


def open_parquet(source: SourceConfig, paths: list[str], *, progress: bool) -> DatasetReader:
    """Pairs of Parquet files with image bytes, or with paths relative to them.

    Files may lack a column of others, where it is null, have their columns in another order, and
    numbers and texts of another width.

    Raises:
        DataError: a file is missing or no Parquet, or columns are; or a column holds one kind of
            value in one file and another in another.
    """
    import pyarrow.parquet

    filled, sizes = [], []
    schemas: dict[str, Any] = {}
    for path in paths:
        stat = files.stat(path)
        if not files.is_url(path):
            try:
                with open(path, "rb") as file:
                    about = pyarrow.parquet.ParquetFile(file)
                    schemas[path] = about.schema_arrow
                    if not about.metadata.num_rows:
                        del schemas[path]
                        continue
            except (ValueError, OSError) as error:
                raise DataError(_no_parquet(path, stat.size)) from error
        elif len(paths) > 1:
            fs, inner = remote.filesystem(path)
            with contextlib.suppress(ValueError, OSError), fs.open(inner, "rb") as file:
                schemas[path] = pyarrow.parquet.read_schema(file)
        filled.append(path)
        sizes.append(stat.size)
    if not filled:
        raise DataError(f"{source.path}: no usable row.")
    differ = any(not schema.equals(schemas[filled[0]]) for schema in schemas.values())
    lacking: dict[str, int] = {}

    def load(datasets: Any) -> Any:
        features = None
        if differ and len(schemas) == len(filled):
            shards = {
                path: datasets.Features.from_arrow_schema(schema)
                for path, schema in schemas.items()
            }
            features = datasets.Features(_merge_columns(shards, datasets, lacking))
        return datasets.load_dataset("parquet", data_files=filled, split="train", features=features)

    folder = files.parent(paths[0])
    reader = DatasetReader(source, load, folder=folder, sizes=sizes, progress=progress)
    for name, number in lacking.items():
        reader.add_note(
            f"column {name} is missing in {number:,} of {len(filled):,} files, null there"
        )
    return reader


def _no_parquet(path: str, size: int) -> str:
    start = files.read(path, 0, 512)
    if is_parquet(start) or not start:
        return f"{path}: not a Parquet file, or cut short ({size} bytes)."
    what, remedy = content_of(start) or ("text", "call a table .csv, .tsv or .jsonl")
    if what == "text" and b"\0" in start:
        return f"{path}: not a Parquet file, or cut short ({size} bytes)."
    return f"{path}: not a Parquet file, or cut short ({size} bytes): it is {what}; {remedy}."


def _merge_columns(
    shards: Mapping[str, Mapping[str, Any]], datasets: Any, lacking: dict[str, int]
) -> dict[str, Any]:
    """Column → its feature in all files; ``lacking`` is told in how many files one is missing.

    Raises:
        DataError: it holds one kind of value in one file and another in another.
    """
    merged: dict[str, Any] = {}
    first: dict[str, str] = {}
    for path, features in shards.items():
        for name, feature in features.items():
            if name not in merged:
                merged[name], first[name] = feature, path
                continue
            both = _merge(merged[name], feature, datasets)
            if both is None:
                raise DataError(
                    f"{path}: column {name} is {_kind(feature)}, and {_kind(merged[name])} in "
                    f"{first[name]}; write both alike, or name the files apart."
                )
            merged[name] = both
    for name in merged:
        if missing := sum(name not in features for features in shards.values()):
            lacking[name] = missing
    return merged


def _merge(one: Any, other: Any, datasets: Any) -> Any:
    """A feature that holds the values of both; None where there is none."""
    if one == other:
        return one
    if isinstance(one, dict) and isinstance(other, dict):
        fields = {
            name: _merge(one[name], other[name], datasets) if name in one and name in other
            else one.get(name, other.get(name))
            for name in (*one, *(name for name in other if name not in one))
        }  # fmt: skip
        return None if any(field is None for field in fields.values()) else fields
    if isinstance(one, datasets.Image) or isinstance(other, datasets.Image):
        plain = other if isinstance(one, datasets.Image) else one
        is_raw = isinstance(plain, datasets.Value) and plain.dtype in ("binary", "string", "null")
        is_pair = isinstance(plain, dict) and {"bytes", "path"} == set(plain)
        return datasets.Image() if is_raw or is_pair else None
    lists = [each for each in (one, other) if isinstance(each, datasets.List)]
    if len(lists) == 2:
        inner = _merge(lists[0].feature, lists[1].feature, datasets)
        return None if inner is None else datasets.List(inner)
    for each, plain in ((one, other), (other, one)):
        if isinstance(plain, datasets.Value) and plain.dtype == "null":
            return each
    if isinstance(one, datasets.Value) and isinstance(other, datasets.Value):
        dtype = _wider(one.dtype, other.dtype)
        return None if dtype is None else datasets.Value(dtype)
    return None


def _wider(one: str, other: str) -> str | None:
    """A type that holds the values of both."""
    pair = {one, other}
    if pair <= {*_INTEGERS}:
        return "int64" if "uint64" not in pair else None
    if pair <= {*_INTEGERS, *_FLOATS}:
        return "float64"
    for small, large in _LARGE.items():
        if pair == {small, large}:
            return large
    numbers = {*_INTEGERS, *_FLOATS}
    texts = {"string", "large_string"}
    return "large_string" if pair & texts and pair & numbers else None


def _kind(feature: Any) -> str:
    return str(getattr(feature, "dtype", None) or type(feature).__name__.lower())

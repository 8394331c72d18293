"""A table's file → its records, each with its place: CSV and its kin, JSON in its layouts."""

from __future__ import annotations

from clipkit.data import files
from clipkit.data.records.delimited import Delimited
from clipkit.data.records.json_layouts import JsonRecords, looks_like_json
from clipkit.data.records.lines import BLOCK, Found, Record
from clipkit.errors import DataError

__all__ = ["EXTENSIONS", "Delimited", "Found", "JsonRecords", "Record", "open_records"]

EXTENSIONS = ("csv", "tsv", "jsonl", "ndjson", "json")


def open_records(path: str) -> Delimited | JsonRecords:
    """The records of one table, by its name and its first bytes.

    Raises:
        DataError: it is no table, or in an encoding that is not read.
    """
    start = files.read(path, 0, BLOCK)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16; save it as UTF-8.")
    name = path.lower()
    if name.endswith((".jsonl", ".ndjson", ".json")) or looks_like_json(start):
        return JsonRecords(path, start)
    return Delimited(path, start)

"""Fields that ``clipkit data pack`` writes beside a sample's image and first caption.

In the ``.json`` member of a tar stand the fields of the source, and beside them:

- ``key``: the sample's name in the source;
- ``captions``: all captions, where samples of the source have several;
- ``class``: the name of the class, where ``.cls`` holds its number;
- ``packed``: who wrote this, by which a reader knows the others.

A field of the source that has one of these names is written as ``source.NAME``. In Parquet the
captions and the class are columns, and ``metadata`` holds the other fields as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PACKED = "clipkit 2"
_OURS = ("key", "captions", "class", "packed")
_SOURCE = "source."


@dataclass(frozen=True, slots=True)
class PackedFields:
    """Fields of a packed sample.

    Attributes:
        metadata: the fields of the source, and ``key``.
        captions: all captions; empty where the first is the only one.
        class_name: None where there is none.
    """

    metadata: dict[str, Any]
    captions: list[str]
    class_name: str | None


def pack_fields(
    metadata: Mapping[str, Any], *, key: str, captions: list[str] | None, class_name: str | None
) -> dict[str, Any]:
    """The fields of a ``.json`` member; see the module.

    Args:
        metadata: the fields of the source.
        key: the sample's name in the source.
        captions: all captions; None where samples have one.
        class_name: None where there is none.
    """
    fields = {
        _SOURCE + name if name in _OURS or name.startswith(_SOURCE) else name: value
        for name, value in metadata.items()
    }
    if fields.get(_SOURCE + "key") == key:
        del fields[_SOURCE + "key"]
    fields["key"] = key
    if captions is not None:
        fields["captions"] = captions
    if class_name is not None:
        fields["class"] = class_name
    return {**fields, "packed": PACKED}


def unpack_fields(fields: dict[str, Any]) -> PackedFields:
    """The inverse of ``pack_fields``; of fields that it did not make, those alone."""
    if fields.get("packed") != PACKED:
        return PackedFields(fields, [], None)
    metadata: dict[str, Any] = {"key": fields.get("key")}
    for name, value in fields.items():
        if name not in _OURS:
            metadata[name.removeprefix(_SOURCE)] = value
    captions, class_name = fields.get("captions"), fields.get("class")
    return PackedFields(
        metadata,
        [str(text) for text in captions] if isinstance(captions, list) else [],
        class_name if isinstance(class_name, str) else None,
    )


def is_packed(columns: Sequence[str]) -> bool:
    """Whether columns are those that packing writes where samples have captions."""
    return {"key", "image", "caption", "captions", "metadata"}.issubset(columns)


def unpack_metadata(columns: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a row of packed Parquet; of any other row, those alone."""
    text = columns.get("metadata")
    if not isinstance(text, str) or PACKED not in text:
        return columns
    try:
        fields = json.loads(text)
    except ValueError:
        return columns
    packed = isinstance(fields, dict) and fields.get("packed") == PACKED
    return unpack_fields(fields).metadata if packed else columns

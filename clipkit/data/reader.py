"""What every source of pairs offers: counted, random access by row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

from clipkit.config.schema import SourceConfig
from clipkit.types import Pair

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
CAPTION_EXTENSIONS = ("txt", "caption", "text")
# Tried in this order where a config names no column.
IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes"),
    *("image_path", "img_path", "filepath", "file_path", "image_file", "file_name", "filename"),
    *("path", "file", "image_url", "img_url", "url"),
)
CAPTION_COLUMNS = (
    *("caption", "text", "txt", "captions", "title", "description", "sentence"),
    *("sentences", "alt_text", "alt", "prompt"),
)
# What a class name becomes, as in CLIP's zero-shot prompts.
CLASS_TEMPLATE = "a photo of a {}"
# ``image: none`` or ``caption: none`` in a config: the source has none, and none are needed.
NONE = "none"
MAX_IMAGE_BYTES = 256 * 2**20  # more is no photograph; it would have to be read whole
MAX_CAPTION_BYTES = 2**20


class SampleError(ValueError):
    """One sample cannot be used; its text is a short noun phrase to count by."""


class Reader(Protocol):
    """Image-text pairs by row. Readers pickle, and open their files in each process anew.

    Attributes:
        source: what was asked for.
        shard_sizes: samples a shard, in shard order; a row counts through them.
        dropped: samples that were left out when counting, by reason.
        damage: what is wrong with the files, a sentence each, naming file and place.
        lost: samples lost to that damage: an estimate, at least one a place.
        fingerprint: hash of the files' names and sizes, of captions kept apart from the images,
            and of the counts.
    """

    source: SourceConfig
    shard_sizes: list[int]
    dropped: dict[str, int]
    damage: list[str]
    lost: int
    fingerprint: str

    def __len__(self) -> int:
        """How many usable samples there are."""
        ...

    def __getitem__(self, row: int) -> Pair:
        """The raw pair of a row.

        Raises:
            SampleError: this sample cannot be read; others can.
            DataError: a file of the source is missing or unreadable.
        """
        ...

    def locate(self, row: int) -> str:
        """Where a row is, in the words of an error message."""
        ...

    def captions(self) -> Iterator[str]:
        """All captions in row order, without reading images; empty where there is none."""
        ...

    def image_names(self) -> Iterator[str] | None:
        """The name of each row's image, where several rows may share one; else None."""
        ...


def caption_texts(value: Any, source: SourceConfig) -> list[str]:
    """What a column or JSON field says as captions, as many as the source's ``captions`` asks
    for; empty texts are left out of a list."""
    if not isinstance(value, list | tuple):
        text = _text(value)
        return [] if text is None else [text]
    texts = [text for item in value if (text := _text(item)) and text.strip()]
    if source.captions == "join":
        return [", ".join(texts)] if texts else []
    return texts[:1] if source.captions == "first" else texts


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | tuple):
        return ", ".join(text for item in value if (text := _text(item))) or None
    return value.decode("utf-8-sig", "replace") if isinstance(value, bytes) else str(value)


def field_of(record: Any, path: str) -> Any:
    """The column ``path``, or ``a.b`` of nested dictionaries; None where it is not there."""
    if isinstance(record, dict) and path in record:  # a column's name may hold a dot
        return record[path]
    for name in path.split("."):
        if not isinstance(record, dict):
            return None
        record = record.get(name)
    return record


def class_caption(folder: str) -> str:
    """``golden_retriever`` → ``a photo of a golden retriever``."""
    return CLASS_TEMPLATE.format(folder.replace("_", " ").strip())

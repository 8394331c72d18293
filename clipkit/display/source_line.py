"""A source that was opened → the one line that says how it was read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data.arrow import DatasetReader
from clipkit.data.image_ids import number_images
from clipkit.data.mixture import MixtureReader
from clipkit.data.reader import Reader, SampleError, samples_text
from clipkit.data.table import TableReader
from clipkit.data.webdataset import TarReader
from clipkit.display.console import escape_control, remark, shorten
from clipkit.types import Pair

_SHOWN = 60  # columns that a caption or a key takes in the line
_REASONS = 6  # named one by one; the others are added up
_COUNTED = 100_000  # rows; of larger sources, rows that share an image are not looked for


def remark_source(reader: Reader, *, name: str = "") -> None:
    """Prints on stderr how a source was read; of a mixture, a line for each of its sources.

    Args:
        reader: of the source.
        name: stands before the line, where a command reads several.
    """
    for part in reader.parts if isinstance(reader, MixtureReader) else [reader]:
        remark(f"{name}{part.source.path}: {describe(part)}")
        for line in _without_effect(part):
            remark(f"{name}{part.source.path}: {line}")


def describe(reader: Reader) -> str:
    """The line that a command prints of a source before it works on it.

    It counts the samples, names where images and captions come from, shows the first sample that
    can be read, and counts by reason what was left out.

    Example:
        >>> describe(open_source("photos"))
        '5,000 rows, images: image files, captions: NAME.txt beside each image · first: 000.jpg
        "a red circle" · left out 12: 8 no caption, 4 not an image file (.heic)'
    """
    understood = reader.understood
    first: Pair | None = None
    unreadable = ""
    for row in range(min(3, len(reader))):
        try:
            first = reader[row]
            break
        except SampleError as error:  # counted when it is its turn
            unreadable = unreadable or f"{reader.place(row)[0]}: {error}"
    parts = [f"{samples_text(reader)} rows"]
    if understood.images:
        parts.append(f"images: {understood.images}")
    if understood.captions:
        also = f" (also there: {', '.join(understood.also)})" if understood.also else ""
        word = "classes" if isinstance(reader.source, LabelSource) else "captions"
        parts.append(f"{word}: {understood.captions}{also}")
    an_image = understood.an_image
    if not an_image and first is not None and first.others:
        an_image = f"{1 + len(first.others)}"
    an_image = an_image or _rows_an_image(reader)
    if an_image not in ("", "1"):
        parts.append(f"{an_image} an image")
    line = ", ".join(parts)
    if first is not None:
        line += f" · first: {_of(first)}"
    elif unreadable:
        line += f" · the first cannot be read: {unreadable}"
    left_out = {**reader.dropped}
    for reason, count in understood.unused.items():
        left_out[reason] = left_out.get(reason, 0) + count
    if told := _left_out(left_out):
        line += f" · {told}"
    return escape_control(" · ".join([line, *understood.notes]))


def _without_effect(reader: Reader) -> list[str]:
    """A sentence for each key of the source that is set and changes nothing of how it is read."""
    source, understood, usual = reader.source, reader.understood, SourceConfig()
    if isinstance(source, LabelSource):
        return []
    told = []
    if source.templates != usual.templates and not understood.classes:
        told.append("templates: have no effect, as no caption is the name of a class")
    if source.class_names and not (understood.classes or understood.class_names):
        told.append("class_names: has no effect, as there are no classes to name")
    if source.split != usual.split and isinstance(reader, TarReader | TableReader):
        told.append(
            f"split: {source.split} has no effect, as these are files without splits, and all of "
            "them are read; name those of the split as the path"
        )
    return told


def _rows_an_image(reader: Reader) -> str:
    """How many rows an image has, where that is cheap to know and more than one."""
    if not isinstance(reader, TarReader | DatasetReader | TableReader) or reader.access.remote:
        return ""
    if len(reader) > _COUNTED or (images := reader.image_files()) is None:
        return ""
    # A table is known by the names; the content of its files would have to be read.
    ids = images.of_row if isinstance(reader, TableReader) else number_images(images)
    if ids is None or not len(ids):
        return ""
    rows = np.bincount(ids)
    least, most = int(rows.min()), int(rows.max())
    return "" if most == 1 else str(most) if least == most else f"{least} to {most}"


def _of(pair: Pair) -> str:
    caption = "" if pair.caption is None else f' "{shorten(pair.caption.strip(), _SHOWN)}"'
    return f"{shorten(pair.key, _SHOWN)}{caption}"


def _left_out(reasons: Mapping[str, int]) -> str:
    total = sum(reasons.values())
    if not total:
        return ""
    ordered = sorted(reasons.items(), key=lambda each: -each[1])
    named = [f"{count:,} {reason}" for reason, count in ordered[:_REASONS]]
    if rest := sum(count for _, count in ordered[_REASONS:]):
        named.append(f"{rest:,} for other reasons")
    return f"left out {total:,}: {', '.join(named)}"

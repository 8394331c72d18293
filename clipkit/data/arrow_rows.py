"""The columns of an Arrow table → which rows have an image, and which a caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data import reader
from clipkit.data.columns import is_number
from clipkit.data.image_ids import image_batches

_ROWS = 10_000  # looked at together


def has_image(column: Any, nested: Sequence[str]) -> NDArray[np.bool_]:
    """(rows,) whether there are bytes or a path of an image; nothing of the bytes is read.

    Args:
        column: a ``datasets.Dataset`` in the format ``arrow``, of one column.
        nested: the fields inside it that lead to the image; empty where the column is the image.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    found = [np.zeros(0, dtype=bool)]
    for _, images, names in image_batches(column, nested):
        there = np.zeros(len(images), dtype=bool)
        for values in (images, names):
            if not pa.types.is_null(values.type):
                length = compute.fill_null(compute.binary_length(values), 0)
                there |= np.asarray(length) > 0
        found.append(there)
    return np.concatenate(found)


class CaptionColumns:
    """Contents of the columns of the captions.

    Args:
        data: a ``datasets.Dataset``.
        names: the columns, or fields inside them.
        digest: a hash that is told the texts.

    Attributes:
        filled: (rows,) whether one of the columns says anything.
        lists: cells that hold a list that was saved as text.
        only_numbers: whether all texts are numbers.
    """

    def __init__(self, data: Any, names: Sequence[str], digest: Any) -> None:
        self.lists = 0
        self.only_numbers = True
        self.filled = np.logical_or.reduce([self._filled(data, name, digest) for name in names])
        self.only_numbers = self.only_numbers and bool(self.filled.any())

    def _filled(self, data: Any, name: str, digest: Any) -> NDArray[np.bool_]:
        import pyarrow as pa

        nested = name not in data.features
        column = name.split(".")[0] if nested else name
        found = [np.zeros(0, dtype=bool)]
        for table in data.with_format("arrow").select_columns([column]).iter(batch_size=_ROWS):
            values = table.column(0)
            if not nested and (
                pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
            ):
                raw = values.cast(pa.large_binary()).to_pylist()  # some may not be UTF-8
                digest.update(b"\0".join(text or b"" for text in raw))
                found.append(self._texts(raw))
                continue
            items = values.to_pylist()
            digest.update(repr(items).encode("utf-8", "replace"))
            if nested:
                items = [reader.field_of({column: item}, name) for item in items]
            found.append(self._texts(items))
        return np.concatenate(found)

    def _texts(self, values: Sequence[Any]) -> NDArray[np.bool_]:
        filled = np.zeros(len(values), dtype=bool)
        for i, value in enumerate(values):
            if isinstance(value, bytes):
                value = reader.decode_text(value)
            texts = [text for text in reader.all_texts(value) if text.strip()]
            filled[i] = bool(texts)
            self.lists += isinstance(value, str) and reader.saved_list(value) is not None
            self.only_numbers = self.only_numbers and all(map(is_number, texts))
        return filled

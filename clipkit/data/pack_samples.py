"""A row of a source → the sample that packing writes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from clipkit.data.check import image_kind, usable
from clipkit.data.packed_fields import pack_fields
from clipkit.data.reader import NONE, Reader, SampleError, class_captions
from clipkit.types import Skip


@dataclass(frozen=True, slots=True)
class Packing:
    """How shards are written.

    Attributes:
        format: of the shards.
        shard_size: bytes, about.
        resize: pixels of the shorter edge of what is larger, then a JPEG; None keeps every
            image byte for byte.
        quality: of these JPEGs.
    """

    format: Literal["webdataset", "parquet"] = "webdataset"
    shard_size: int = 256 * 10**6
    resize: int | None = None
    quality: int | None = None


@dataclass(slots=True)
class Sample:
    """A sample as it is written.

    Attributes:
        name: its row in the source.
        image: the encoded image file, or None.
        extension: of the image.
        captions: all captions; none where the class stands for them.
        class_number: of its class, where the source numbers them.
        class_name: of its class.
        key: its name in the source.
        metadata: the source's other fields.
    """

    name: str
    image: bytes | None
    extension: str
    captions: list[str]
    class_number: int | None
    class_name: str | None
    key: str
    metadata: dict[str, Any]

    def number(self, names: Sequence[str]) -> int | None:
        """The number of the class, by the source or by its place among all names."""
        if self.class_number is None and self.class_name in names:
            return names.index(self.class_name)
        return self.class_number

    def fields(self, *, captions: bool) -> bytes:
        """The JSON of a ``.json`` member; see :mod:`clipkit.data.packed_fields`."""
        fields = pack_fields(
            self.metadata,
            key=self.key,
            captions=self.captions if captions else None,
            class_name=self.class_name,
        )
        text = json.dumps(plain_json(fields), ensure_ascii=False, default=str)
        return text.encode("utf-8", "replace")


def make_sample(reader: Reader, row: int, packing: Packing) -> Sample | Skip:
    """Reads a sample, decodes it to be sure that it can be, and makes it smaller if asked to."""
    try:
        pair = reader[row]
        decoded, _ = usable(pair, reader.source)
    except SampleError as error:
        return Skip(reader.locate(row), str(error))
    image = pair.image if decoded else None
    if decoded and packing.resize and min(decoded.size) > packing.resize:
        image = _smaller(decoded, packing.resize, packing.quality or 90)
    captions: list[str] = []
    if reader.source.caption != NONE and pair.caption is not None:
        captions = [_without_halves(text) for text in (pair.caption, *pair.others)]
    if pair.class_name is not None and captions == class_captions(pair.class_name, reader.source):
        captions = []
    return Sample(
        name=f"{row:09d}",
        image=image,
        extension=image_kind(image)[1] if image else "",
        captions=captions,
        class_number=pair.class_number,
        class_name=pair.class_name,
        key=pair.key,
        metadata=pair.metadata,
    )


def _without_halves(text: str) -> str:
    """Halves of surrogate pairs, as broken JSON holds them, have no bytes."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _smaller(image: Image.Image, edge: int, quality: int) -> bytes:
    """A JPEG whose shorter edge is ``edge`` pixels long."""
    scale = edge / min(image.size)
    size = (max(edge, round(image.width * scale)), max(edge, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    image.info = {}  # a colour profile speaks of the pixels before they were made RGB
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def plain_json(value: Any) -> Any:
    """A value as JSON can hold it: without bytes, and NaN as null."""
    if isinstance(value, Mapping):
        kept = ((key, each) for key, each in value.items() if not isinstance(each, bytes))
        return {str(key): plain_json(each) for key, each in kept}
    if isinstance(value, list | tuple):
        return [plain_json(each) for each in value if not isinstance(each, bytes)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

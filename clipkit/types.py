"""What passes between folders: (image bytes, caption) → Batch → Embeddings.

Shape legend, here and everywhere: B pairs on this rank, N pairs on all ranks (or rows of a
store), D embedding, L tokens, H and W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(slots=True)
class Pair:
    """One sample as read from its source: raw bytes and raw text, nothing decoded.

    Attributes:
        key: the sample's name in its source; opaque, never used as a path.
        image: the encoded image file, or None where the sample has none.
        caption: the text, or None where the sample has none; the first of several.
        origin: where it came from, in the words of an error message,
            e.g. ``data/train-003.tar, sample 000123``.
        metadata: the sample's other fields, where the source has them.
        others: further captions, to choose from when training.
        class_number: of the sample's class, where the source numbers its classes.
        class_name: of the sample's class, as the source writes it.
    """

    key: str
    image: bytes | None
    caption: str | None
    origin: str
    metadata: dict[str, Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    class_number: int | None = None
    class_name: str | None = None


@dataclass(slots=True)
class Skip:
    """A sample that could not be used: ``origin`` says where, ``reason`` why (a short noun
    phrase to count by, e.g. ``truncated image``, ``empty caption``)."""

    origin: str
    reason: str


@dataclass(slots=True)
class Item:
    """What a sample is called, says and shows, besides its tensors.

    Attributes:
        origin: where it came from, in the words of an error message.
        caption: as it is tokenized; None where it has none, or none is asked for.
        path: the file that holds the image, or the text where there is no image.
        offset: the byte of that file where the image begins, in a tar; None elsewhere.
        width: pixels of the upright picture before it is resized; None without one.
        height: the same.
        metadata: those of the sample's other fields that are asked for.
    """

    origin: str
    caption: str | None
    path: str
    offset: int | None
    width: int | None
    height: int | None
    metadata: dict[str, Any]


@dataclass(slots=True)
class Batch:
    """B pairs as tensors, on the CPU, as the loader yields them.

    A sample that could not be used keeps its row, with ``valid`` False, so that the order
    of the others is a function of (seed, position) alone; the loss leaves such rows out.

    Attributes:
        pixel_values: (B, 3, H, W) uint8 RGB, transformed but not yet normalised.
        input_ids: (B, L) int64, padded to the longest caption of this batch.
        valid: (B,) bool.
        keys: B names.
        step: the optimizer step this batch belongs to; 0 for evaluation.
        skipped: the samples behind the rows that are not valid.
        truncated: how many captions were cut at the context length.
        replaced: how many hold U+FFFD, in place of bytes that are not UTF-8.
        groups: (B, 2) int64, a number for the caption and one for the image file of each row,
            the same for the same content; None where it was not asked for.
        items: B descriptions, None for a row that is not valid; empty where not asked for.
        told: what was asked of each of the B raw pairs, None for a row that is not valid; empty
            where nothing was asked.
    """

    pixel_values: Tensor
    input_ids: Tensor
    valid: Tensor
    keys: list[str]
    step: int = 0
    skipped: list[Skip] = field(default_factory=list)
    truncated: int = 0
    replaced: int = 0
    groups: Tensor | None = None
    items: list[Item | None] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Embeddings:
    """Embeddings of one data set, row i of everything belonging together.

    Attributes:
        keys: N names.
        image_embeds: (N, D) float32, unit length; None where only texts were embedded.
        text_embeds: (N, D) float32, unit length; None where only images were embedded.
        captions: N texts, or None.
        skipped: the samples that have no row.
    """

    keys: list[str]
    image_embeds: np.ndarray | None
    text_embeds: np.ndarray | None
    captions: list[str] | None = None
    skipped: list[Skip] = field(default_factory=list)

"""A source → what is in it and what is wrong with it: every sample read, every image decoded.

The work is done in worker processes, part by part; what is kept of a sample is some 100 bytes
of numbers, so that a source of any size can be checked.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from clipkit.config.schema import DataConfig, SourceConfig
from clipkit.data.decode import DEPTH, decode_image
from clipkit.data.formats import format_of
from clipkit.data.reader import NONE, Reader, SampleError
from clipkit.data.tokenize import clean_caption
from clipkit.data.workers import WorkerLoader
from clipkit.errors import DataError
from clipkit.types import Pair, Skip

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

EXAMPLES = 3  # of each fault
_PART = 64  # samples; small enough for a bar that moves, large enough to tokenize in one go


@dataclass(slots=True)
class Fault:
    """Samples that cannot be used for one reason: how many, and where some of them are."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Repeats:
    """What is there more than once.

    Attributes:
        extra: samples that repeat an earlier one.
        examples: (copies, row of the first, row of the second), the most copies first.
    """

    extra: int
    examples: list[tuple[int, int, int]]


@dataclass(slots=True)
class Findings:
    """Findings of a check, of U usable samples with C captions; arrays are in row order.

    Attributes:
        samples: how many were read.
        rows: (U,) rows of the usable ones in the source.
        image_bytes: of all image files that were read.
        formats: usable images by format.
        sizes: (U, 2) width and height as stored upright; zeros where there are no images.
        an_image: (I,) captions of each different image; of each row where there are no images.
        characters: (C,) of all captions, cleaned as they are for training.
        tokens: (C,) of all captions with start and end, uncut; None without a tokenizer.
        bad: what cannot be used, by reason.
        same_samples: the same image, byte for byte, with the same captions.
        other_captions: the same image with other captions: no duplicates.
        same_captions: after cleaning; ``extra`` counts captions.
    """

    samples: int
    rows: NDArray[np.int64]
    image_bytes: int
    formats: Counter[str]
    sizes: NDArray[np.int32]
    an_image: NDArray[np.int64]
    characters: NDArray[np.int32]
    tokens: NDArray[np.int32] | None
    bad: dict[str, Fault]
    same_samples: Repeats
    other_captions: Repeats
    same_captions: Repeats


def check_source(
    reader: Reader,
    *,
    workers: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Findings:
    """Reads and decodes every sample.

    Args:
        reader: of the source.
        workers: processes; 0 does it in this one.
        tokenizer: where given, captions are counted in its tokens.
        advance: called with the number of samples newly done.

    Raises:
        DataError: a file of the source is gone or cannot be read.
    """
    total = len(reader)
    parts: list[_Part] = []
    bad: dict[str, Fault] = {}
    loader = WorkerLoader(
        _Parts(reader, tokenizer), range(-(-total // _PART)), workers=workers, ahead=2 * workers
    )
    try:
        for part in loader:
            if isinstance(part, DataError):
                raise part
            parts.append(part)
            for skip in part.skipped:
                fault = bad.setdefault(skip.reason, Fault())
                fault.count += 1
                if len(fault.examples) < EXAMPLES:
                    fault.examples.append(skip.origin)
            advance(len(part.rows) + len(part.skipped))
    finally:
        loader.close()
    return _summed_up(reader, parts, bad, counted=tokenizer is not None)


def _summed_up(
    reader: Reader, parts: list[_Part], bad: dict[str, Fault], *, counted: bool
) -> Findings:
    """The parts laid end to end, and what repeats in them."""

    def joined(name: str, *shape: int, dtype: type = np.int64) -> NDArray[Any]:
        return np.concatenate([np.zeros((0, *shape), dtype), *(getattr(p, name) for p in parts)])

    rows, texts = joined("rows"), joined("texts")
    images = joined("images", 2, dtype=np.uint64)
    captions = joined("captions", 2, dtype=np.uint64)
    row_of = np.repeat(rows, texts)
    nothing = Repeats(0, [])
    has_images, has_captions = reader.source.image != NONE, reader.source.caption != NONE
    samples = joined("samples", 2, dtype=np.uint64)
    _, first = np.unique(samples, axis=0, return_index=True)
    different = np.sort(first)
    an_image = texts
    if has_images:
        _, image = np.unique(images, axis=0, return_inverse=True)
        an_image = np.bincount(image.ravel()[different], weights=texts[different]).astype(np.int64)
    return Findings(
        samples=len(reader),
        rows=rows,
        image_bytes=sum(part.image_bytes for part in parts),
        formats=sum((part.formats for part in parts), start=Counter[str]()),
        sizes=joined("sizes", 2, dtype=np.int32),
        an_image=an_image,
        characters=joined("characters", dtype=np.int32),
        tokens=joined("tokens", dtype=np.int32) if counted else None,
        bad=bad,
        same_samples=_repeats(samples, rows) if has_images else nothing,
        other_captions=_repeats(images[different], rows[different]) if has_images else nothing,
        same_captions=_repeats(captions, row_of) if has_captions else nothing,
    )


def image_kind(data: bytes) -> tuple[str, str]:
    """The format of an image file that can be decoded, and its usual extension."""
    known = format_of(data)
    return (known.name, known.extensions[0]) if known else ("other", "img")


def usable(pair: Pair, source: SourceConfig) -> tuple[Image | None, list[str]]:
    """The decoded image and the clean captions of a pair, as training would use them; None and
    no text where the source has no images, or no captions.

    Raises:
        SampleError: training would skip it.
    """
    image = None
    if source.image != NONE:
        if pair.image is None:
            raise SampleError("no image")
        image = decode_image(pair.image, max_pixels=DataConfig().max_image_pixels)
    captions: list[str] = []
    if source.caption != NONE:
        given = (pair.caption, *pair.others)
        captions = [text for each in given if (text := clean_caption(each))]
        if not captions:
            raise SampleError("empty caption")
    return image, captions


@dataclass(slots=True)
class _Part:
    """The findings of u neighbouring rows with c captions; see ``Findings``.

    Attributes:
        texts: (u,) captions of each row.
        images, samples: (u, 2) 128 bits of the SHA-256 of each image, and of it with its captions.
        captions: (c, 2) likewise.
    """

    rows: NDArray[np.int64]
    texts: NDArray[np.int64]
    sizes: NDArray[np.int32]
    characters: NDArray[np.int32]
    tokens: NDArray[np.int32]
    images: NDArray[np.uint64]
    samples: NDArray[np.uint64]
    captions: NDArray[np.uint64]
    image_bytes: int
    formats: Counter[str]
    skipped: list[Skip]


class _Parts(Dataset["_Part | DataError"]):
    def __init__(self, reader: Reader, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._reader, self._tokenizer = reader, tokenizer

    def __getitem__(self, number: int) -> _Part | DataError:
        first = number * _PART
        try:
            return self._part(range(first, min(first + _PART, len(self._reader))))
        except DataError as error:
            return error  # raised in a worker it would come wrapped in a traceback

    def _part(self, wanted: range) -> _Part:
        source = self._reader.source
        rows: list[int] = []
        sizes, images, image_bytes = [], [], 0
        texts: list[list[str]] = []
        formats: Counter[str] = Counter()
        skipped: list[Skip] = []
        for row in wanted:
            try:
                pair = self._reader[row]
                image_bytes += len(pair.image or b"")
                image, captions = usable(pair, source)
            except SampleError as error:
                skipped.append(Skip(self._reader.locate(row), str(error)))
                continue
            rows.append(row)
            sizes.append(image.size if image else (0, 0))
            texts.append(captions)
            images.append(pair.image or b"")
            if image:
                bits = image.info.get(DEPTH, 16)
                of_16 = f" ({bits} of 16 bits)" if bits < 16 else ""
                formats[image_kind(images[-1])[0] + of_16] += 1
        flat = [text for captions in texts for text in captions]
        of_images = _hashes(images)
        of_samples = [
            digest.tobytes() + "\0".join(sorted(captions)).encode("utf-8", "replace")
            for digest, captions in zip(of_images, texts, strict=True)
        ]
        return _Part(
            rows=np.array(rows, dtype=np.int64),
            texts=np.array([len(captions) for captions in texts], dtype=np.int64),
            sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
            characters=np.array([len(text) for text in flat], dtype=np.int32),
            tokens=np.array(self._count_tokens(flat), dtype=np.int32),
            images=of_images,
            samples=_hashes(of_samples),
            captions=_hashes([text.encode("utf-8", "replace") for text in flat]),
            image_bytes=image_bytes,
            formats=formats,
            skipped=skipped,
        )

    def _count_tokens(self, texts: list[str]) -> list[int]:
        if self._tokenizer is None or not texts:
            return []
        encoded = self._tokenizer(
            texts,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            split_special_tokens=True,
            verbose=False,
        )
        return [len(ids) for ids in encoded["input_ids"]]


def _hashes(items: list[bytes]) -> NDArray[np.uint64]:
    joined = b"".join(hashlib.sha256(item).digest()[:16] for item in items)
    return np.frombuffer(joined, dtype=np.uint64).reshape(-1, 2)


def _repeats(hashes: NDArray[np.uint64], rows: NDArray[np.int64]) -> Repeats:
    """Equal hashes, (N, 2), of what stands at ``rows``, (N,)."""
    order = np.lexsort((hashes[:, 0], hashes[:, 1]))  # stable: equal ones stay in row order
    ordered = hashes[order]
    same = (ordered[1:] == ordered[:-1]).all(axis=1)  # as the one before
    begins = np.flatnonzero(np.concatenate([[True], ~same])) if len(order) else order
    copies = np.diff(np.append(begins, len(order)))
    groups = np.flatnonzero(copies > 1)
    # The most copies first; of equally many, what comes first in the source.
    best = groups[np.lexsort((order[begins[groups]], -copies[groups]))][:EXAMPLES]
    examples = [
        (int(copies[g]), int(rows[order[begins[g]]]), int(rows[order[begins[g] + 1]])) for g in best
    ]
    return Repeats(int(same.sum()), examples)

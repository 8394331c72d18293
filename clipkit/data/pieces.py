"""Rows → pieces of a batch, each made by one worker; pieces → the batch.

A batch is made in pieces, so that several workers share a large one; the trainer's process
joins them with one copy. What a piece holds is a function of (seed,
batch, part) alone: workers, start method and prefetching cannot change a bit of it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipkit.config.schema import AugmentConfig, PreprocessConfig
from clipkit.data.ahead import ReadAhead
from clipkit.data.decode import decode_pixels
from clipkit.data.kept import KeptSample, KeptSamples
from clipkit.data.order import RowOrder
from clipkit.data.reader import Reader, SampleError, field_of
from clipkit.data.remote import use_cache
from clipkit.data.rng import Purpose, uniforms
from clipkit.data.transforms import (
    eval_transform,
    size_of,
    smallest_decoded_edge,
    train_transform,
)
from clipkit.errors import DataError
from clipkit.types import Batch, Item, Pair, Skip

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from transformers import PreTrainedTokenizerBase

    from clipkit.data.tokenize import Encoded

_PIECE = 64  # samples a worker makes at once …
_MOST_PIECES = 32  # … or more, of a very large batch: each piece on its way holds a descriptor


@dataclass(slots=True)
class Piece:
    """Some consecutive rows of one batch; texts padded to the longest of the piece."""

    pixel_values: Tensor | None
    input_ids: np.ndarray | None  # NumPy: small arrays travel faster than shared tensors
    valid: list[bool]
    keys: list[str]
    skipped: list[Skip]
    truncated: int
    replaced: int = 0
    groups: list[tuple[int, int]] | None = None
    items: list[Item | None] = field(default_factory=list)
    told: list[Any] = field(default_factory=list)


@dataclass
class PieceMaker:
    """Rows → a piece. It pickles, and opens nothing before it is asked."""

    reader: Reader
    preprocess: PreprocessConfig
    tokenizer: PreTrainedTokenizerBase | None
    max_pixels: int
    augment: AugmentConfig | None = None  # None: the evaluation transform
    seed: int = 0
    images: bool = True
    texts: bool = True
    groups: bool = False  # whether to tell equal captions and images
    fields: tuple[str, ...] | None = None  # of the metadata, to describe items with; None: none are
    ask: Callable[[Pair], Any] | None = None  # what else to tell of each raw pair
    change: Callable[[Tensor, str], Tensor] | None = None  # of pixels and key, for evaluation
    kept: KeptSamples = field(default_factory=lambda: KeptSamples(0))

    def make(
        self, rows: np.ndarray, positions: np.ndarray, pairs: list[Future[Pair]] | None = None
    ) -> Piece:
        """The piece of some rows; ``pairs`` are what they give, where they are read elsewhere."""
        size = self.preprocess.image_size
        pixels = torch.zeros((len(rows), 3, size, size), dtype=torch.uint8) if self.images else None
        captions: list[str] = []
        piece = Piece(pixels, None, [], [], [], 0, groups=[] if self.groups else None)
        for i, (row, position) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
            pair: Pair | None = None
            item: Item | None = None
            told: Any = None
            try:
                kept = self.kept.get(row)
                if kept is not None:
                    pair = kept.pair
                else:
                    pair = self.reader[row] if pairs is None else pairs[i].result()
                caption, image, size_here = self._use(pair, row, position, kept)
                item = self._describe(row, pair, caption, size_here)
                told = None if self.ask is None else self.ask(pair)
            except SampleError as error:
                caption, image, item = "", None, None
                origin = self.reader.locate(row) if pair is None else pair.origin
                piece.skipped.append(Skip(origin, str(error)))
                piece.valid.append(False)
            else:
                piece.valid.append(True)
            if self.fields is not None:
                piece.items.append(item)
            if self.ask is not None:
                piece.told.append(told)
            piece.keys.append("" if pair is None else pair.key)
            captions.append(caption)
            if piece.groups is not None:
                content = None if pair is None else pair.image
                piece.groups.append((_number(caption.encode()), _number(content or b"")))
            piece.replaced += "\ufffd" in caption  # what decoding puts where text is not UTF-8
            if pixels is not None and image is not None:
                pixels[i] = image
        if self.texts:
            from clipkit.data.tokenize import padded

            encoded = self.kept.tokens(captions, self._encode)
            assert self.tokenizer is not None
            piece.input_ids = padded(encoded, self.tokenizer).numpy()
            piece.truncated = sum(each.cut for each in encoded)
        return piece

    def _encode(self, captions: list[str]) -> list[Encoded]:
        from clipkit.data.tokenize import encode

        assert self.tokenizer is not None
        return encode(self.tokenizer, captions, context_length=self.preprocess.context_length)

    def _choose(self, pair: Pair, position: int) -> str | None:
        """One of the pair's captions: in training by the position, else the first."""
        if self.augment is None or not pair.others:
            return pair.caption
        draw = uniforms(self.seed, Purpose.CAPTION, position, size=1)[0]
        return [pair.caption, *pair.others][int(draw * (1 + len(pair.others)))]

    def _describe(
        self, row: int, pair: Pair, caption: str, size: tuple[int, int] | None
    ) -> Item | None:
        if self.fields is None:
            return None
        path, offset = self.reader.place(row)
        width, height = size or (None, None)
        metadata = {name: field_of(pair.metadata, name) for name in self.fields}
        return Item(pair.origin, caption or None, path, offset, width, height, metadata)

    def _use(
        self, pair: Pair, row: int, position: int, kept: KeptSample | None
    ) -> tuple[str, Tensor | None, tuple[int, int] | None]:
        """The clean caption of a pair, its (3, S, S) uint8 pixels, and the (width, height) of
        the picture they are of.

        Raises:
            SampleError: it cannot be used.
        """
        from clipkit.data.tokenize import clean_caption

        caption = clean_caption(self._choose(pair, position)) if self.texts else ""
        if caption is None:
            raise SampleError("empty caption")
        if not self.images:
            return caption, None, None
        if pair.image is None:
            raise SampleError("no image")
        if self.augment is None:
            image = decode_pixels(pair.image, max_pixels=self.max_pixels)
            pixels = eval_transform(image, self.preprocess)
            if self.change is not None:
                pixels = self.change(pixels, pair.key)
            return caption, pixels, size_of(image)
        if kept is not None:
            decoded: Image.Image | NDArray[np.uint8] = kept.image
        else:
            at_least = smallest_decoded_edge(self.preprocess, self.augment)
            decoded = decode_pixels(pair.image, max_pixels=self.max_pixels, at_least=at_least)
            decoded = self.kept.put(row, pair, decoded)
        pixels = train_transform(decoded, self.preprocess, self.augment, self.seed, position)
        return caption, pixels, None


def _number(content: bytes) -> int:
    """Of 64 bits, the same for the same content."""
    digest = hashlib.blake2b(content, digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Pieces(ABC, Dataset[Piece | DataError]):
    """Piece number → piece; batch k is made of the pieces [k·per_batch, (k+1)·per_batch)."""

    per_batch: int

    def __init__(self, maker: PieceMaker, cache_gb: float) -> None:
        self.maker, self.cache_gb = maker, cache_gb
        self._ahead: ReadAhead | None = None
        if maker.reader.access.remote:
            self._ahead = ReadAhead(maker.reader, self._rows_ahead)

    def __getitem__(self, number: int) -> Piece | DataError:
        rows, positions = self.rows(*divmod(number, self.per_batch))
        try:
            if self._ahead is None:
                return self.maker.make(rows, positions)
            use_cache(self.cache_gb)  # a worker that was spawned knows nothing of it
            return self.maker.make(rows, positions, self._ahead.pairs(number))
        except DataError as error:
            # Raised in a worker it would come out wrapped in a traceback; as a value it is
            # raised again by the loader.
            return error

    @abstractmethod
    def rows(self, batch: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a part of a batch, and their positions."""

    def _rows_ahead(self, number: int) -> list[int]:
        rows: list[int] = self.rows(*divmod(number, self.per_batch))[0].tolist()
        return rows


class TrainPieces(Pieces):
    def __init__(
        self,
        maker: PieceMaker,
        order: RowOrder,
        batch_size: int,
        rank: int,
        world_size: int,
        cache_gb: float,
    ) -> None:
        super().__init__(maker, cache_gb)
        self.order, self.batch_size = order, batch_size
        self.per_rank = batch_size // world_size
        self.first = rank * self.per_rank
        self.per_batch = min(_MOST_PIECES, -(-self.per_rank // _PIECE))

    def rows(self, batch: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        begin = batch * self.batch_size + self.first
        positions = np.arange(
            begin + self.per_rank * part // self.per_batch,
            begin + self.per_rank * (part + 1) // self.per_batch,
        )
        return self.order.rows(positions), positions


class EvalPieces(Pieces):
    def __init__(
        self, maker: PieceMaker, first: int, last: int, batch_size: int, cache_gb: float
    ) -> None:
        super().__init__(maker, cache_gb)
        self.first, self.last, self.batch_size = first, last, batch_size
        self.per_batch = min(_MOST_PIECES, -(-batch_size // _PIECE))
        self.batches = -(-(last - first) // batch_size)

    def rows(self, batch: int, part: int) -> tuple[np.ndarray, np.ndarray]:
        begin = self.first + batch * self.batch_size
        here = max(0, min(self.batch_size, self.last - begin))
        rows = np.arange(
            begin + here * part // self.per_batch, begin + here * (part + 1) // self.per_batch
        )
        return rows, rows


def join(pieces: list[Piece], step: int, maker: PieceMaker) -> Batch:
    """The pieces of batch ``step`` as one, texts padded to the longest of the batch."""
    size = maker.preprocess.image_size
    images = [piece.pixel_values for piece in pieces if piece.pixel_values is not None]
    empty = torch.empty((0, 3, size, size), dtype=torch.uint8)
    return Batch(
        pixel_values=torch.cat(images) if images else empty,
        input_ids=_join_ids([p.input_ids for p in pieces if p.input_ids is not None], maker),
        valid=torch.tensor([valid for piece in pieces for valid in piece.valid], dtype=torch.bool),
        keys=[key for piece in pieces for key in piece.keys],
        step=step,
        skipped=[skip for piece in pieces for skip in piece.skipped],
        truncated=sum(piece.truncated for piece in pieces),
        replaced=sum(piece.replaced for piece in pieces),
        groups=_join_groups(pieces),
        items=[item for piece in pieces for item in piece.items],
        told=[told for piece in pieces for told in piece.told],
    )


def _join_groups(pieces: list[Piece]) -> Tensor | None:
    rows = [row for piece in pieces if piece.groups is not None for row in piece.groups]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 2) if rows else None


def _join_ids(parts: list[np.ndarray], maker: PieceMaker) -> Tensor:
    """Pieces of ids, padded to the longest of all of them."""
    if not parts:
        return torch.empty((0, 0), dtype=torch.int64)
    assert maker.tokenizer is not None
    shape = (sum(len(part) for part in parts), max(part.shape[1] for part in parts))
    ids = np.full(shape, maker.tokenizer.pad_token_id, dtype=np.int64)
    at = 0
    for part in parts:
        ids[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return torch.from_numpy(ids)

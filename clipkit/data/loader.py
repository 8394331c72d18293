"""reader + order → batches of tensors, decoded by worker processes, always in order.

What a batch holds is a function of (seed, step, rank) alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from clipkit.config.schema import DataConfig, PreprocessConfig
from clipkit.data.hard_negatives import HardNegativeOrder, sort_alike
from clipkit.data.kept import KeptSamples
from clipkit.data.mixture import MixtureReader
from clipkit.data.mixture_order import MixtureOrder
from clipkit.data.order import Order, RowOrder
from clipkit.data.pieces import EvalPieces, Piece, PieceMaker, Pieces, TrainPieces, join
from clipkit.data.reader import TURN, Reader
from clipkit.data.workers import WorkerLoader
from clipkit.errors import ConfigError, DataError
from clipkit.types import Batch, Pair

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_BATCHES_AHEAD = 3


class Loader(Protocol):
    """Batches in order; ``close`` ends the workers early."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...

    def close(self) -> None: ...


def build_train_loader(
    reader: Reader,
    config: DataConfig,
    preprocess: PreprocessConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    steps: int,
    rank: int = 0,
    world_size: int = 1,
    start_method: str | None = None,
) -> Loader:
    """One ``Batch`` a step, for the steps start_step … steps-1: this rank's rows of it.

    Step k takes the positions [k·N, (k+1)·N) of the order, N the global batch; rank r of W
    takes those from r·N/W on. A sample that cannot be used keeps its row, not valid, with a
    ``Skip`` that says why.

    Args:
        reader: where the pairs come from.
        config: order, augmentation, workers and the pixel cap.
        preprocess: sizes.
        tokenizer: for the captions.
        seed: of the run.
        batch_size: N, global.
        start_step: the step to begin at; resuming needs nothing else.
        steps: the step to end before.
        rank: r.
        world_size: W.
        start_method: ``fork`` or ``spawn`` for workers; by the platform where it is None.

    Raises:
        ConfigError: N is not divisible by W.
        DataError: while iterating: a file vanished, or a worker was killed.
    """
    if batch_size % world_size:
        near = max(1, batch_size // world_size) * world_size
        raise ConfigError(
            f"train.batch_size: {batch_size} is not divisible by {world_size} processes; "
            f"use {near}."
        )
    order = build_order(reader, config, seed)
    maker = PieceMaker(
        reader=reader,
        preprocess=preprocess,
        tokenizer=tokenizer,
        max_pixels=config.max_image_pixels,
        augment=config.augment,
        seed=seed,
        groups=True,
        kept=KeptSamples(round(config.decoded_gb * 1e9)),
    )
    pieces = TrainPieces(maker, order, batch_size, rank, world_size, config.cache_gb)
    steps_here = range(start_step, max(start_step, steps))
    return _Loader(pieces, steps_here, config.workers, start_method)


def check_reach(reader: Reader, config: DataConfig) -> None:
    """Refuses an order that takes samples from all over a source which cannot be read so.

    Raises:
        ConfigError: it is to have hard negatives.
    """
    access = reader.access
    if config.hard_negatives and (access.remote or access.estimated or access.whole_shards):
        raise ConfigError(
            f"data.hard_negatives: {reader.source.path} is read over a network or shard by "
            "shard, and this takes samples from all over it; copy it to a disk, or set it to 0"
        )


def build_order(reader: Reader, config: DataConfig, seed: int) -> RowOrder:
    """The order in which a run with this seed and config goes through a source.

    Raises:
        ConfigError: see :func:`check_reach`.
    """
    if group := config.hard_negatives:
        check_reach(reader, config)
        alike = sort_alike(reader.captions(), reader.image_ids(), group=group)
        return HardNegativeOrder(alike, seed=seed, group=group)

    def chunk(part: Reader) -> int:
        return max(part.shard_sizes) if part.access.whole_shards else config.shuffle_chunk

    def turn(part: Reader) -> int:
        return TURN if part.access.estimated else 0

    if isinstance(reader, MixtureReader):
        return MixtureOrder(
            [part.shard_sizes for part in reader.parts],
            reader.weights,
            seed=seed,
            lanes=config.lanes,
            chunk=[chunk(part) for part in reader.parts],
            window=config.shuffle_window,
            turn=[turn(part) for part in reader.parts],
        )
    return Order(
        reader.shard_sizes,
        seed=seed,
        lanes=config.lanes,
        chunk=chunk(reader),
        window=config.shuffle_window,
        turn=turn(reader),
    )


def build_eval_loader(
    reader: Reader,
    preprocess: PreprocessConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    batch_size: int,
    workers: int = 0,
    max_image_pixels: int,
    rank: int = 0,
    world_size: int = 1,
    images: bool = True,
    texts: bool = True,
    fields: tuple[str, ...] | None = None,
    ask: Callable[[Pair], Any] | None = None,
    change: Callable[[Tensor, str], Tensor] | None = None,
    batches: Iterable[int] | None = None,
    cache_gb: float = DataConfig.cache_gb,
    start_method: str | None = None,
) -> Loader:
    """All samples once, in row order, through the evaluation transform.

    Rank r of W takes the rows [len·r//W, len·(r+1)//W), perhaps none; its last batch is
    short. What is not asked for comes empty: ``pixel_values`` (0, 3, S, S) without images,
    ``input_ids`` (0, 0) without texts; a sample need not have it then.

    Args:
        reader: where the samples come from.
        preprocess: sizes.
        tokenizer: for the captions; None where no texts are asked for.
        batch_size: samples at a time.
        workers: processes that read and decode.
        max_image_pixels: larger images are skipped.
        rank: r.
        world_size: W.
        images: whether to load images.
        texts: whether to load captions.
        fields: names of metadata, with which ``Batch.items`` are told; None: they are not.
        ask: is called with each raw pair, where it is read, for ``Batch.told``; it pickles, and may
            raise ``SampleError``.
        change: makes of each sample's (3, S, S) uint8 pixels, given its key too, those that are
            used; it pickles.
        batches: the numbers of those that are wanted, asked for some batches ahead; all of
            them in order, where it is None. ``Batch.step`` tells the number.
        cache_gb: of remote files.
        start_method: ``fork`` or ``spawn`` for workers; by the platform where it is None.

    Raises:
        DataError: while iterating: a file vanished, or a worker was killed.
    """
    assert tokenizer is not None or not texts
    maker = PieceMaker(
        reader=reader,
        preprocess=preprocess,
        tokenizer=tokenizer,
        max_pixels=max_image_pixels,
        images=images,
        texts=texts,
        fields=fields,
        ask=ask,
        change=change,
    )
    first, last = len(reader) * rank // world_size, len(reader) * (rank + 1) // world_size
    pieces = EvalPieces(maker, first, last, batch_size, cache_gb)
    numbers = range(pieces.batches) if batches is None else batches
    return _Loader(pieces, numbers, workers, start_method)


class _Loader:
    """Joins pieces into batches."""

    def __init__(
        self, pieces: Pieces, batches: Iterable[int], workers: int, start_method: str | None
    ) -> None:
        self._pieces, self._batches = pieces, batches
        self._numbers: deque[int] = deque()  # of the batches that are on their way
        per_batch = pieces.per_batch
        self._loader: WorkerLoader[Piece | DataError] = WorkerLoader(
            pieces,
            _PieceNumbers(batches, per_batch, self._numbers),
            workers=workers,
            ahead=_BATCHES_AHEAD * per_batch,
            start_method=start_method,
        )

    def __len__(self) -> int:
        assert isinstance(self._batches, Sized)
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        pieces: list[Piece] = []
        self._numbers.clear()
        try:
            for piece in self._loader:
                if isinstance(piece, DataError):
                    raise piece
                pieces.append(piece)
                if len(pieces) == self._pieces.per_batch:
                    yield join(pieces, self._numbers.popleft(), self._pieces.maker)
                    pieces = []
        finally:
            self.close()

    def close(self) -> None:
        """Ends the workers; iterating again starts new ones."""
        self._loader.close()


@dataclass
class _PieceNumbers:
    """The pieces of batches, as they are asked for; ``asked`` gets each batch's number."""

    batches: Iterable[int]
    per_batch: int
    asked: deque[int]

    def __iter__(self) -> Iterator[int]:
        for number in self.batches:
            self.asked.append(number)
            yield from range(number * self.per_batch, (number + 1) * self.per_batch)

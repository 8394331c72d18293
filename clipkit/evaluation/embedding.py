"""A source of images → its embeddings on rank 0, with what is asked of each sample besides.

Ranks share batches, not rows: whichever rank embeds a batch, it holds the same rows, so that the
vectors are bit for bit those of one process with as many threads.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from clipkit.data import Reader, build_eval_loader
from clipkit.data.tokenize import tokenize
from clipkit.display.console import progress_bar
from clipkit.encoder import Encoder
from clipkit.evaluation.shares import gather_shares
from clipkit.inputs import MAX_IMAGE_PIXELS
from clipkit.types import Batch, Pair, Skip


@dataclass(frozen=True)
class Job:
    """With what, and by whom, an evaluation is done.

    Attributes:
        encoder: the model; may be in training.
        batch_size: images or texts at a time on a rank.
        workers: loader processes a rank.
        max_image_pixels: larger images are skipped.
        rank: of this process.
        world_size: number of ranks; above 1, torch.distributed must be initialised.
        progress: whether to show a progress bar, on rank 0.
    """

    encoder: Encoder
    batch_size: int = 256
    workers: int = 0
    max_image_pixels: int = MAX_IMAGE_PIXELS
    rank: int = 0
    world_size: int = 1
    progress: bool = False

    @property
    def main(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


@dataclass
class EmbeddedSource:
    """The N samples of a source that can be used, in row order.

    Attributes:
        rows: (N,) rows of the reader.
        keys: N names.
        embeds: (N, D) float32, unit length, of the images.
        told: what was asked of each.
        skipped: the other samples.
    """

    rows: np.ndarray
    keys: list[str]
    embeds: np.ndarray
    told: list[Any]
    skipped: list[Skip] = field(default_factory=list)


def embed_source(
    job: Job,
    reader: Reader,
    ask: Callable[[Pair], Any] | None = None,
    change: Callable[[torch.Tensor, str], torch.Tensor] | None = None,
) -> EmbeddedSource | None:
    """Embeds all images of a source, on all ranks together; all must call it.

    Args:
        job: the model and the ranks.
        reader: the samples.
        ask: is called with each raw pair where it is read, for ``told``; it pickles. It raises
            ``SampleError`` for a sample that cannot be used.
        change: what to make of each sample's pixels before; see ``build_eval_loader``.

    Returns:
        All samples on rank 0, None on the others.

    Raises:
        DataError: a file vanished, or a worker was killed; the same on all ranks.
    """
    parts = gather_shares(lambda: _embed_share(job, reader, ask, change), job.world_size)
    if parts is None:
        return None
    return EmbeddedSource(
        rows=np.concatenate([part.rows for part in parts]),
        keys=[key for part in parts for key in part.keys],
        embeds=np.concatenate([part.embeds for part in parts]),
        told=[told for part in parts for told in part.told],
        skipped=[skip for part in parts for skip in part.skipped],
    )


def ask_source(job: Job, reader: Reader, ask: Callable[[Pair], Any]) -> dict[int, Any] | None:
    """What is asked of each sample that can be read, by row, without decoding images; on rank 0,
    None on the others. All ranks must call it."""
    numbers = batches_of_rank(reader, job.batch_size, job.rank, job.world_size)

    def share() -> dict[int, Any]:
        loader = _open_loader(job, reader, numbers, images=False, ask=ask)
        return {
            batch.step * job.batch_size + i: batch.told[i]
            for batch in loader
            for i in np.flatnonzero(batch.valid.numpy()).tolist()
        }

    shares = gather_shares(share, job.world_size)
    return None if shares is None else {row: told for each in shares for row, told in each.items()}


def batches_of_rank(reader: Reader, batch_size: int, rank: int, world_size: int) -> range:
    """The batches of a source that a rank embeds."""
    total = -(-len(reader) // batch_size)
    return range(total * rank // world_size, total * (rank + 1) // world_size)


def _open_loader(job: Job, reader: Reader, batches: range, **options: Any) -> Iterable[Batch]:
    """Some batches of a source, without texts; see ``build_eval_loader``."""
    return build_eval_loader(
        reader,
        job.encoder.preprocess,
        None,
        batch_size=job.batch_size,
        workers=job.workers,
        max_image_pixels=job.max_image_pixels,
        texts=False,
        batches=batches,
        **options,
    )


def _embed_share(
    job: Job,
    reader: Reader,
    ask: Callable[[Pair], Any] | None,
    change: Callable[[torch.Tensor, str], torch.Tensor] | None,
) -> EmbeddedSource:
    numbers = batches_of_rank(reader, job.batch_size, job.rank, job.world_size)
    loader = _open_loader(job, reader, numbers, ask=ask, change=change)
    share = EmbeddedSource(np.zeros(0, dtype=np.int64), [], np.zeros(0), [])
    rows = [share.rows]
    parts = [np.zeros((0, job.encoder.embed_dim), dtype=np.float32)]
    first, last = (min(n * job.batch_size, len(reader)) for n in (numbers.start, numbers.stop))
    with progress_bar("embed", last - first, "image", show=job.progress and job.main) as bar:
        for batch, embeds, _ in job.encoder.encode_batches(loader, texts=False):
            assert embeds is not None
            valid = np.flatnonzero(batch.valid.numpy())
            rows.append(valid + batch.step * job.batch_size)
            parts.append(embeds)
            share.keys += [batch.keys[i] for i in valid]
            share.told += [batch.told[i] for i in valid] if ask else []
            share.skipped += batch.skipped
            bar.update(len(batch.keys))
    share.rows, share.embeds = np.concatenate(rows), np.concatenate(parts)
    return share


class EmbeddedTexts(NamedTuple):
    """Result of ``embed_texts``.

    Attributes:
        embeds: (M, D) float32, unit length.
        num_truncated: texts that were cut at the context length.
        num_indistinct: texts with the same tokens as another one.
    """

    embeds: np.ndarray
    num_truncated: int
    num_indistinct: int


def embed_texts(job: Job, texts: Sequence[str]) -> EmbeddedTexts | None:
    """Embeds texts, on all ranks together; all must call it with the same ones.

    Args:
        job: the model and the ranks.
        texts: M clean ones, none empty.

    Returns:
        All texts on rank 0; None on the others.
    """
    # Neighbours of one length need little padding: bytes stand for tokens well enough.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].encode("utf-8", "replace")))
    batches = [order[i : i + job.batch_size] for i in range(0, len(order), job.batch_size)]

    def share() -> tuple[list[np.ndarray], int, Counter[bytes]]:
        # The longest are last, so each rank takes every W-th batch.
        own = batches[job.rank :: job.world_size]
        found, cut, tokens = [], 0, Counter[bytes]()
        with progress_bar("embed", len(own), "batch", show=job.progress and job.main) as bar:
            for batch, _, embeds in job.encoder.encode_batches(
                _token_batches(job.encoder, texts, own), images=False
            ):
                assert embeds is not None
                found.append(embeds)
                cut += batch.truncated
                tokens.update(_digests(job.encoder, batch.input_ids))
                bar.update()
        return found, cut, tokens

    shares = gather_shares(share, job.world_size)
    if shares is None:
        return None
    embeds = np.zeros((len(texts), job.encoder.embed_dim), dtype=np.float32)
    for rank, (found, *_) in enumerate(shares):
        for rows in reversed(batches[rank :: job.world_size]):
            embeds[rows] = found.pop()  # so that all texts are there once, not twice
    tokens = sum((each for *_, each in shares), start=Counter[bytes]())
    indistinct = sum(count for count in tokens.values() if count > 1)
    return EmbeddedTexts(embeds, sum(cut for _, cut, _ in shares), indistinct)


def _digests(encoder: Encoder, input_ids: torch.Tensor) -> list[bytes]:
    """A hash of the tokens of each text, without its padding."""
    pad = encoder.tokenizer.pad_token_id
    digests = []
    for ids in input_ids.tolist():
        while ids and ids[-1] == pad:
            ids.pop()
        digests.append(hashlib.blake2b(repr(ids).encode(), digest_size=16).digest())
    return digests


def _token_batches(
    encoder: Encoder, texts: Sequence[str], batches: Sequence[Sequence[int]]
) -> Iterator[Batch]:
    for rows in batches:
        ids, cut = tokenize(
            encoder.tokenizer,
            [texts[i] for i in rows],
            context_length=encoder.preprocess.context_length,
        )
        valid = torch.ones(len(rows), dtype=torch.bool)
        yield Batch(torch.zeros(0), ids, valid, [""] * len(rows), truncated=cut)

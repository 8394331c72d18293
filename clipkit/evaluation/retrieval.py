"""A data set → embeddings → retrieval metrics, shared among all ranks.

What is one image and what is one text is read from the data and not from the model: rows with
the same image file are one image with several captions, rows with the same caption are one
text with several images. So a model gains nothing from giving two of them the same vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.distributed as dist

from clipkit.data import Reader, SampleError, build_eval_loader
from clipkit.data.tokenize import clean_caption
from clipkit.display.console import progress_bar
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError, DataError
from clipkit.evaluation.metrics import retrieval_metrics, retrieval_ranks
from clipkit.inputs import MAX_IMAGE_PIXELS
from clipkit.types import Skip


@dataclass
class RetrievalSet:
    """Images and texts to find one by the other, each once.

    Attributes:
        image_embeds: (N, D); first the images of the data set, then those of its gallery only.
        text_embeds: (M, D).
        matches: (P, 2), image and text of each pair.
        captions: M texts.
        places: of each image, the reader (0: the data set, 1 …: the galleries) and its row.
        skipped: samples that could not be used.
        num_truncated: captions that were cut at the context length, of one a pair.
    """

    image_embeds: np.ndarray
    text_embeds: np.ndarray
    matches: np.ndarray
    captions: list[str]
    places: list[tuple[int, int]]
    skipped: list[Skip] = field(default_factory=list)
    num_truncated: int = 0


def evaluate_retrieval(
    encoder: Encoder,
    reader: Reader,
    *,
    batch_size: int = 256,
    workers: int = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    gallery: Reader | Sequence[Reader] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> dict[str, float]:
    """How well a data set's images are found by their captions, and captions by their images.

    With several ranks each embeds its share; shares may differ in length or be empty. All
    ranks must call this, and all get the same result, that of one process.

    Args:
        encoder: the model; may be in training.
        reader: image-caption pairs.
        batch_size: pairs at a time on a rank.
        workers: loader processes a rank.
        max_image_pixels: larger images are skipped.
        gallery: more images that the right ones must be told apart from; those that are in
            ``reader`` too count once.
        ks: cut-offs of the recall.
        rank: of this process.
        world_size: number of ranks; above 1, torch.distributed must be initialised.
        progress: whether to show a progress bar, on rank 0.

    Returns:
        See ``retrieval_metrics``; ``num_skipped``, samples that could not be used; and
        ``num_truncated``, captions that were cut at the context length.

    Raises:
        DataError: no sample can be used.
    """
    collected = embed_retrieval_set(
        encoder,
        reader,
        batch_size=batch_size,
        workers=workers,
        max_image_pixels=max_image_pixels,
        gallery=gallery,
        rank=rank,
        world_size=world_size,
        progress=progress,
    )
    metrics = None
    if collected is not None:
        metrics = summarise(collected, ks=ks, device=encoder.device)
    result: dict[str, float] = _from_rank_zero(metrics, world_size)
    return result


def summarise(
    collected: RetrievalSet, *, ks: Sequence[int] = (1, 5, 10), device: Any = "cpu"
) -> dict[str, float]:
    """The metrics of a set; see ``evaluate_retrieval``."""
    metrics = retrieval_metrics(
        collected.image_embeds, collected.text_embeds, collected.matches, ks=ks, device=device
    )
    return {
        **metrics,
        "num_skipped": len(collected.skipped),
        "num_truncated": collected.num_truncated,
    }


def text_ranks(collected: RetrievalSet, *, device: Any = "cpu") -> np.ndarray:
    """(M,), the rank of each text's best right image, from 1."""
    return retrieval_ranks(
        collected.image_embeds, collected.text_embeds, collected.matches, device=device
    )[0]


def embed_retrieval_set(
    encoder: Encoder,
    reader: Reader,
    *,
    batch_size: int = 256,
    workers: int = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    gallery: Reader | Sequence[Reader] | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> RetrievalSet | None:
    """The embedded data set on rank 0, None on the others; see ``evaluate_retrieval``."""
    readers = [reader, *_as_list(gallery)]
    shares: list[_Share] | ClipkitError
    try:
        shares = [
            _embed_share(
                encoder,
                each,
                texts=number == 0,
                batch_size=batch_size,
                workers=workers,
                max_image_pixels=max_image_pixels,
                rank=rank,
                world_size=world_size,
                progress=progress and rank == 0,
            )
            for number, each in enumerate(readers)
        ]
    except ClipkitError as error:
        shares = error  # told to all ranks below: a rank that left alone would leave them waiting
    everyone = _to_rank_zero(shares, world_size)
    collected: RetrievalSet | None = None
    fault: ClipkitError | None = None
    if everyone is not None:
        faults = [share for share in everyone if isinstance(share, ClipkitError)]
        if faults:
            fault = faults[0]
        else:
            collected = _join(everyone, len(readers))
            if not len(collected.matches):
                fault = DataError(_nothing_left(reader, collected.skipped))
    fault = _from_rank_zero(fault, world_size)
    if fault is not None:
        raise fault
    return collected


@dataclass
class _Share:
    """What one rank embedded of one reader; row i of everything belongs together."""

    rows: np.ndarray  # (n,) rows of the reader
    image_embeds: np.ndarray  # (n, D)
    text_embeds: np.ndarray | None  # (n, D)
    images: list[bytes]  # what tells images apart: a hash of each file
    captions: list[str]
    skipped: list[Skip]
    num_truncated: int


def _embed_share(
    encoder: Encoder,
    reader: Reader,
    *,
    texts: bool,
    batch_size: int,
    workers: int,
    max_image_pixels: int,
    rank: int,
    world_size: int,
    progress: bool,
) -> _Share:
    loader = build_eval_loader(
        reader,
        encoder.preprocess,
        encoder.tokenizer,
        batch_size=batch_size,
        workers=workers,
        max_image_pixels=max_image_pixels,
        rank=rank,
        world_size=world_size,
        texts=texts,
    )
    start, stop = (len(reader) * r // world_size for r in (rank, rank + 1))
    kept: list[int] = []
    image_parts = [np.zeros((0, encoder.embed_dim), dtype=np.float32)]
    text_parts = [np.zeros((0, encoder.embed_dim), dtype=np.float32)]
    skipped: list[Skip] = []
    num_truncated = 0
    position = start
    with progress_bar("embed", stop - start, "sample", show=progress) as bar:
        for batch, image_embeds, text_embeds in encoder.encode_batches(loader, texts=texts):
            assert image_embeds is not None
            kept += (np.flatnonzero(batch.valid.numpy()) + position).tolist()
            image_parts.append(image_embeds)
            if text_embeds is not None:
                text_parts.append(text_embeds)
            skipped += batch.skipped
            num_truncated += batch.truncated
            position += len(batch.keys)
            bar.update(len(batch.keys))
    assert position == stop, "the loader must give every row of the share"
    images, captions = _identities(reader, kept)
    return _Share(
        rows=np.array(kept, dtype=np.int64),
        image_embeds=np.concatenate(image_parts),
        text_embeds=np.concatenate(text_parts) if texts else None,
        images=images,
        captions=captions,
        skipped=skipped,
        num_truncated=num_truncated,
    )


def _identities(reader: Reader, rows: Sequence[int]) -> tuple[list[bytes], list[str]]:
    """A hash of the image file and the cleaned caption of each row."""
    images, captions = [], []
    for row in rows:
        try:
            pair = reader[row]
        except SampleError as error:  # it could be read a moment ago
            raise DataError(f"{reader.locate(row)}: it changed while it was read") from error
        images.append(hashlib.blake2b(pair.image or b"", digest_size=16).digest())
        captions.append(clean_caption(pair.caption) or "")
    return images, captions


def _join(everyone: Sequence[Sequence[_Share]], num_readers: int) -> RetrievalSet:
    """The shares of all ranks, in the order of one process; each image and each text once."""
    image_rows: dict[bytes, int] = {}
    text_rows: dict[str, int] = {}
    image_embeds: list[np.ndarray] = []
    text_embeds: list[np.ndarray] = []
    matches: list[tuple[int, int]] = []
    places: list[tuple[int, int]] = []
    skipped: list[Skip] = []
    for number in range(num_readers):
        for share in (shares[number] for shares in everyone):
            skipped += share.skipped
            for i, row in enumerate(share.rows.tolist()):
                image = image_rows.setdefault(share.images[i], len(image_rows))
                if image == len(image_embeds):
                    image_embeds.append(share.image_embeds[i])
                    places.append((number, row))
                if share.text_embeds is None:
                    continue
                text = text_rows.setdefault(share.captions[i], len(text_rows))
                if text == len(text_embeds):
                    text_embeds.append(share.text_embeds[i])
                matches.append((image, text))
    return RetrievalSet(
        image_embeds=np.array(image_embeds, dtype=np.float32),
        text_embeds=np.array(text_embeds, dtype=np.float32),
        matches=np.array(matches, dtype=np.int64).reshape(-1, 2),
        captions=list(text_rows),
        places=places,
        skipped=skipped,
        num_truncated=sum(share.num_truncated for shares in everyone for share in shares),
    )


def _nothing_left(reader: Reader, skipped: Sequence[Skip]) -> str:
    reason = f" (the first: {skipped[0].origin}: {skipped[0].reason})" if skipped else ""
    return f"{reader.source.path}: no pair of image and caption can be used{reason}"


def _as_list(gallery: Reader | Sequence[Reader] | None) -> list[Reader]:
    if gallery is None:
        return []
    # A reader has a length and rows too, so ask for what a list is.
    return list(gallery) if isinstance(gallery, list | tuple) else [gallery]  # type: ignore[list-item]


def _to_rank_zero(value: Any, world_size: int) -> list[Any] | None:
    """The values of all ranks, in their order, on rank 0; None on the others."""
    if world_size == 1:
        return [value]
    assert world_size == dist.get_world_size(), "all ranks, or one alone"
    gathered = [None] * world_size if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered


def _from_rank_zero(value: Any, world_size: int) -> Any:
    """Rank 0's value, on all ranks."""
    if world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]

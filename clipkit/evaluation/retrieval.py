"""A data set → embeddings → retrieval metrics, shared among all ranks.

What is one image and what is one text is read from the data and not from the model: all captions
of an image are texts, whether they stand in one row or in several rows with the same image file;
equal captions are one text, and each image that has it is a right answer. So a model gains nothing
from giving two of them the same vector, and loses nothing where two cannot be told apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from clipkit.data import Reader, SampleError
from clipkit.data.tokenize import clean_caption
from clipkit.encoder import Encoder
from clipkit.errors import DataError
from clipkit.evaluation.embedding import EmbeddedSource, Job, embed_texts
from clipkit.evaluation.features import kept_source
from clipkit.evaluation.metrics import Ranking, metrics_of, retrieval_rankings
from clipkit.evaluation.shares import at_rank_zero, from_rank_zero
from clipkit.types import Pair, Skip


@dataclass
class RetrievalSet:
    """Images and texts to find one by the other, each once.

    Attributes:
        image_embeds: (N, D); first the images of the data set, then those of its gallery only.
        text_embeds: (M, D).
        matches: (P, 2), image and text of each pair.
        captions: M texts.
        places: of each image, the reader (0: the data set, 1 …: the galleries) and its row.
        keys: of each image, its name in its source.
        skipped: samples that could not be used.
        num_truncated: texts that were cut at the context length.
        num_indistinct: texts with the same tokens as another one, so that no model with this
            tokenizer tells them apart.
    """

    image_embeds: np.ndarray
    text_embeds: np.ndarray
    matches: np.ndarray
    captions: list[str]
    places: list[tuple[int, int]]
    keys: list[str]
    skipped: list[Skip] = field(default_factory=list)
    num_truncated: int = 0
    num_indistinct: int = 0


def evaluate_retrieval(
    job: Job | Encoder,
    reader: Reader,
    *,
    gallery: Reader | Sequence[Reader] | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """How well a data set's images are found by their captions, and captions by their images.

    All ranks must call this, and all get the same result, that of one process.

    Args:
        job: the model and the ranks; or a model, on this process alone.
        reader: image-caption pairs.
        gallery: more images that the right ones must be told apart from; those that are in
            ``reader`` too count once.
        ks: cut-offs of the recall.

    Returns:
        See ``retrieval_metrics``; ``num_captions``, pairs of image and text; ``num_shared``, texts
        of several images; ``num_indistinct``, texts that the tokenizer does not tell apart;
        ``num_skipped``, samples that could not be used; and ``num_truncated``, texts that were
        cut at the context length. ``caveats`` puts into words what these say of the recalls.

    Raises:
        DataError: no sample can be used.
    """
    shared = Job(job) if isinstance(job, Encoder) else job
    collected = embed_retrieval_set(shared, reader, gallery=gallery)

    def measure() -> dict[str, float]:
        assert collected is not None
        return summarise(collected, ks=ks, device=shared.encoder.device)

    return from_rank_zero(measure, shared.world_size)


def summarise(
    collected: RetrievalSet, *, ks: Sequence[int] = (1, 5, 10), device: Any = "cpu"
) -> dict[str, float]:
    """The metrics of a set; see ``evaluate_retrieval``."""
    return {
        **metrics_of(rank_set(collected, device=device), ks=ks),
        **count_set(collected),
        "num_skipped": len(collected.skipped),
        "num_truncated": collected.num_truncated,
    }


def count_set(collected: RetrievalSet) -> dict[str, int]:
    """The counts of ``evaluate_retrieval`` that say how the texts belong to the images."""
    pairs = np.unique(collected.matches, axis=0)
    images_of_text = np.bincount(pairs[:, 1], minlength=len(collected.captions))
    return {
        "num_captions": len(pairs),
        "num_shared": int((images_of_text > 1).sum()),
        "num_indistinct": collected.num_indistinct,
    }


def rank_set(collected: RetrievalSet, *, device: Any = "cpu") -> tuple[Ranking, Ranking]:
    """How well each text finds its images, and each image its texts."""
    return retrieval_rankings(
        collected.image_embeds, collected.text_embeds, collected.matches, device=device
    )


def embed_retrieval_set(
    job: Job,
    reader: Reader,
    *,
    gallery: Reader | Sequence[Reader] | None = None,
    lines: bool = False,
) -> RetrievalSet | None:
    """The embedded data set on rank 0, None on the others; see ``evaluate_retrieval``.

    Args:
        job: the model and the ranks.
        reader: image-caption pairs.
        gallery: more images.
        lines: each line of a caption is one.
    """
    readers = [reader, *_as_list(gallery)]
    parts = [kept_source(job, reader, partial(_identify, lines=lines))]
    parts += [kept_source(job, each, _hash) for each in readers[1:]]

    def join() -> RetrievalSet:
        there = [part for part in parts if part is not None]
        collected = _join(there, job.encoder.embed_dim)
        if not len(collected.matches):
            raise DataError(_nothing_left(reader, collected.skipped))
        return collected

    collected = at_rank_zero(join, job.world_size)
    texts = from_rank_zero(lambda: collected.captions if collected else [], job.world_size)
    embedded = embed_texts(job, texts)
    if collected is not None and embedded is not None:
        collected.text_embeds = embedded.embeds
        collected.num_truncated = embedded.num_truncated
        collected.num_indistinct = embedded.num_indistinct
    return collected


def _hash(pair: Pair) -> tuple[bytes, list[str]]:
    """What tells an image apart: a hash of its file; and no captions."""
    return hashlib.blake2b(pair.image or b"", digest_size=16).digest(), []


def _identify(pair: Pair, *, lines: bool) -> tuple[bytes, list[str]]:
    """The image's hash, and its clean captions.

    Raises:
        SampleError: it has no caption.
    """
    given = [pair.caption or "", *pair.others]
    if lines:
        given = [line for text in given for line in text.splitlines()]
    captions = [text for each in given if (text := clean_caption(each))]
    if not captions:
        raise SampleError("empty caption")
    return _hash(pair)[0], captions


def _join(parts: Sequence[EmbeddedSource], dim: int) -> RetrievalSet:
    """Each image and each text once; the texts are not embedded yet."""
    image_rows: dict[bytes, int] = {}
    text_rows: dict[str, int] = {}
    kept: list[np.ndarray] = []
    matches: list[tuple[int, int]] = []
    places: list[tuple[int, int]] = []
    keys: list[str] = []
    for number, part in enumerate(parts):
        new: list[int] = []
        for i, (digest, captions) in enumerate(part.told):
            image = image_rows.setdefault(digest, len(image_rows))
            if image == len(places):
                new.append(i)
                places.append((number, int(part.rows[i])))
                keys.append(part.keys[i])
            for caption in captions:
                matches.append((image, text_rows.setdefault(caption, len(text_rows))))
        kept.append(part.embeds[new])
    return RetrievalSet(
        image_embeds=np.concatenate(kept),
        text_embeds=np.zeros((0, dim), dtype=np.float32),
        matches=np.array(matches, dtype=np.int64).reshape(-1, 2),
        captions=list(text_rows),
        places=places,
        keys=keys,
        skipped=[skip for part in parts for skip in part.skipped],
    )


def _nothing_left(reader: Reader, skipped: Sequence[Skip]) -> str:
    reason = f" (the first: {skipped[0].origin}: {skipped[0].reason})" if skipped else ""
    return f"{reader.source.path}: no pair of image and caption can be used{reason}"


def _as_list(gallery: Reader | Sequence[Reader] | None) -> list[Reader]:
    if gallery is None:
        return []
    # A reader has a length and rows too, so ask for what a list is.
    return list(gallery) if isinstance(gallery, list | tuple) else [gallery]  # type: ignore[list-item]

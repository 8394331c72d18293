"""A text or an image + a store → what is nearest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.inputs import ImageInput
from clipkit.retrieval.index import Index
from clipkit.retrieval.store import EmbeddingStore


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing found.

    Attributes:
        row: in the store.
        score: the cosine, from -1 to 1.
        key: its name in the source.
        caption: its text; None where it has none.
        origin: where it came from.
        source_row: its row in the source.
    """

    row: int
    score: float
    key: str
    caption: str | None
    origin: str
    source_row: int


def search(
    encoder: Encoder,
    store: EmbeddingStore,
    text: str | None = None,
    image: ImageInput | None = None,
    k: int = 10,
) -> list[Hit]:
    """The k items of a store nearest to a text or an image, the nearest first.

    Args:
        encoder: the model that made the store.
        store: where to look; among its images, or its captions where it has no images.
        text: what to look for, in words.
        image: or a picture of it.
        k: how many.

    Raises:
        ConfigError: not exactly one of text and image.
        CheckpointError: another model made the store.
    """
    if (text is None) == (image is None):
        raise ConfigError("search: give a text or an image, one of the two")
    if text is not None:
        queries = encoder.encode_text([text])
    else:
        assert image is not None
        queries = encoder.encode_image([image])
    return search_embeds(encoder, store, queries, k)[0]


def search_embeds(
    encoder: Encoder, store: EmbeddingStore, query_embeds: np.ndarray, k: int = 10
) -> list[list[Hit]]:
    """The hits of several queries, (Q, D), at once; see ``search``."""
    store.check_model(encoder)
    scores, rows = Index.open(store).search(query_embeds, k)
    items = store.items(rows.reshape(-1)).to_pylist()
    width = rows.shape[1]
    return [
        [
            Hit(
                row=int(rows[q, i]),
                score=float(scores[q, i]),
                key=item["key"],
                caption=item["caption"],
                origin=item["origin"],
                source_row=item["source_row"],
            )
            for i, item in enumerate(items[q * width : (q + 1) * width])
        ]
        for q in range(len(rows))
    ]

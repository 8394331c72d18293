"""Queries and their hits → a page with the pictures, read from where they were embedded."""

from __future__ import annotations

from collections.abc import Sequence

from clipkit.data import Reader, SampleError, open_source
from clipkit.display.console import short_path
from clipkit.display.page import Answer, Gallery, Query, gallery, page, thumbnail
from clipkit.errors import ClipkitError
from clipkit.inputs import ImageInput, open_image
from clipkit.retrieval.search import Hit
from clipkit.retrieval.store import EmbeddingStore


def search_page(
    store: EmbeddingStore,
    queries: Sequence[str],
    found: Sequence[Sequence[Hit]],
    *,
    images: Sequence[ImageInput | None] | None = None,
) -> tuple[str, str | None]:
    """A page of searches.

    Args:
        store: where the hits are from.
        queries: Q texts, or names of pictures.
        found: the hits of each.
        images: the picture of each query by picture.

    Returns:
        The page in HTML, and what keeps its pictures from being shown, if something does.
    """
    reader, fault = _reader_of(store)
    shown = [
        Query(
            text=text,
            answers=[_answer(hit, reader) for hit in hits],
            image=None if image is None else thumbnail(open_image(image, where=text)),
        )
        for text, hits, image in zip(queries, found, images or [None] * len(queries), strict=True)
    ]
    source, model = short_path(store.source.path), short_path(str(store.manifest["model"]))
    return (
        page(
            "Search",
            f"{len(store):,} samples of {source}, embedded by {model}",
            [gallery(Gallery("Results", shown, fault or ""))],
        ),
        fault,
    )


def _reader_of(store: EmbeddingStore) -> tuple[Reader | None, str | None]:
    """The source a store was made from, if it is still there and as it was."""
    try:
        reader = open_source(store.source, progress=False)
    except ClipkitError as error:
        return None, f"no pictures can be shown: {error}"
    if reader.fingerprint != store.manifest.get("source_fingerprint"):
        return None, (
            f"no pictures can be shown: {store.source.path} has changed since it was embedded; "
            "embed it again"
        )
    return reader, None


def _answer(hit: Hit, reader: Reader | None) -> Answer:
    picture = None
    if reader is not None and 0 <= hit.source_row < len(reader):
        try:
            picture = thumbnail(reader[hit.source_row].image)
        except (SampleError, ClipkitError):
            picture = None
    return Answer(picture, hit.caption or hit.key, hit.score)

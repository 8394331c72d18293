"""A RetrievalSet → some of its queries with the images found, right ones marked, for a page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipkit.data import Reader, SampleError
from clipkit.display.page import Answer, Gallery, Query, thumbnail
from clipkit.evaluation.retrieval import RetrievalSet, rank_set


def retrieval_gallery(
    collected: RetrievalSet,
    readers: Sequence[Reader],
    *,
    title: str,
    num_queries: int = 8,
    k: int = 6,
) -> Gallery:
    """Queries spread evenly over a data set, up to half of them chosen from those that fail.

    Args:
        collected: what ``embed_retrieval_set`` gave.
        readers: the data set's, then those of its galleries.
        title: the heading.
        num_queries: how many queries are shown.
        k: how many images a query.
    """
    ranks, _, num_right = rank_set(collected)[0]
    failed, found = np.flatnonzero(ranks > 1), np.flatnonzero(ranks == 1)
    num_failed = min(len(failed), max(num_queries // 2, num_queries - len(found)))
    num_found = min(len(found), num_queries - num_failed)
    chosen = [*_spread(found, num_found), *_spread(failed, num_failed)]
    caption_of = {int(image): int(text) for image, text in collected.matches[::-1]}
    right = {text: set() for text in chosen}  # type: dict[int, set[int]]
    for image, text in collected.matches.tolist():
        if text in right:
            right[text].add(image)
    queries = []
    for text in chosen:
        scores = collected.image_embeds @ collected.text_embeds[text]  # (N,)
        answers = [
            Answer(
                image=_picture(readers, collected.places[image]),
                caption=(
                    collected.captions[caption_of[image]]
                    if image in caption_of
                    else _caption(readers, collected.places[image])
                ),
                score=float(scores[image]),
                right=image in right[text],
            )
            for image in np.argsort(-scores, kind="stable")[:k].tolist()
        ]
        which = "the right one" if len(right[text]) == 1 else "the first right one"
        note = "found first" if ranks[text] == 1 else f"{which} is at place {ranks[text]:,}"
        queries.append(Query(collected.captions[text], answers, note))
    images = len(collected.image_embeds)
    if (num_right == images).all():
        return Gallery(title, queries, f"All {images:,} images are right, so none can be missed.")
    return Gallery(
        title,
        queries,
        f"{len(found):,} of {len(ranks):,} texts find their image first, among {images:,}. Shown: "
        f"{num_found} that do and {num_failed} that do not, spread evenly over the data set.",
    )


def _spread(rows: np.ndarray, count: int) -> list[int]:
    """``count`` of the rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, count + 2)[1:-1] if count < len(rows) else None
    chosen = rows if places is None else rows[np.unique(places.round().astype(int))]
    picked: list[int] = chosen[:count].tolist()
    return picked


def _picture(readers: Sequence[Reader], place: tuple[int, int]) -> str | None:
    number, row = place
    try:
        return thumbnail(readers[number][row].image)
    except SampleError:
        return None


def _caption(readers: Sequence[Reader], place: tuple[int, int]) -> str:
    number, row = place
    try:
        pair = readers[number][row]
    except SampleError:
        return ""
    return pair.caption or pair.key

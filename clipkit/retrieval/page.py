"""Queries and their hits → a page with the pictures, read from where they were embedded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from clipkit.data import Reader, SampleError, open_source
from clipkit.display.console import short_path
from clipkit.display.page import Answer, Gallery, Query, gallery, page, thumbnail
from clipkit.errors import ClipkitError
from clipkit.inputs import open_image
from clipkit.retrieval.result import Hit, SearchResult
from clipkit.retrieval.sources import texts_sha256
from clipkit.retrieval.store import EmbeddingStore


def search_page(
    stores: Sequence[EmbeddingStore], found: Sequence[SearchResult], *, most: int | None = None
) -> tuple[str, str | None]:
    """A page of searches.

    Args:
        stores: where the hits are from.
        found: the results of each query.
        most: hits that are shown of each; none: all.

    Returns:
        The page in HTML, and what keeps its pictures from being shown, if something does.
    """
    readers, fault = _readers(stores)
    shown = []
    for result in found:
        image = result.query.image
        shown.append(
            Query(
                text=result.query.title,
                answers=_answers(result, readers, most),
                image=None if image is None else thumbnail(open_image(image, where="image")),
            )
        )
    samples = ", ".join(
        f"{len(store):,} samples of {short_path(store.source.path)}" for store in stores
    )
    model = short_path(str(stores[0].manifest["model"]))
    return (
        page(
            "Search",
            f"{samples}, embedded by {model}",
            [gallery(Gallery("Results", shown, fault or ""))],
        ),
        fault,
    )


def notebook_gallery(result: SearchResult) -> str:
    """A result for a notebook: pictures, scores and captions, with styles of its own."""
    readers, fault = _readers(result.stores)
    cells = []
    for answer in _answers(result, readers):
        picture = (
            f'<img src="{escape(answer.image)}" alt="" style="width:112px;height:112px;'
            'object-fit:contain;background:#fff">'
            if answer.image
            else '<div style="width:112px;height:112px">no picture</div>'
        )
        cells.append(
            '<figure style="width:112px;margin:0;overflow-wrap:anywhere;font-size:12px">'
            f"{picture}<figcaption><b>{answer.score:.3f}</b> {escape(answer.caption)}"
            "</figcaption></figure>"
        )
    note = f"<p>{escape(fault)}</p>" if fault else ""
    nothing = "" if cells else "<p>nothing found</p>"
    return (
        f"<div><p><b>{escape(str(result.query))}</b></p>{note}{nothing}"
        f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(cells)}</div></div>'
    )


def reader_of(store: EmbeddingStore) -> tuple[Reader | None, str | None]:
    """The source a store was made from, if it is still there and as it was: by the names, sizes and
    numbers of its files, and by the content of tables and captions; docs/store.md has all of it."""
    texts = store.manifest.get("source_texts_sha256")
    try:
        reader = open_source(store.source, progress=False)
        same = reader.fingerprint == store.manifest.get("source_fingerprint") and (
            texts is None or texts == texts_sha256(reader)
        )
    except ClipkitError as error:
        return None, f"no pictures can be shown: {error}"
    if not same:
        return None, (
            f"no pictures can be shown: {store.source.path} has changed since it was embedded; "
            "embed it again"
        )
    return reader, None


def _readers(stores: Sequence[EmbeddingStore]) -> tuple[list[Reader | None], str | None]:
    """The source of each store, and what is wrong with those that are not there."""
    opened = [reader_of(store) for store in stores]
    faults = dict.fromkeys(fault for _, fault in opened if fault)
    return [reader for reader, _ in opened], "; ".join(faults) or None


def _answers(
    result: SearchResult, readers: Sequence[Reader | None], most: int | None = None
) -> list[Answer]:
    places = result.of_store[:most]
    return [_answer(hit, readers[i]) for hit, i in zip(result[:most], places, strict=True)]


def _answer(hit: Hit, reader: Reader | None) -> Answer:
    picture = None
    if reader is not None and 0 <= hit.source_row < len(reader):
        try:
            picture = thumbnail(reader[hit.source_row].image)
        except (SampleError, ClipkitError):
            picture = None
    more = f" (+{hit.more:,} more)" if hit.more else ""
    return Answer(picture, (hit.caption or hit.key) + more, hit.score)

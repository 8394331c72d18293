"""Tables, charts and pictures → one HTML page that needs nothing else: no requests, no scripts.

Everything that comes from data is escaped, and pictures are decoded and encoded again by us,
so that a hostile caption or file stays text and pixels.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO

from PIL import Image

from clipkit.data import ImageError, decode_image
from clipkit.display.style import CSS
from clipkit.inputs import MAX_IMAGE_PIXELS

_THUMBNAIL = 224  # pixels, the longest edge


@dataclass(slots=True)
class Answer:
    """One picture found for a query.

    Attributes:
        image: a data URI, or None where it cannot be shown.
        caption: its text or name.
        score: the cosine.
        right: whether it is a right answer; None where that is not known.
    """

    image: str | None
    caption: str
    score: float
    right: bool | None = None


@dataclass(slots=True)
class Query:
    """What was asked, and what was found, the best first."""

    text: str
    answers: list[Answer]
    note: str = ""
    image: str | None = None  # of a query by image


@dataclass(slots=True)
class Gallery:
    """Queries under one heading."""

    title: str
    queries: list[Query] = field(default_factory=list)
    note: str = ""


def thumbnail(data: bytes | Image.Image | None) -> str | None:
    """A small picture as a data URI; None where there is none or it cannot be decoded."""
    if data is None:
        return None
    try:
        picture = small_webp(data, _THUMBNAIL)
    except ImageError:
        return None
    return "data:image/webp;base64," + base64.b64encode(picture).decode()


def small_webp(data: bytes | Image.Image, edge: int) -> bytes:
    """A picture as WebP, its longest edge at most so long.

    Raises:
        ImageError: it cannot be decoded.
    """
    image = decode_image(data, max_pixels=MAX_IMAGE_PIXELS) if isinstance(data, bytes) else data
    image = image.copy()
    image.thumbnail((edge, edge))
    buffer = BytesIO()
    image.save(buffer, "WEBP", quality=82)
    return buffer.getvalue()


def page(title: str, subtitle: str, sections: Sequence[str]) -> str:
    """A whole document.

    Args:
        title: plain text.
        subtitle: plain text.
        sections: HTML, as the functions below make it.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # Even if something slipped through: nothing is fetched, nothing is run.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body><main>"
        f'<header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>'
        f"{''.join(sections)}</main></body></html>\n"
    )


def section(heading: str, *contents: str) -> str:
    """A heading and what is under it; ``contents`` are HTML."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(contents)}</section>"


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with what it is: (what, number)."""
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(number)}</dd></div>" for what, number in facts
    )
    return f'<dl class="tiles">{cells}</dl>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts; all columns but the first are numbers."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def details(summary: str, text: str) -> str:
    """A long text, folded away."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def gallery(shown: Gallery) -> str:
    """A section with each query and the pictures found for it."""
    note = f'<p class="note">{escape(shown.note)}</p>' if shown.note else ""
    queries = "".join(_query(query) for query in shown.queries)
    return section(shown.title, note, queries or '<p class="note">No queries.</p>')


def _query(query: Query) -> str:
    picture = f'<img class="asked" src="{escape(query.image)}" alt="">' if query.image else ""
    note = f'<span class="note">{escape(query.note)}</span>' if query.note else ""
    answers = "".join(_answer(answer) for answer in query.answers)
    answers = answers or '<li class="none">nothing found</li>'
    return (
        f'<article class="query"><h3>{picture}<q>{escape(query.text)}</q> {note}</h3>'
        f'<ol class="answers">{answers}</ol></article>'
    )


def _answer(answer: Answer) -> str:
    picture = (
        f'<img src="{escape(answer.image)}" alt="{escape(answer.caption)}" loading="lazy">'
        if answer.image
        else '<div class="missing">no picture</div>'
    )
    mark = '<span class="mark" title="the right one">✓ right</span>' if answer.right else ""
    return (
        f'<li{" class=right" if answer.right else ""}><div class="frame">{picture}{mark}</div>'
        f'<p class="score">{answer.score:.3f}</p>'
        f'<p class="caption" title="{escape(answer.caption)}">{escape(answer.caption)}</p></li>'
    )

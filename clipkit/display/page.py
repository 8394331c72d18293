"""Tables, charts and pictures → one HTML page that needs nothing else: no requests, no scripts.

Everything that comes from data is escaped, and pictures are decoded and encoded again by us,
so that a hostile caption or file stays text and pixels.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from io import BytesIO

from PIL import Image

from clipkit.data import ImageError, decode_image
from clipkit.display.figure import Figure
from clipkit.display.style import CSS
from clipkit.inputs import MAX_IMAGE_PIXELS

_THUMBNAIL = 224  # pixels, the longest edge


@dataclass(slots=True)
class Answer:
    """One picture found for a query.

    Attributes:
        image: a data URI, or None where it cannot be shown.
        caption: its text or name.
        score: the cosine, or a probability; None where there is none.
        right: whether it is a right answer; None where that is not known.
    """

    image: str | None
    caption: str
    score: float | None
    right: bool | None = None


@dataclass(slots=True)
class Query:
    """What was asked, and what was found, the best first; ``quoted`` where it is a text that a
    model was asked."""

    text: str
    answers: list[Answer]
    note: str = ""
    image: str | None = None  # of a query by image
    quoted: bool = True


@dataclass(slots=True)
class Gallery:
    """Queries under one heading."""

    title: str
    queries: list[Query] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table with a smaller line under its text."""

    text: str
    small: str


def thumbnail(data: bytes | Image.Image | None, *, edge: int = _THUMBNAIL) -> str | None:
    """A small picture as a data URI; None where there is none or it cannot be decoded."""
    if data is None:
        return None
    try:
        picture = small_webp(data, edge)
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


def contents(headings: Sequence[str]) -> str:
    """Links to the sections of those names."""
    links = "".join(f'<a href="#{_anchor(each)}">{escape(each)}</a>' for each in headings)
    return f"<nav>{links}</nav>"


def section(heading: str, *contents: str) -> str:
    """A heading and what is under it; ``contents`` are HTML."""
    inside = "".join(contents)
    return f'<section id="{_anchor(heading)}"><h2>{escape(heading)}</h2>{inside}</section>'


def subheading(text: str) -> str:
    """A heading within a section."""
    return f"<h3>{escape(text)}</h3>"


def note(text: str) -> str:
    """A sentence or two for the reader."""
    return f'<p class="note">{escape(text)}</p>'


def tiles(facts: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with what it is: (what, number)."""
    cells = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(number)}</dd></div>" for what, number in facts
    )
    return f'<dl class="tiles">{cells}</dl>'


def table(
    header: Sequence[str], rows: Sequence[Sequence[str | Cell]], *, texts: Sequence[int] = (0,)
) -> str:
    """A table of plain texts.

    Args:
        header: a title for each column.
        rows: the cells.
        texts: the columns that are texts; all others are numbers, to the right.
    """

    def cell(tag: str, column: int, inside: str) -> str:
        return (
            f"<{tag} class=text>{inside}</{tag}>" if column in texts else f"<{tag}>{inside}</{tag}>"
        )

    head = "".join(cell("th", c, escape(each)) for c, each in enumerate(header))
    body = "".join(
        "<tr>" + "".join(cell("td", c, _inside(each)) for c, each in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _inside(cell: str | Cell) -> str:
    if isinstance(cell, Cell):
        return f"{escape(cell.text)}<small>{escape(cell.small)}</small>"
    return escape(cell)


def figure(shown: Figure) -> str:
    """A figure in a frame; a wide one scrolls in it."""
    about = note(shown.note) if shown.note else ""
    look = "chart" + (" broad" if shown.wide else "") + (" white" if shown.white else " themed")
    inside = f'<div class="scroll">{shown.svg}</div>' if shown.wide else shown.svg
    return f'<figure class="{look}">{inside}{about}</figure>'


def charts(figures: Sequence[str]) -> str:
    """Framed figures beside one another, as there is room."""
    return f'<div class="charts">{"".join(figures)}</div>'


def details(summary: str, text: str) -> str:
    """A long text, folded away."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def folded(summary: str, html: str) -> str:
    """HTML that is seen when it is asked for."""
    return (
        f'<details><summary>{escape(summary)}</summary><div class="inside">{html}</div></details>'
    )


def gallery(shown: Gallery) -> str:
    """A section with each query and the pictures found for it."""
    return section(shown.title, queries(shown))


def queries(shown: Gallery) -> str:
    """The same without its heading."""
    about = note(shown.note) if shown.note else ""
    return about + ("".join(_query(query) for query in shown.queries) or note("No queries."))


def _query(query: Query) -> str:
    picture = f'<img class="asked" src="{escape(query.image)}" alt="">' if query.image else ""
    about = f'<span class="note">{escape(query.note)}</span>' if query.note else ""
    tag = "q" if query.quoted else "span"
    answers = "".join(_answer(answer) for answer in query.answers)
    answers = answers or '<li class="none">nothing found</li>'
    return (
        f'<article class="query"><h3>{picture}<{tag}>{escape(query.text)}</{tag}> {about}</h3>'
        f'<ol class="answers">{answers}</ol></article>'
    )


def _answer(answer: Answer) -> str:
    picture = (
        f'<img src="{escape(answer.image)}" alt="{escape(answer.caption)}" loading="lazy">'
        if answer.image
        else '<div class="missing">no picture</div>'
    )
    mark = '<span class="mark" title="the right one">✓ right</span>' if answer.right else ""
    score = "" if answer.score is None else f'<p class="score">{answer.score:.3f}</p>'
    caption = escape(answer.caption)
    return (
        f'<li{" class=right" if answer.right else ""}><div class="frame">{picture}{mark}</div>'
        f'{score}<p class="caption" title="{caption}">{caption}</p></li>'
    )


def _anchor(heading: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")

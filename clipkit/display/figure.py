"""What all our figures share: one SVG, which a page holds and which is a file of its own.

Colours stand in the elements, so that a file looks right alone; a page's style sheet has the last
word, by class, for a reader whose system is dark.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

from clipkit.atomic import write_text
from clipkit.display.console import display_width, shorten
from clipkit.errors import CheckpointError

INK, SOFT, RULE = "#1b1b19", "#63625d", "#e3e2dd"
# Told apart by people who see some colours as one too, in this order; see style.py for the dark.
COLOURS = (
    "#2a78d6", "#d9622b", "#2f8f5b", "#8a5cc4", "#c03d68", "#8a7a12", "#1591a5", "#6b6b66",
)  # fmt: skip
PNG_EXTRA = "pip install 'clipkit-pretraining[figures]'"
_FONT = (
    "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'Noto Sans', "
    "'Liberation Sans', 'DejaVu Sans', sans-serif"
)
MARGIN = 12  # pixels around all that is drawn
_SCALE = 2  # pixels of a PNG for one of the figure's


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as a page and a file have it.

    Attributes:
        title: plain text; it stands in the figure too.
        svg: a whole document.
        note: what else the reader should know, under it on a page.
        wide: it is shown at its own size, and scrolls where there is no room.
        white: its colours are its own, and it stays on white on a dark page too.
    """

    title: str
    svg: str
    note: str = ""
    wide: bool = False
    white: bool = False


def document(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """Elements → an SVG document on white, with a margin around them."""
    wide, high = width + 2 * MARGIN, height + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:g}" height="{high:g}" '
        f'viewBox="{-MARGIN} {-MARGIN} {wide:g} {high:g}" role="img" '
        f'aria-label="{escape(_clean(title))}" '
        f'font-family="{_FONT}" font-size="12">'
        f'<rect class="back" x="{-MARGIN}" y="{-MARGIN}" width="{wide:g}" height="{high:g}" '
        f'fill="#fff"/>'
        f"{_clean(''.join(parts))}</svg>"
    )


def words(
    x: float, y: float, text: str, *, anchor: str = "start", strong: bool = False, size: int = 12
) -> str:
    """A line of text; ``strong`` is darker and heavier."""
    look = f'class="ink" fill="{INK}" font-weight="600"' if strong else f'fill="{SOFT}"'
    place = f'x="{x:g}" y="{y:g}"' + (f' text-anchor="{anchor}"' if anchor != "start" else "")
    sized = f' font-size="{size}"' if size != 12 else ""
    return f"<text {place} {look}{sized}>{escape(_clean(text))}</text>"


def heading(title: str, width: float) -> str:
    """The title of a figure, in its first 24 pixels."""
    return words(2, 15, shorten(title, int(width / 7.8)), strong=True, size=13)


def grid_line(x1: float, y1: float, x2: float, y2: float) -> str:
    """A thin line behind what is drawn."""
    place = f'x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"'
    return f'<line class="grid" {place} stroke="{RULE}"/>'


def text_width(text: str, size: float = 12) -> float:
    """Pixels that a text takes, by a wide font: no more than this."""
    return display_width(text) * size * 0.6


def colour_of(number: int) -> tuple[str, str]:
    """Class and colour of the n-th of several things; after the last they begin again."""
    number %= len(COLOURS)
    return f"s{number}", COLOURS[number]


def can_write_png() -> bool:
    """Whether the package is there that turns SVG into pixels."""
    return find_spec("resvg_py") is not None


def write_figures(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Each figure as SVG, and as PNG where that can be; numbered in their order.

    Args:
        figures: what to write.
        folder: made where it is not there.

    Returns:
        The files written.

    Raises:
        CheckpointError: a file cannot be written, or a figure cannot be drawn.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror})") from error
    written = []
    with tempfile.TemporaryDirectory() as place:
        font = Path(place) / "font.ttf"
        default = ImageFont.load_default(12)
        if isinstance(default, ImageFont.FreeTypeFont):
            font.write_bytes(default.font_bytes)
        for number, figure in enumerate(figures, 1):
            name = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")[:60].strip("-")
            path = folder / f"{number:02d}-{name or 'figure'}.svg"
            write_text(path, figure.svg + "\n")
            written.append(path)
            if can_write_png():
                path = path.with_suffix(".png")
                try:
                    path.write_bytes(_png(figure.svg, font))
                except (OSError, ValueError) as error:
                    raise CheckpointError(f"{path}: cannot be drawn ({error})") from error
                written.append(path)
    return written


def _png(svg: str, font: Path) -> bytes:
    import resvg_py

    # Where none of the named fonts is installed, as in a bare container, all letters would be
    # left out in silence: Pillow brings Latin ones.
    fonts = [str(font)] if font.is_file() else []
    pixels = resvg_py.svg_to_bytes(
        svg_string=svg, zoom=_SCALE, font_files=fonts, sans_serif_family="Aileron"
    )
    return bytes(pixels)


def _clean(text: str) -> str:
    """What XML cannot hold, as a sign that something was there."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)

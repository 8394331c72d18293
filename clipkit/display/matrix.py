"""Numbers of rows × columns → a figure of coloured cells, as SVG or as pixels, drawn by us.

It has colours of its own on white, so that a saved file looks as it does on a page.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipkit.display.console import display_width, shorten
from clipkit.display.figure import INK, MARGIN, SOFT, document

_GAP, _LETTER = 2, 7  # pixels: between cells, a letter's width
_NAME, _TITLE = 24, 30  # columns of a row's name, and of a column's
_NONE = "#dddddd"
_LOW, _HIGH = np.array([238, 243, 250]), np.array([16, 68, 138])
_SCALE = 2  # pixels of a PNG for one of the figure's


@dataclass(frozen=True, slots=True)
class _Text:
    x: float
    y: float  # of the base line
    text: str
    colour: str = INK
    anchor: str = "start"
    slanted: bool = False
    strong: bool = False


@dataclass(frozen=True, slots=True)
class MatrixFigure:
    """A figure with a name, and a picture if there is one, at each row, and a text above each
    column.

    Attributes:
        values: (N, M); what is not finite is a grey cell.
        rows: N names.
        columns: M texts.
        pictures: N WebP files or None; none at all: no room is left for them.
        most: rows and columns at most; how many are left out is said.
        title: stands above it all.
        percent: values are shares, written in per cent, and nothing where that would be 0.
        cell: pixels of a cell's edge.
    """

    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]
    pictures: Sequence[bytes | None] = ()
    most: int = 40
    title: str = ""
    percent: bool = False
    cell: int = 46

    def svg(self) -> str:
        """The figure as a document of its own, which a page can hold too."""
        width, height = self._size()
        parts = []
        for i, j, x, y in self._cells():
            number = (self._number(i, j) or "0") + ("%" if self.percent else "")
            said = escape(f"{self.rows[i]} × {self.columns[j]}: {number}")
            parts.append(
                f'<rect x="{x}" y="{y}" width="{self.cell}" height="{self.cell}" rx="4" '
                f'fill="{self._colour(i, j)}"><title>{said}</title></rect>'
            )
        for y, picture in self._shown_pictures():
            data = base64.b64encode(picture).decode()
            parts.append(
                f'<image x="{_GAP}" y="{y}" width="{self.cell}" height="{self.cell}" '
                f'href="data:image/webp;base64,{data}"/>'
            )
        for each in self._texts():
            turn = f' transform="rotate(-40 {each.x} {each.y})"' if each.slanted else ""
            weight = ' font-weight="600" font-size="13"' if each.strong else ""
            parts.append(
                f'<text x="{each.x}" y="{each.y}" fill="{each.colour}"{weight} '
                f'text-anchor="{each.anchor}"{turn}>{escape(each.text)}</text>'
            )
        return document(width, height, self.title or "similarity matrix", parts)

    def image(self) -> Image.Image:
        """The figure in pixels. Its letters are Pillow's own, which are Latin ones."""
        size = self._size()
        image = Image.new("RGB", (size[0] * _SCALE, size[1] * _SCALE), "white")
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(12 * _SCALE)
        edge = self.cell * _SCALE
        for i, j, x, y in self._cells():
            left, top = x * _SCALE, y * _SCALE
            box = (left, top, left + edge - 1, top + edge - 1)
            draw.rounded_rectangle(box, 4 * _SCALE, fill=self._colour(i, j))
        for y, picture in self._shown_pictures():
            small = Image.open(BytesIO(picture)).convert("RGB")
            factor = edge / max(small.size)
            small = small.resize([max(1, round(side * factor)) for side in small.size])
            left, top = ((edge - side) // 2 for side in small.size)
            image.paste(small, (_GAP * _SCALE + left, y * _SCALE + top))
        for each in self._texts():
            place = (each.x * _SCALE, each.y * _SCALE)
            if not each.slanted:
                anchor = "ms" if each.anchor == "middle" else "ls"
                draw.text(place, each.text, each.colour, font, anchor)
                continue
            # Turned around the middle of a square mask that has the text's beginning there.
            reach = math.ceil(font.getlength(each.text)) + 12 * _SCALE
            mask = Image.new("L", (2 * reach, 2 * reach))
            ImageDraw.Draw(mask).text((reach, reach), each.text, 255, font, "ls")
            corner = (round(place[0]) - reach, round(place[1]) - reach)
            image.paste(each.colour, corner, mask.rotate(40, Image.Resampling.BICUBIC))
        margin = MARGIN * _SCALE
        framed = Image.new("RGB", [side + 2 * margin for side in image.size], "white")
        framed.paste(image, (margin, margin))
        return framed

    def _shape(self) -> tuple[int, int]:
        """Rows and columns that are shown."""
        return min(len(self.rows), self.most), min(len(self.columns), self.most)

    def _origin(self) -> tuple[int, int]:
        """Where the first cell is."""
        rows, columns = self._shape()
        name = max((_width(shorten(name, _NAME)) for name in self.rows[:rows]), default=0)
        title = max((_width(shorten(text, _TITLE)) for text in self.columns[:columns]), default=0)
        above = round(title * math.sin(math.radians(40))) + (48 if self.title else 24)
        return self._pictures_end() + name + 10, above

    def _pictures_end(self) -> int:
        """Where the names of the rows begin."""
        shown = any(each is not None for each in self.pictures)
        return self.cell + 3 * _GAP if shown else _GAP

    def _size(self) -> tuple[int, int]:
        (rows, columns), (left, top) = self._shape(), self._origin()
        step = self.cell + _GAP
        # A text leans over the columns behind its own, and the note stands below.
        ends = [
            left + j * step + self.cell + _width(shorten(text, _TITLE)) * math.cos(math.radians(40))
            for j, text in enumerate(self.columns[:columns])
        ]
        ends.append(_width(self.title) * 13 / 12 + 8)
        cut = self._shape() != (len(self.rows), len(self.columns))
        return math.ceil(max([*ends, 300])), top + rows * step + (28 if cut else 0)

    def _cells(self) -> list[tuple[int, int, int, int]]:
        """Row, column, x and y of each."""
        (rows, columns), (left, top) = self._shape(), self._origin()
        step = self.cell + _GAP
        return [
            (i, j, left + j * step, top + i * step) for i in range(rows) for j in range(columns)
        ]

    def _shown_pictures(self) -> list[tuple[int, bytes]]:
        """y and the file of each."""
        top, step = self._origin()[1], self.cell + _GAP
        shown = self.pictures[: self._shape()[0]]
        return [(top + i * step, each) for i, each in enumerate(shown) if each is not None]

    def _texts(self) -> list[_Text]:
        (rows, columns), (left, top) = self._shape(), self._origin()
        step, middle = self.cell + _GAP, self.cell / 2
        texts = [
            _Text(self._pictures_end(), top + i * step + middle + 4, shorten(name, _NAME))
            for i, name in enumerate(self.rows[:rows])
        ]
        texts += [
            _Text(left + j * step + middle, top - 8, shorten(text, _TITLE), slanted=True)
            for j, text in enumerate(self.columns[:columns])
        ]
        for i, j, x, y in self._cells():
            colour = "#ffffff" if self._share(i, j) > 0.6 else INK
            if number := self._number(i, j):
                texts.append(_Text(x + middle, y + middle + 4, number, colour, "middle"))
        if self.title:
            texts.append(_Text(_GAP, 15, self.title, strong=True))
        note = f"{rows:,} of {len(self.rows):,} rows, {columns:,} of {len(self.columns):,} columns"
        if (rows, columns) != (len(self.rows), len(self.columns)):
            texts.append(_Text(_GAP, top + rows * step + 18, note, SOFT))
        return texts

    def _number(self, i: int, j: int) -> str:
        value = float(self.values[i, j])
        if not math.isfinite(value):
            return "–"
        if self.percent:
            return f"{value:.0%}".rstrip("%") if value >= 0.005 else ""
        return f"{value:z.2f}"

    def _share(self, i: int, j: int) -> float:
        """From 0, the lowest value that is shown, to 1; 0 for what is not finite."""
        rows, columns = self._shape()
        shown = self.values[:rows, :columns]
        finite = shown[np.isfinite(shown)]
        value = float(self.values[i, j])
        if not math.isfinite(value):
            return 0.0
        low, high = float(finite.min()), float(finite.max())
        return (value - low) / (high - low) if high > low else 0.0

    def _colour(self, i: int, j: int) -> str:
        if not math.isfinite(float(self.values[i, j])):
            return _NONE
        mixed = _LOW + (_HIGH - _LOW) * self._share(i, j)
        return "#" + "".join(f"{round(channel):02x}" for channel in mixed)


def _width(text: str) -> int:
    return _LETTER * display_width(text)

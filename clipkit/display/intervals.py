"""Numbers with their intervals → dots with whiskers around zero, one under the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from clipkit.display.console import shorten
from clipkit.display.figure import (
    SOFT,
    Figure,
    colour_of,
    document,
    grid_line,
    heading,
    text_width,
    words,
)

_WIDTH, _ROW, _TOP, _RIGHT = 440, 24, 34, 54
_NAME = 24  # letters


@dataclass(frozen=True, slots=True)
class Interval:
    """One line of the figure: a value between ``low`` and ``high``, of group ``group``."""

    name: str
    value: float
    low: float
    high: float
    group: int = 0


def interval_chart(title: str, rows: Sequence[Interval], *, reach: float) -> Figure | None:
    """A figure of differences: what lies left of zero is less, right of it more.

    Args:
        title: what is shown.
        rows: what is not finite is left out.
        reach: how far from zero the figure reaches on both sides, at least.

    Returns:
        None where there is nothing to draw.
    """
    rows = [r for r in rows if all(map(math.isfinite, (r.value, r.low, r.high)))]
    if not rows:
        return None
    names = [shorten(row.name, _NAME) for row in rows]
    left = max(text_width(name) for name in names) + 12
    reach = max(reach, *(max(abs(row.low), abs(row.high)) for row in rows)) or 1.0
    step = _round_up(reach / 3)
    reach = step * math.ceil(reach / step)
    height = _TOP + _ROW * len(rows) + 26

    def across(value: float) -> float:
        return round(left + (value + reach) / (2 * reach) * (_WIDTH - left - _RIGHT), 1)

    parts = [heading(title, _WIDTH)]
    for number in range(-round(reach / step), round(reach / step) + 1):
        x = across(number * step)
        parts.append(grid_line(x, _TOP - 4, x, height - 24))
        label = f"{number * step:+.3g}" if number else "0"
        parts.append(words(x, height - 8, label, anchor="middle"))
    zero = across(0)
    parts.append(
        f'<line class="axis" x1="{zero}" y1="{_TOP - 4}" x2="{zero}" y2="{height - 24}" '
        f'stroke="{SOFT}"/>'
    )
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        y = _TOP + _ROW * number + _ROW / 2
        look, colour = colour_of(row.group)
        said = f"{row.name}: {row.value:+.3f}, from {row.low:+.3f} to {row.high:+.3f}"
        parts.append(words(2, y + 4, name))
        parts.append(
            f'<line class="line {look}" x1="{across(row.low)}" y1="{y}" x2="{across(row.high)}" '
            f'y2="{y}" stroke="{colour}" stroke-width="2" stroke-linecap="round"/>'
            f'<circle class="dot {look}" cx="{across(row.value)}" cy="{y}" r="4" fill="{colour}">'
            f"<title>{escape(said)}</title></circle>"
        )
        parts.append(words(_WIDTH, y + 4, f"{row.value:+.3f}", anchor="end", strong=True))
    return Figure(title, document(_WIDTH, height, title, parts))


def _round_up(value: float) -> float:
    """1, 2 or 5 of some power of ten."""
    scale: float = 10 ** math.floor(math.log10(value))
    return next(scale * factor for factor in (1, 2, 5, 10) if scale * factor >= value * 0.999)

"""Numbers over steps → a small chart in SVG, drawn by us."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

from clipkit.display.console import shorten
from clipkit.display.figure import (
    COLOURS,
    INK,
    SOFT,
    Figure,
    colour_of,
    document,
    grid_line,
    heading,
    text_width,
    words,
)

_WIDTH, _PLOT = 440, 170
_LEFT, _RIGHT, _BOTTOM = 50, 12, 26
_ROW = 18  # of the legend
_MOST_DOTS = 24  # a line of more points shows only its last as a dot
_MOST_POINTS = 400  # more cannot be told apart at this width
_Place: TypeAlias = Callable[[float, float], tuple[float, float]]
_NAME = 34  # letters of a line's name in the legend


@dataclass(frozen=True, slots=True)
class Series:
    """One line: ``values[i]`` was measured at ``steps[i]``. What is not finite is a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def chart(
    title: str, series: Sequence[Series], *, share: bool = False, note: str = ""
) -> Figure | None:
    """A figure with a title, a legend with the last values, and the lines.

    Args:
        title: what is shown, with its unit.
        series: lines; those without a finite value are left out. Colours begin again after
            eight of them, dashed.
        share: whether values are shares from 0 to 1, shown on that scale in per cent.
        note: what else the reader should know.

    Returns:
        None where there is nothing to draw.
    """
    lines = {number: _thin(each) for number, each in enumerate(series)}
    lines = {number: each for number, each in lines.items() if _finite(each)}
    points = [p for each in lines.values() for p in _finite(each)]
    if not points:
        return None
    low_x, high_x = _range([x for x, _ in points])
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if share else _ticks(*_range([y for _, y in points]))
    low_y, high_y = ticks[0], ticks[-1]
    legend, top = _legend(lines, share)
    height = top + _PLOT + _BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(top + _PLOT - up * _PLOT, 1),
        )

    parts = [heading(title, _WIDTH), *legend]
    labels = [f"{tick:.0%}" for tick in ticks] if share else _labels(ticks)
    for tick, label in zip(ticks, labels, strict=True):
        _, y = place(low_x, tick)
        parts.append(grid_line(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(words(_LEFT - 8, y + 4, label, anchor="end"))
    parts += _steps(low_x, high_x, height - 8, place)
    for number, each in lines.items():
        parts += _line(number, each, place, share)
    return Figure(title, document(_WIDTH, height, title, parts), note)


def _line(number: int, series: Series, place: _Place, share: bool) -> list[str]:
    name, colour = colour_of(number)
    dash = ' stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
    parts = []
    for run in _runs(series):
        path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in run))
        parts.append(
            f'<polyline class="line {name}" points="{path}" fill="none" stroke="{colour}" '
            f'stroke-width="2" stroke-linejoin="round" stroke-linecap="round"{dash}/>'
        )
    finite = _finite(series)
    for step, value in finite if len(finite) <= _MOST_DOTS else finite[-1:]:
        x, y = place(step, value)
        shown = f"{value:.1%}" if share else _number(value)
        parts.append(
            f'<circle class="dot {name}" cx="{x}" cy="{y}" r="2.5" fill="{colour}"><title>'
            f"{escape(series.name)}: {shown} at step {_number(step)}</title></circle>"
        )
    return parts


def _legend(lines: dict[int, Series], share: bool) -> tuple[list[str], int]:
    """Name and last value of each line; and where the plot begins below them."""
    parts, x, y = [], 2.0, 36
    for number, each in lines.items():
        name, colour = colour_of(number)
        text, last = shorten(each.name, _NAME), _finite(each)[-1][1]
        value = f"{last:.1%}" if share else _number(last)
        width = 16 + text_width(text) + 6 + text_width(value) + 16
        if x > 2 and x + width > _WIDTH:
            x, y = 2.0, y + _ROW
        fill = "0.45" if number >= len(COLOURS) else "1"
        parts.append(
            f'<rect class="dot {name}" x="{x:g}" y="{y - 9}" width="10" height="10" rx="3" '
            f'fill="{colour}" fill-opacity="{fill}"/>'
        )
        parts.append(
            f'<text x="{x + 16:g}" y="{y}" fill="{SOFT}">{escape(text)}'
            f'<tspan class="ink" dx="6" fill="{INK}" font-weight="600">{value}</tspan></text>'
        )
        x += width
    return parts, y + 16


def _steps(low: float, high: float, y: float, place: _Place) -> list[str]:
    """The steps under the plot: its ends, and round numbers between them where there is room."""
    left, right = _number(low), f"step {_number(high)}"
    parts = [words(_LEFT, y, left), words(_WIDTH - _RIGHT, y, right, anchor="end")]
    for tick in _ticks(low, high):
        if not low < tick < high or tick != int(tick):
            continue
        x, _ = place(tick, 0)
        half = text_width(_number(tick)) / 2 + 8
        if _LEFT + text_width(left) < x - half and x + half < _WIDTH - _RIGHT - text_width(right):
            parts.append(words(x, y, _number(tick), anchor="middle"))
    return parts


def _finite(series: Series) -> list[tuple[float, float]]:
    return [p for run in _runs(series) for p in run]


def _runs(series: Series) -> list[list[tuple[float, float]]]:
    """The stretches between gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(series.steps, series.values, strict=True):
        if math.isfinite(step) and math.isfinite(value):
            runs[-1].append((step, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _thin(series: Series) -> Series:
    """Means over equal stretches where there are too many points to draw."""
    if len(series.steps) <= _MOST_POINTS:
        return series
    size = -(-len(series.steps) // _MOST_POINTS)
    steps, values = [], []
    for start in range(0, len(series.steps), size):
        steps.append(series.steps[min(start + size, len(series.steps)) - 1])
        block = series.values[start : start + size]
        values.append(sum(block) / len(block))
    return Series(series.name, steps, values)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    size = max(abs(low), abs(high), 1e-9)
    if high - low <= 1e-9 * size:  # as good as level: what rounding moves is no curve
        return low - size / 2, high + size / 2
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around a range, three to seven of them."""
    raw = (high - low) / 4
    scale = 10 ** math.floor(math.log10(raw))
    step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def _labels(ticks: Sequence[float]) -> list[str]:
    """The ticks in words, all with the digits that their distance takes."""
    near = abs(ticks[1] - ticks[0]) / 100
    for digits in range(3, 15):
        labels = [_number(tick, digits) for tick in ticks]
        shown = [float(label.replace(",", "")) for label in labels]
        if all(abs(a - b) < near for a, b in zip(shown, ticks, strict=True)):
            break
    return labels


def _number(value: float, digits: int = 3) -> str:
    """A number of three digits, or more where they are asked for."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.{digits - 2}e}".replace("e-0", "e-").replace("e+0", "e")
    if value == int(value):
        return f"{value:,.0f}"
    return f"{value:,.{digits - 3}f}" if abs(value) >= 1000 else f"{value:.{digits}g}"

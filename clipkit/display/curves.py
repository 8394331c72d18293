"""Numbers over steps → a small chart in SVG, drawn by us, with colours from the page's CSS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 400, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 26
_MOST_DOTS = 24  # a line of more points shows only its last as a dot
_MOST_POINTS = 400  # more cannot be told apart at this width


@dataclass(frozen=True, slots=True)
class Series:
    """One line: ``values[i]`` was measured at ``steps[i]``. What is not finite is a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def chart(
    title: str, series: Sequence[Series], *, share: bool = False, note: str = ""
) -> str | None:
    """A figure with a title, a legend where there is more than one line, and the lines.

    Args:
        title: what is shown, with its unit.
        series: at most four lines.
        share: whether values are shares from 0 to 1, shown on that scale in per cent.
        note: what else the reader should know.

    Returns:
        HTML, or None where there is nothing to draw.
    """
    series = [_thin(each) for each in series]
    points = [p for each in series for p in _finite(each)]
    if not points:
        return None
    low_x, high_x = _range([x for x, _ in points])
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if share else _ticks(*_range([y for _, y in points]))
    low_y, high_y = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    parts = []
    for tick in ticks:
        _, y = place(low_x, tick)
        label = f"{tick:.0%}" if share else _number(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{label}</text>')
    base = _HEIGHT - 8
    parts.append(f'<text x="{_LEFT}" y="{base}">{_number(low_x)}</text>')
    parts.append(
        f'<text x="{_WIDTH - _RIGHT}" y="{base}" text-anchor="end">step {_number(high_x)}</text>'
    )
    for number, each in enumerate(series):
        for run in _runs(each):
            path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in run))
            parts.append(f'<polyline class="line s{number}" points="{path}"/>')
        finite = _finite(each)
        marked = finite if len(finite) <= _MOST_DOTS else finite[-1:]
        for step, value in marked:
            x, y = place(step, value)
            shown = f"{value:.1%}" if share else _number(value)
            parts.append(
                f'<circle class="dot s{number}" cx="{x}" cy="{y}" r="2.5"><title>'
                f"{escape(each.name)}: {shown} at step {_number(step)}</title></circle>"
            )
    legend = "".join(
        f'<span class="key"><i class="s{number}"></i>{escape(each.name)}'
        f"<b>{_last(each, share)}</b></span>"
        for number, each in enumerate(series)
        if _finite(each)
    )
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3>'
        f'<div class="legend">{legend}</div></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>{f'<p class=note>{escape(note)}</p>' if note else ''}</figure>"
    )


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
    return [round(i * step, 12) for i in range(first, last + 1)]


def _number(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _last(series: Series, share: bool) -> str:
    value = _finite(series)[-1][1]
    return f"{value:.1%}" if share else _number(value)

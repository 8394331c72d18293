"""Probabilities and whether they were right → a reliability diagram: is 80% right 80% of the time?

Reference: Guo et al. 2017, https://arxiv.org/abs/1706.04599, Figure 1.
"""

from __future__ import annotations

import numpy as np

from clipkit.display.figure import (
    RULE,
    SOFT,
    Figure,
    colour_of,
    document,
    grid_line,
    heading,
    words,
)

_WIDTH, _LEFT, _RIGHT, _TOP, _PLOT, _COUNTS = 440, 50, 12, 34, 220, 44


def reliability_chart(
    title: str,
    counts: np.ndarray,
    confidences: np.ndarray,
    accuracies: np.ndarray,
    *,
    note: str = "",
) -> Figure | None:
    """Of what was said with a probability, the share that is right; and how often it was said.

    Args:
        title: what is shown.
        counts: (M,) predictions of each of M bins of equal width from 0 to 1.
        confidences: (M,) their mean probability.
        accuracies: (M,) the share that is right.
        note: what else the reader should know.

    Returns:
        None where all bins are empty.
    """
    if not counts.sum():
        return None
    look, colour = colour_of(0)
    wide = (_WIDTH - _LEFT - _RIGHT) / len(counts)
    base = _TOP + _PLOT
    parts = [heading(title, _WIDTH)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = base - share * _PLOT
        parts.append(grid_line(_LEFT, y, _WIDTH - _RIGHT, y))
        parts.append(words(_LEFT - 8, y + 4, f"{share:.0%}", anchor="end"))
    tallest = base + 12 + _COUNTS
    for number in range(len(counts)):
        if not counts[number]:
            continue
        x, share = _LEFT + number * wide, float(accuracies[number])
        mean = float(confidences[number])
        told = (
            f"said {mean:.1%} on average, right {share:.1%} of the time, {counts[number]:,} images"
        )
        high = share * _PLOT
        parts.append(
            f'<rect class="dot {look}" x="{x + 2:g}" y="{base - high:.1f}" width="{wide - 4:g}" '
            f'height="{high:.1f}" rx="2" fill="{colour}"><title>{told}</title></rect>'
        )
        often = max(1.0, counts[number] / counts.max() * _COUNTS)
        parts.append(
            f'<rect class="faint" x="{x + 2:g}" y="{tallest - often:.1f}" width="{wide - 4:g}" '
            f'height="{often:.1f}" rx="2" fill="{RULE}"><title>{told}</title></rect>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" y1="{base}" x2="{_WIDTH - _RIGHT}" y2="{_TOP}" '
        f'stroke="{SOFT}" stroke-dasharray="4 4"/>'
    )
    parts.append(words(_LEFT - 8, tallest - 4, "images", anchor="end", size=11))
    height = tallest + 22
    for share in (0, 0.5, 1):
        x = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        anchor = {0: "start", 0.5: "middle", 1: "end"}[share]
        text = "probability that was given" if share == 0.5 else f"{share:.0%}"
        parts.append(words(x, height - 6, text, anchor=anchor))
    return Figure(title, document(_WIDTH, height, title, parts), note)

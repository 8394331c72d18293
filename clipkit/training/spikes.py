"""Steps whose loss or gradient stands out from those before: found when they happen."""

from __future__ import annotations

import math
import statistics
from collections import deque

_RECENT = 100  # steps that a step is compared with
_LEAST = 20  # of them, before any is called a spike
_FACTOR = 2.0  # times their median
_DEVIATIONS = 10.0  # and this many times their median absolute deviation above it


class Spikes:
    """Compares each step with the steps before it.

    By median and median deviation, not mean and variance, so that a spike hides no other.
    """

    def __init__(self) -> None:
        self._recent: dict[str, deque[float]] = {}

    def find(self, **values: float) -> dict[str, float]:
        """Takes note of a step's values, such as ``loss``; what is not finite is left out.

        Returns:
            The medians, by name, of those values that are far above theirs.
        """
        far = {}
        for name, value in values.items():
            if not math.isfinite(value):
                continue
            recent = self._recent.setdefault(name, deque(maxlen=_RECENT))
            if len(recent) >= _LEAST:
                median = statistics.median(recent)
                deviation = statistics.median(abs(each - median) for each in recent)
                if value > max(_FACTOR * median, median + _DEVIATIONS * deviation):
                    far[name] = median
            recent.append(value)
        return far

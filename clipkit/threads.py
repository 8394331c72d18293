"""How OpenMP's threads wait for one another, and what else keeps this machine's cores busy.

PyTorch's threads spin at the end of each operation until the last of them is done. Beside another
busy process that takes the cores from whom they wait for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# GNU OpenMP, in turns of its loop; LLVM's and Intel's, in milliseconds.
BOUNDED = {"GOMP_SPINCOUNT": "4000", "KMP_BLOCKTIME": "1"}
SET_BY_USER = ("OMP_WAIT_POLICY", *BOUNDED)


def bound_spinning() -> None:
    """Has OpenMP's threads sleep after a short while of waiting, for this process and those that it
    starts. What the user has set stays. It takes effect where torch is not imported yet.
    """
    if not any(name in os.environ for name in SET_BY_USER):
        os.environ.update(BOUNDED)


class Load:
    """Measures, from its making on, how many cores other processes keep busy."""

    def __init__(self) -> None:
        self._begin = _times()

    def others(self) -> float:
        """Cores kept busy by others, on average; 0 where this system does not say."""
        begin, now = self._begin, _times()
        if begin is None or now is None or now[0] - begin[0] < 0.1:
            return 0.0
        seconds, busy, own = (after - before for after, before in zip(now, begin, strict=True))
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # they all do the same
        return max(0.0, (busy - ranks * own) / seconds)


def say_busy(load: Load) -> str | None:
    """A sentence where other processes take the cores that this one's threads want."""
    import torch

    others, cores = load.others(), len(_cores())
    if others < 0.5 or torch.get_num_threads() + others < cores + 0.5:
        return None
    return f"other processes keep {others:.1f} of {cores} cores busy, so that training takes longer"


def _times() -> tuple[float, float, float] | None:
    """Seconds: the clock's, busy ones of all cores, and those of this process."""
    try:
        lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines()
        tick = os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return None
    names = {f"cpu{number}" for number in _cores()}
    rows = [line.split() for line in lines]
    # user, nice, system, idle, iowait, irq, softirq, steal
    busy = sum(
        sum(map(int, row[1:9])) - int(row[4]) - int(row[5]) for row in rows if row[0] in names
    )
    own = os.times()
    return time.monotonic(), busy / tick, sum(own[:4])


def _cores() -> set[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))

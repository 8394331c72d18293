"""Signals that ask a run to stop: it stops between two steps, and nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

# Ctrl-C, what launchers and Slurm send before they kill, and what Slurm's --signal can send.
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]


class Stop:
    """Whether this process was asked to stop, and by which signal; 0: it was not."""

    signal = 0


@contextlib.contextmanager
def stop_signals() -> Iterator[Stop]:
    """Notes signals instead of dying of them, while the context lasts.

    Python raises KeyboardInterrupt wherever it happens to be; inside a callback of C code it is
    printed and forgotten. A second Ctrl-C does what it always does, at once.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signal = signum
        if signum == signal.SIGINT:
            signal.signal(signum, before[signum])

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

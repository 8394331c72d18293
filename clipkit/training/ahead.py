"""Batches for a GPU, read and on their way to it while it still computes the step before."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch

from clipkit.errors import ClipkitError
from clipkit.types import Batch


class StepBatches:
    """The batches of each step, in order.

    Args:
        batches: one after the other.
        parts: batches of a step.
        device: where the model is; for a CPU nothing is done ahead.
    """

    def __init__(self, batches: Iterator[Batch], parts: int, device: torch.device) -> None:
        self._batches, self._parts, self._device = batches, parts, device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._next: list[Batch] | ClipkitError | None = None

    def take(self) -> list[Batch]:
        """Those of the next step.

        Raises:
            ClipkitError: they cannot be read.
            StopIteration: there are none.
        """
        ready, self._next = self._next, None
        if isinstance(ready, ClipkitError):
            raise ready
        if ready is None:
            return self._read()
        assert self._stream is not None
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for batch in ready:
            batch.pixel_values.record_stream(current)
        return ready

    def prepare(self) -> float:
        """Reads those of the next step and begins to copy them, while the device computes what it
        was given so far. What goes wrong, ``take`` raises.

        Returns:
            Seconds that the device had nothing left to do meanwhile.
        """
        if self._stream is None:
            return 0.0
        event: Any = torch.cuda.Event
        computed, read = event(enable_timing=True), event(enable_timing=True)
        computed.record(torch.cuda.current_stream(self._device))
        begin = time.perf_counter()
        try:
            batches = self._read()
        except ClipkitError as error:
            self._next = error
            return 0.0
        seconds = time.perf_counter() - begin
        read.record(self._stream)  # which is idle, so this is now
        late = 0.0
        if computed.query():
            read.synchronize()
            late = min(seconds, max(0.0, computed.elapsed_time(read) / 1000))
        with torch.cuda.stream(self._stream):
            self._next = [
                dataclasses.replace(
                    batch,
                    pixel_values=batch.pixel_values.pin_memory().to(
                        self._device, non_blocking=True
                    ),
                )
                for batch in batches
            ]
        return late

    def _read(self) -> list[Batch]:
        return [next(self._batches) for _ in range(self._parts)]

"""How fast a run goes, what it makes use of, and what it waits for."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from clipkit.models import DualEncoder
from clipkit.models.flops import (
    image_flops,
    kept_patches,
    text_flops,
    text_lengths,
    training_factors,
)
from clipkit.training.ceiling import Ceiling
from clipkit.training.distributed import Ranks
from clipkit.types import Batch


class Meter:
    """Measures a window of steps, over all ranks.

    Args:
        model: whose arithmetic is counted.
        ceiling: of one rank's device.
        together: the ranks.
        measure: measures the ceiling again where the run is faster, as it is where another
            process was busy when the ceiling was measured.
    """

    def __init__(
        self,
        model: DualEncoder,
        ceiling: Ceiling,
        together: Ranks,
        measure: Callable[[], Ceiling],
    ) -> None:
        self.model, self.ceiling, self.together = model, ceiling, together
        self.measure = measure
        self.factors = training_factors(model)
        self.restart()

    def restart(self) -> None:
        """Begins a window; what came before it, such as an evaluation, is not counted."""
        self.begin = self.last = time.perf_counter()
        self.waited = self.step_wait = self.starving = 0.0
        self.step_share = 0.0
        self.images = self.tokens = self.flops = 0

    def data_ready(self) -> None:
        """The batch of a step is there."""
        self.step_wait = time.perf_counter() - self.last
        self.waited += self.step_wait
        self.step_wait, self.starving = self.step_wait + self.starving, 0.0

    def starved(self, seconds: float) -> None:
        """The device was done before the batch of the next step was there."""
        self.waited += seconds
        self.starving += seconds

    def step_done(self, parts: Sequence[Batch]) -> None:
        """A step over ``parts`` is done, as far as the CPU is concerned."""
        model, (image_factor, text_factor) = self.model, self.factors
        for part in parts:
            _, _, height, width = part.pixel_values.shape
            patches = kept_patches(model, height, width)
            lengths = text_lengths(model, part.input_ids)
            self.images += len(part.keys)
            self.tokens += int(lengths.sum())
            self.flops += image_factor * len(part.keys) * image_flops(model, patches)
            self.flops += text_factor * text_flops(model, lengths)
        now = time.perf_counter()
        self.step_share = self.step_wait / max(now - self.last, 1e-9)
        self.last = now

    def rates(self) -> dict[str, float]:
        """Of the window, over all ranks, which must all call it: images and text tokens (without
        padding) a second; model FLOP/s of a rank and its share of the ceiling, which is told
        where it had to be raised; the share of time that this rank waited for data; the largest
        memory of a rank so far, in GiB."""
        seconds = max(self.last - self.begin, 1e-9)
        images, tokens, flops = self.together.total(self.images, self.tokens, self.flops)
        rate = flops / self.together.number / seconds
        raised = self._raise_ceiling(rate)
        (memory,) = self.together.most(_peak_memory(self.model.logit_scale.device))
        return {
            "images_per_second": round(images / seconds, 1),
            "tokens_per_second": round(tokens / seconds, 1),
            "tflops": round(rate / 1e12, 4),
            "utilisation": round(rate / self.ceiling.flops_per_second, 4),
            **raised,
            "data_wait": round(self.waited / seconds, 4),
            "memory_gib": round(memory / 2**30, 3),
        }

    def _raise_ceiling(self, rate: float) -> dict[str, float]:
        """No run is faster than its device: a ceiling below ``rate`` was measured too low."""
        if rate <= self.ceiling.flops_per_second:
            return {}
        again = self.measure()
        most = max(rate, again.flops_per_second)
        self.ceiling = again if most > rate else Ceiling(rate, "this run's fastest steps")
        return {"ceiling_tflops": round(most / 1e12, 4)}


def _peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took of a GPU; on a CPU the most that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):  # Linux
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # Not on Linux, where it begins at what the process had that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

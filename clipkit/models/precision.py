"""fp32, bf16 or fp16: the fastest on a device, measured; for training and embedding alike.

The flags of a processor do not tell: PyTorch multiplies bf16 on every CPU, and where the
instructions are missing, or may not be used, 30 times slower than float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

WORTH = 1.2  # times as fast as float32: less is not worth what is rounded
_SECONDS = 0.3  # of a measurement, about
_ROUNDS = 4
_FIRST = 2.5e6  # tokens · width² of the first products: 0.1 s where bf16 is emulated
_WIDEST = 512  # of the layers that are measured
_SLOW = 0.5  # of float32's speed: more tokens do not turn that
_GROWTH = (1, 8, 64, 512)  # times as many tokens: a GPU shows what it can do with many
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# (device, dtype, rows, width) → seconds; see ``product_seconds``.
Timer = Callable[[torch.device, torch.dtype, int, int], float]


@dataclass(frozen=True)
class Choice:
    """A precision and why it was chosen.

    Attributes:
        precision: ``fp32``, ``bf16`` or ``fp16``.
        reason: a few words, for the reader.
        advice: a sentence where another would be faster.
    """

    precision: str
    reason: str = ""
    advice: str = ""

    def __str__(self) -> str:
        reason = f" ({self.reason})" if self.reason else ""
        return f"{self.precision}{reason}"


def fastest_precision(
    device: torch.device, *, width: int = 512, fp16: bool = False, timer: Timer | None = None
) -> Choice:
    """Chooses bf16, else fp16, where matrix products in it are measured to be faster on a device.

    Args:
        device: where the model runs.
        width: of the model's layers.
        fp16: whether fp16 may be chosen; never on a CPU.
        timer: measures a layer's products; default: ``product_seconds``.

    Returns:
        The precision, float32 where none is at least ``WORTH`` times as fast, and the measured
        speeds in words.
    """
    names = ["bf16"] if _computes_bf16(device) else []
    if fp16 and device.type != "cpu":
        names.append("fp16")
    found = []
    for name in names:
        speed = measure_speed(device, name, width=width, timer=timer)
        found.append(f"{name} is measured {say_speed(speed)} here")
        if speed >= WORTH:
            return Choice(name, found[-1])
    return Choice("fp32", ", ".join(found) or f"this {device.type} device has no bf16")


def measure_speed(
    device: torch.device, precision: str, *, width: int = 512, timer: Timer | None = None
) -> float:
    """Measures how many times as fast as float32 a device multiplies matrices of a layer's sizes.

    Both are timed in turns, and the fastest of each counts: a busy neighbour only adds time.

    Args:
        device: where the model runs.
        precision: ``bf16`` or ``fp16``.
        width: of the model's layers.
        timer: measures a layer's products; default: ``product_seconds``.
    """
    timer = timer or product_seconds
    begin, speed, width = time.perf_counter(), 1.0, min(width, _WIDEST)
    first = max(16, round(_FIRST / width**2))
    for growth in _GROWTH:
        best: dict[str, float] = {}
        for number in range(_ROUNDS):
            for name in ("fp32", precision):
                seconds = timer(device, _DTYPES[name], growth * first, width)
                best[name] = min(seconds, best.get(name, seconds))
            speed = best["fp32"] / best[precision]
            if number and speed < _SLOW:
                return speed
        next_round = 8 * _ROUNDS * sum(best.values())  # with eight times as many tokens
        if time.perf_counter() - begin + next_round > _SECONDS:
            break
    return speed


@cache
def is_bf16_fast(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster there than in float32; measured once a process."""
    return fastest_precision(device).precision == "bf16"


def product_seconds(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> float:
    """Seconds of the products of a linear layer, forward and backward.

    On a CPU those that one thread computes: several wait for one another while other processes
    have their cores, which says nothing of the precision.

    Args:
        device: where.
        dtype: of the factors.
        rows: tokens.
        width: of a token; the layer makes it four times as wide.
    """
    x = torch.full((rows, width), 0.5, device=device, dtype=dtype)
    weight = torch.full((4 * width, width), 0.5, device=device, dtype=dtype)

    def multiply() -> None:
        y = x @ weight.T  # (rows, 4 · width)
        y @ weight
        y.T @ x

    if device.type == "cpu":
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            begin = time.thread_time()
            multiply()
            return time.thread_time() - begin
        finally:
            torch.set_num_threads(threads)
    torch.accelerator.synchronize(device)
    begin = time.perf_counter()
    multiply()
    torch.accelerator.synchronize(device)
    return time.perf_counter() - begin


def say_speed(speed: float) -> str:
    """``33 times slower than float32``, ``2.1 times as fast as float32``."""
    if speed >= 1:
        return f"{speed:.1f} times as fast as float32"
    return f"{1 / speed:.2g} times slower than float32"


def _computes_bf16(device: torch.device) -> bool:
    """Whether bf16 is worth measuring: PyTorch emulates it on GPUs that have no units for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return True

"""What a device can do at best, to say which share of it a run makes use of."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

_SECONDS = 0.25  # that measuring may take, about
# Dense matrix products in bf16 or fp16, from NVIDIA's data sheets; the first name that fits.
_KNOWN = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Ceiling:
    """FLOP/s of one device (or of the CPU threads of one rank), and how that is known."""

    flops_per_second: float
    source: str


def find_ceiling(device: torch.device, precision: str) -> Ceiling:
    """The rate of matrix products in the precision of a run: of a known GPU by its data sheet,
    else the best that is measured within a quarter of a second.

    Args:
        device: where the model runs.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """
    if device.type == "cuda" and precision != "fp32":
        name = torch.cuda.get_device_name(device)
        for known, rate in _KNOWN.items():
            if known in name:
                return Ceiling(rate, f"data sheet of {name}, {precision}")
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    rate, size = _measure(device, dtype)
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else device.type
    return Ceiling(rate, f"measured, {size} × {size} matrices in {precision}, {where}")


def _measure(device: torch.device, dtype: torch.dtype) -> tuple[float, int]:
    """(FLOP/s, size of the matrices) of the fastest product of two square matrices."""
    best, best_size = 0.0, 0
    begin = time.perf_counter()
    # Large ones are faster, until memory is what limits; a slow device does not get that far.
    for size in (256, 512, 1024, 2048, 4096, 8192):
        expected = 2 * size**3 / best if best else 0.0
        if time.perf_counter() - begin + 5 * expected > _SECONDS:
            break
        # Values do not matter for the rate.
        a = torch.ones(size, size, device=device, dtype=dtype)
        out = a @ a  # the first makes ready
        for _ in range(5):
            _wait(device)
            start = time.perf_counter()
            torch.mm(a, a, out=out)
            _wait(device)
            rate = 2 * size**3 / (time.perf_counter() - start)
            if rate > best:
                best, best_size = rate, size
    return best, best_size


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)

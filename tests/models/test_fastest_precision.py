"""The fastest precision, from measured products."""

from __future__ import annotations

import itertools

import pytest
import torch

from clipkit.models.precision import (
    WORTH,
    Timer,
    fastest_precision,
    is_bf16_fast,
    measure_speed,
)

CPU, GPU, MAC = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def timer(**seconds: float) -> Timer:
    """Each product takes so many seconds, by its precision."""
    return lambda device, dtype, rows, width: seconds[NAMES[dtype]]


@pytest.mark.parametrize(
    ("bf16", "expected", "words"),
    [
        (0.5, "bf16", "2.0 times as fast as float32"),
        (34.0, "fp32", "34 times slower than float32"),
        (1.0, "fp32", "1.0 times as fast as float32"),
        (0.99 / WORTH, "bf16", "1.2 times as fast as float32"),
        (1.01 / WORTH, "fp32", "1.2 times as fast as float32"),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(bf16: float, expected: str, words: str) -> None:
    choice = fastest_precision(CPU, timer=timer(fp32=1.0, bf16=bf16))
    assert choice.precision == expected
    assert choice.reason == f"bf16 is measured {words} here"


def test_a_busy_neighbour_does_not_decide() -> None:
    """Most products are stopped for 20 times as long as they take, by turns in either precision."""
    stops = itertools.cycle([20, 20, 20, 1, 1, 20, 20])

    def busy(device: torch.device, dtype: torch.dtype, rows: int, width: int) -> float:
        return (1.0 if dtype == torch.float32 else 0.5) * 1e-3 * next(stops)

    assert fastest_precision(CPU, timer=busy).precision == "bf16"


def test_fp16_is_chosen_where_bf16_is_not_faster_and_gradients_are_scaled() -> None:
    slow = timer(fp32=1.0, bf16=2.0, fp16=0.4)
    assert fastest_precision(MAC, fp16=True, timer=slow).precision == "fp16"
    assert fastest_precision(MAC, timer=slow).precision == "fp32"
    assert fastest_precision(CPU, fp16=True, timer=slow).precision == "fp32"


def test_emulated_bf16_of_a_gpu_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert fastest_precision(GPU, fp16=True, timer=timer(fp32=1.0, fp16=0.3)).precision == "fp16"
    assert fastest_precision(GPU, fp16=True, timer=timer(fp32=1.0, fp16=0.9)).precision == "fp32"
    assert fastest_precision(GPU, timer=timer()).precision == "fp32"


def test_this_machine_is_measured_as_its_products_are() -> None:
    """Far from the border both must agree; near it the choice is free."""
    speed = measure_speed(CPU, "bf16")
    if speed < 0.8 or speed > 1.6:
        assert is_bf16_fast(CPU) == (speed > 1)

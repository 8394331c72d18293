"""kill -9 at random moments, in steps, saves and evaluations: the end is an uninterrupted run's.

The long form (CLIPKIT_MATRIX=full, by scripts/test_long.sh) kills 42 times.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from test_kills import Started
from test_run import losses, weights, write_config

FULL = os.environ.get("CLIPKIT_MATRIX") == "full"
STEPS = 60 if FULL else 40
CELLS = [(1, "ddp"), (2, "ddp"), (2, "fsdp")] if FULL else [(1, "ddp")]


def config(folder: Path, how: str, ranks: int) -> Path:
    dropout: dict[str, Any] = {}
    if ranks > 1:
        dropout = {"model__vision__dropout": 0.0, "model__text__dropout": 0.0}
    return write_config(
        folder, train__steps=STEPS, train__save_every=4, train__distributed=how,
        eval={"every": 6}, **dropout,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "how"), CELLS)
def test_the_end_after_random_kills_is_that_of_an_uninterrupted_run(
    clipkit: Run, tmp_path: Path, ranks: int, how: str
) -> None:
    whole = clipkit(
        "train", config(tmp_path / "whole", how, ranks), ranks=ranks if ranks > 1 else 0
    )
    assert whole.returncode == 0, whole.stderr
    path = config(tmp_path / "killed", how, ranks)
    draw = random.Random(f"{ranks} {how}")
    targets = sorted(draw.sample(range(2, STEPS - 4), 14 if FULL else 2))
    for target in targets:
        run = Started(path, ranks)
        before = latest(run.run)
        metrics = run.run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        # What an earlier start wrote of later steps is dropped before that line is said.
        while (step := begun_at(run)) is None or f'"step": {target},' not in metrics.read_text():
            assert run.process.poll() is None, run.said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        # Later than ``latest`` where the kill came between a checkpoint and that.
        assert step >= before
        time.sleep(draw.random() * 0.1)
        # The launcher too: torchrun's ranks have sessions of their own.
        for process in [run.process.pid, *(run.trainers() if ranks > 1 else [])]:
            os.kill(process, signal.SIGKILL)
        run.process.wait()
        time.sleep(0.3)
        assert not run.left()
        assert latest(run.run) >= before
    last = clipkit("train", path, ranks=ranks if ranks > 1 else 0)
    assert last.returncode == 0, last.stderr
    a, b = losses(tmp_path / "whole" / "run"), losses(tmp_path / "killed" / "run")
    first, second = weights(tmp_path / "whole" / "run"), weights(tmp_path / "killed" / "run")
    assert a.keys() == b.keys()
    if ranks == 1:
        assert a == b
        assert all(torch.equal(first[name], second[name]) for name in first)
        return
    for step in a:
        assert float.fromhex(a[step]) == pytest.approx(float.fromhex(b[step]), rel=1e-4)
    for name in first:
        torch.testing.assert_close(second[name], first[name], rtol=1e-3, atol=2e-4)


def begun_at(run: Started) -> int | None:
    """The step that a run began at; None before it says so."""
    said = run.said.read_text()
    if "from scratch" in said:
        return 0
    found = re.search(r"going on from step (\d+)\n", said)
    return int(found[1]) if found else None


def latest(run: Path) -> int:
    path = run / "checkpoints" / "latest"
    return int(path.read_text().strip().removeprefix("step-")) if path.exists() else 0

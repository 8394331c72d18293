"""What a run shows and records: a progress bar or plain lines, metrics.jsonl, trackers."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from tqdm import tqdm

from clipkit.atomic import write_json, write_text
from clipkit.display.console import bar_size
from clipkit.errors import ConfigError
from clipkit.evaluation.report import read_metrics


def check_trackers(names: Sequence[str]) -> None:
    """Refuses what accelerate would fail on, or leave out in silence.

    Raises:
        ConfigError: no such tracker, or its package is not installed.
    """
    known, installed = LoggerType.list(), [str(name) for name in get_available_trackers()]
    for name in names:
        if name not in known:
            raise ConfigError(f"train.trackers: {name}; accelerate knows {', '.join(known)}")
        if name != "all" and name not in installed:
            raise ConfigError(f"train.trackers: {name} is not installed; pip install {name}")


class Clock:
    """Times a window of steps: images a second, and the share spent waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begins a window; what came before it, such as an evaluation, is not counted."""
        self.begin = self.last = time.perf_counter()
        self.waited = 0.0
        self.steps = 0

    def data_ready(self) -> None:
        self.waited += time.perf_counter() - self.last

    def step_done(self) -> None:
        self.steps += 1
        self.last = time.perf_counter()

    def images_per_second(self, batch_size: int) -> float:
        return round(self.steps * batch_size / max(self.last - self.begin, 1e-9), 1)

    def data_wait(self) -> float:
        return round(self.waited / max(self.last - self.begin, 1e-9), 4)


class RunLog:
    """Writes on the main process; on the others every call does nothing.

    Args:
        folder: the run's.
        accelerator: its trackers get the same numbers as metrics.jsonl.
        start_step: records of later steps, from a run that was killed, are dropped.
        total_steps: for the progress bar and the ETA.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, *, start_step: int, total_steps: int
    ) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.start_step, self.total_steps = start_step, total_steps
        self.main = accelerator.is_main_process
        self.started = time.perf_counter()
        self.bar: Any = None
        if not self.main:
            return
        path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(path) if r["step"] <= start_step]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self.file = path.open("a", encoding="utf-8")
        if sys.stderr.isatty():
            self.bar = tqdm(
                total=total_steps, initial=start_step, unit="step", desc="train",
                file=sys.stderr, **bar_size(),
            )  # fmt: skip

    def say(self, line: str) -> None:
        """A line for the reader, above the progress bar."""
        if not self.main:
            return
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def advance(self, step: int) -> None:
        """Moves the bar to ``step`` steps done."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def train(self, record: dict[str, Any]) -> None:
        """One record of training; see ``loop.py`` for its keys."""
        self._write({"kind": "train", **record})
        if not self.main:
            return
        step = record["step"]
        short = (
            f"loss {record['loss']:.3f}  scale {record['scale']:.1f}  lr {record['lr']:.1e}  "
            f"{record['images_per_second']:.0f} img/s  data {record['data_wait']:.0%}"
        )
        if record["skipped"]:
            short += f"  skipped {record['skipped']}"
        if self.bar is not None:
            self.bar.set_postfix_str(short)
        else:
            done = step - self.start_step
            left = (time.perf_counter() - self.started) / done * (self.total_steps - step)
            self.say(f"step {step}/{self.total_steps}  {short}  eta {_clock(left)}")

    def evaluation(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """One record of evaluation on a named split."""
        self._write({"kind": "eval", "step": step, "split": split, **metrics})
        recalls = "  ".join(
            f"{short} R@1 {metrics[f'{way}_R@1']:.3f} R@5 {metrics[f'{way}_R@5']:.3f}"
            for way, short in (("text_to_image", "text→image"), ("image_to_text", "image→text"))
        )
        self.say(f"step {step}  {split}: {recalls}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.main:
            self.file.close()
        self.accelerator.end_training()

    def _write(self, record: dict[str, Any]) -> None:
        if self.main:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        prefix = record.get("split", "train")
        numbers = {
            f"{prefix}/{key}": value
            for key, value in record.items()
            if isinstance(value, int | float) and key != "step"
        }
        self.accelerator.log(numbers, step=record["step"])


def write_status(folder: Path, state: str, exit_code: int | None, **facts: Any) -> None:
    """``status.json``: what the exit code says, where a launcher hides it.

    Args:
        folder: the run's.
        state: running, done, failed or preempted.
        exit_code: None while running.
        facts: step, total_steps, message …
    """
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    write_json(folder / "status.json", {"state": state, "exit_code": exit_code, **facts, **owner})


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

"""What a run shows and records: a progress bar or plain lines, metrics.jsonl, trackers."""

from __future__ import annotations

import json
import os
import socket
import sys
import textwrap
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
from clipkit.evaluation.report import read_metrics, split_name
from clipkit.evaluation.results import TaskResult
from clipkit.training.ceiling import Ceiling

WIDTH = 100  # columns that no line is wider than, but for a path that is
_BAR = 44  # of them, that the bar takes beside its text


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


class RunLog:
    """Writes on the main process; on the others every call does nothing.

    Args:
        folder: the run's.
        accelerator: its trackers get the same numbers as metrics.jsonl.
        start_step: records of later steps, from a run that was killed, are dropped.
        total_steps: for the progress bar and the ETA.
        evaluations: how many records the evaluation of ``start_step`` has; 0 where none is due.
            Where there are fewer, it was cut short, and they are dropped; at the last step it is
            made again anyway.

    Attributes:
        evaluated: whether there is a whole evaluation of ``start_step``; on the main process.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        start_step: int,
        total_steps: int,
        evaluations: int,
    ) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.start_step, self.total_steps = start_step, total_steps
        self.main = accelerator.is_main_process
        self.started = time.perf_counter()
        self.bar: Any = None
        self.evaluated = True
        if not self.main:
            return
        path = folder / "metrics.jsonl"
        kept = [r for r in read_metrics(path) if r["step"] <= start_step]
        there = [r for r in kept if r["step"] == start_step and r.get("kind") in ("eval", "task")]
        self.evaluated = len(there) >= evaluations and start_step < total_steps
        if not self.evaluated:
            kept = [r for r in kept if r not in there]
        write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self.file = path.open("a", encoding="utf-8")
        self.spike = -1  # the last step that was one
        if sys.stderr.isatty():
            room = bar_size()
            room["ncols"] = min(room["ncols"], WIDTH)
            self.bar = tqdm(
                total=total_steps,
                initial=start_step,
                bar_format="train {n_fmt}/{total_fmt} |{bar}| {desc}eta {remaining}",
                file=sys.stderr,
                **room,
            )

    def say(self, line: str) -> None:
        """A line for the reader, above the progress bar; more than one where it is long."""
        if not self.main:
            return
        line = textwrap.fill(
            line, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def advance(self, step: int) -> None:
        """Moves the bar to ``step`` steps done."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def begin(self, ceiling: Ceiling, **facts: Any) -> None:
        """One record of what a start runs on; the ceiling is what ``utilisation`` is a share of."""
        rate = round(ceiling.flops_per_second / 1e12, 4)
        peak = {"ceiling_tflops": rate, "ceiling_source": ceiling.source}
        self._write({"kind": "start", "step": self.start_step, **peak, **facts})

    def train(self, record: dict[str, Any]) -> None:
        """One record of training; see ``loop.py`` and ``meter.py`` for its keys."""
        self._write({"kind": "train", **record})
        if not self.main:
            return
        step = record["step"]
        done = step - self.start_step
        left = (time.perf_counter() - self.started) / done * (self.total_steps - step)
        shown = {
            "step": f"step {step}/{self.total_steps}",
            "loss": f"loss {record['loss']:.3f}",
            "scale": f"scale {record['scale']:.1f}",
            "lr": f"lr {record['lr']:.1e}",
            "speed": f"{record['images_per_second']:.0f} img/s",
            "utilisation": f"MFU {record['utilisation']:.0%}",
            "wait": f"data {record['data_wait']:.0%}",
            "skipped": f"skipped {record['skipped']}" if record["skipped"] else "",
            "eta": f"eta {_clock(left)}",
        }
        if self.bar is not None:
            del shown["step"], shown["eta"]  # the bar has its own
            self.bar.set_description_str(_fit(shown, self.bar.ncols - _BAR) + "  ")
        else:
            self.say(_fit(shown, WIDTH))

    def spiked(self, step: int, values: dict[str, float], medians: dict[str, float]) -> None:
        """One record of a step that stands out; only the first of several in a row is said.

        Args:
            step: how many are done with it.
            values: ``loss`` (of the main process's share), ``grad_norm``, ``data_wait``.
            medians: of the steps before, of what stands out.
        """
        before = {f"median_{name}": value for name, value in medians.items()}
        self._write({"kind": "spike", "step": step, **values, **before})
        if self.spike != step - 1:
            told = ", ".join(
                f"{name.replace('grad_norm', 'gradient norm')} {values[name]:.3g}"
                + (f" (median of recent steps {medians[name]:.3g})" if name in medians else "")
                for name in ("loss", "grad_norm")
            )
            self.say(f"step {step}: spike: {told}, waited for data {values['data_wait']:.0%}")
        self.spike = step

    def evaluation(
        self, step: int, split: str, metrics: dict[str, float], *, ema: bool = False
    ) -> None:
        """One record of evaluation on a named split, of the weights or of their average."""
        about = {"step": step, "split": split, **({"ema": True} if ema else {})}
        self._write({"kind": "eval", **about, **metrics})
        recalls = "  ".join(
            " ".join([short, *(f"R@{k} {metrics[f'{way}_R@{k}']:.3f}" for k in ks)])
            for way, short in (("text_to_image", "text→image"), ("image_to_text", "image→text"))
            if (ks := [k for k in (1, 5) if f"{way}_R@{k}" in metrics])
        )
        counts = f"{metrics['num_images']:,.0f} images, {metrics['num_texts']:,.0f} texts"
        self.say(f"step {step}  {split_name(about)}: {recalls or 'no recall'} ({counts})")

    def task(
        self, step: int, suite: str, result: TaskResult, line: str, *, ema: bool = False
    ) -> None:
        """One record of a suite's task, of the weights or of their average; ``line`` is said."""
        about = {
            "step": step,
            "suite": suite,
            "task": result.name,
            **({"ema": True} if ema else {}),
        }
        self._write({"kind": "task", **about, **result.metrics})
        self.say(f"step {step}  {suite}{' (EMA)' if ema else ''}: {line}")

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
        prefix = split_name(record) if "split" in record else "train"
        if "task" in record:
            prefix = f"{record['suite']}/{record['task']}{' (EMA)' if record.get('ema') else ''}"
        numbers = {
            f"{prefix}/{key}": value
            for key, value in record.items()
            if isinstance(value, int | float) and key not in ("step", "ema")
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


def _fit(shown: dict[str, str], width: int) -> str:
    """All that is shown in one line; what matters least goes where there is no room."""
    left = {name: text for name, text in shown.items() if text}
    for name in ("scale", "lr", "utilisation", "wait", "speed", "eta"):
        if len("  ".join(left.values())) > width:
            left.pop(name, None)
    return "  ".join(left.values())

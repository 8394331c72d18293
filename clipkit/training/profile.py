"""Config → where the time of a step goes: ``clipkit train --profile``."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from clipkit.config import Config
from clipkit.data import build_train_loader
from clipkit.training.ahead import StepBatches
from clipkit.training.build import wrap_model
from clipkit.training.distributed import clip_gradients
from clipkit.training.optim import build_optimizer
from clipkit.training.start import begin
from clipkit.training.step import TrainStep

# Steps: to warm up, to time as they are, to time part by part, to trace.
_WARM, _PLAIN, _WATCHED, _TRACED = 3, 5, 5, 2
_ORDER = (
    "waiting for data",
    "copy to device",
    "image tower, forward",
    "text tower, forward",
    "loss",
    "backward",
    "all-reduce of gradients",
    "clipping",
    "optimizer",
    "other",
)


def profile_run(config: Config) -> str | None:
    """Trains for some steps at a learning rate of 0, and times the parts of a step.

    A trace for chrome://tracing or https://ui.perfetto.dev is written to ``output/profile``;
    nothing else of the run's folder changes, and it may be in use.

    Returns:
        A table of the main process; None on other ranks.

    Raises:
        ClipkitError: whatever would stop the run at its start.
    """
    begun = begin(config)
    config, accelerator, parts = begun.config, begun.accelerator, begun.parts
    device, ranks = accelerator.device, accelerator.num_processes
    tokenizer, model, _ = begun.build(Path(config.output), keep=False)
    own = Path(config.output) / "profile"
    own.mkdir(parents=True, exist_ok=True)
    wrapped = wrap_model(model, accelerator, config)
    optimizer = build_optimizer(model.parameters_by_depth(), config.optim, config.train.precision)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # the same work, and nothing diverges
    wrapped_optimizer = accelerator.prepare_optimizer(optimizer)
    loader = build_train_loader(
        begun.reader,
        config.data,
        config.preprocess,
        tokenizer,
        seed=config.seed,
        batch_size=config.train.batch_size // parts,
        start_step=0,
        steps=(_WARM + _PLAIN + _WATCHED + _TRACED) * parts,
        rank=accelerator.process_index,
        world_size=ranks,
    )
    batches = StepBatches(iter(loader), parts, device)
    train_step = TrainStep(wrapped, model, accelerator, config)
    watch = _Watch(device)
    wrapped.train()

    def steps(count: int) -> float:
        """Seconds of a step, of ``count`` steps."""
        _wait(device)
        begin = time.perf_counter()
        for _ in range(count):
            with watch("waiting for data"):
                batch = batches.take()
            valid = all(bool(part.valid.all()) for part in batch)
            train_step.gradients(batch, all_valid=valid)
            if not watch.on:
                batches.prepare()
            with watch("clipping"):
                if accelerator.scaler is not None:
                    accelerator.unscale_gradients(optimizer)
                float(clip_gradients(model, config.optim.grad_clip)["all"])
            with watch("optimizer"):
                wrapped_optimizer.step()
                model.clamp_scale(config.loss.max_scale)
                wrapped_optimizer.zero_grad(set_to_none=True)
        _wait(device)
        return (time.perf_counter() - begin) / count

    steps(_WARM)
    plain = steps(_PLAIN)
    _watch_parts(watch, train_step)
    steps(1)  # the first time that gradients are averaged another way
    watch.seconds.clear()
    watch.on = True
    watched = steps(_WATCHED - 1)
    watch.tracing = True
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    seconds = {name: each / (_WATCHED - 1) for name, each in watch.seconds.items()}
    with profile(activities=activities) as trace:
        steps(_TRACED)
    loader.close()
    name = "trace.json" if ranks == 1 else f"trace-rank-{accelerator.process_index}.json"
    trace.export_chrome_trace(str(own / name))
    seconds["other"] = watched - sum(seconds.values())
    if not accelerator.is_main_process:
        return None
    table = _table(seconds, plain, watched, _collectives(trace), own / name)
    return "\n".join([table, f"precision: {begun.precision}", begun.precision.advice]).rstrip()


class _Watch:
    """Adds up the seconds of named parts. What is within another does not count for that."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on = self.tracing = False
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._last = 0.0

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        with record_function(name) if self.tracing else contextlib.nullcontext():
            self._turn(name)
            try:
                yield
            finally:
                self._turn(None)

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, timed."""

        @functools.wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self(name):
                return call(*args, **kwargs)

        return timed

    def _turn(self, name: str | None) -> None:
        """What was open until now gets its time; ``name`` is opened, or the last one closed."""
        _wait(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        if name is None:
            self._open.pop()
        else:
            self._open.append(name)
        self._last = now


def _watch_parts(watch: _Watch, step: TrainStep) -> None:
    """Times what a step calls, from here, so that a run that is not profiled has no part in it."""
    model, wrapped, accelerator = step.model, step.wrapped, step.accelerator
    for owner, method, name in (
        (step, "_inputs", "copy to device"),
        (model, "_embed_images", "image tower, forward"),
        (model, "_embed_texts", "text tower, forward"),
        (step, "_loss", "loss"),
        (accelerator, "backward", "backward"),
    ):
        setattr(owner, method, watch.around(name, getattr(owner, method)))
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        # A lambda, because torch reads annotations, and not those that are strings.
        wrapped.register_comm_hook(watch, lambda state, bucket: _average(state, bucket))


def _average(watch: _Watch, bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's mean of gradients, waited for."""
    with watch("all-reduce of gradients"):
        buffer = bucket.buffer().div_(dist.get_world_size())
        dist.all_reduce(buffer)
        _wait(buffer.device)
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(buffer)
    return done


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _collectives(trace: profile) -> dict[str, float]:
    """Seconds a step of what ranks do together, by name, overlapping with other work or not."""
    return {
        event.key.split(":")[1]: max(event.cpu_time_total, event.device_time_total) / _TRACED / 1e6
        for event in trace.key_averages()
        if event.key.startswith(("gloo:", "nccl:"))
    }


def _table(
    seconds: dict[str, float],
    plain: float,
    watched: float,
    collectives: dict[str, float],
    trace: Path,
) -> str:
    lines = [f"{'part of a step':<26}{'ms':>10}{'share':>8}"]
    for name in _ORDER:
        if name in seconds:
            each = seconds[name]
            lines.append(f"{name:<26}{1000 * each:>10.1f}{each / watched:>8.1%}")
    lines += [
        f"{'a step':<26}{1000 * watched:>10.1f}{1:>8.0%}",
        "",
        f"Without a wait for each part, a step takes {1000 * plain:.1f} ms.",
    ]
    if collectives:
        told = ", ".join(f"{name} {1000 * each:.1f} ms" for name, each in collectives.items())
        lines.append(f"Collectives of a step, within or beside these: {told}")
    lines.append(f"trace, for https://ui.perfetto.dev: {trace}")
    return "\n".join(lines)

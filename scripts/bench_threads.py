"""The demo's images a second by how threads wait for one another, alone and beside busy processes.

    python scripts/bench_threads.py
    python scripts/bench_threads.py --spins 1000 3000 10000 30000 100000

Each way is a process of its own that takes the demo's own steps; they are asked in turns, so that
what else the machine does meets all of them alike. ``default`` is what GNU OpenMP does of itself,
``passive`` sleeps at once (OMP_WAIT_POLICY), ``clipkit`` is what ``clipkit train`` sets, and
``--spins`` tries others (GOMP_SPINCOUNT). Medians; the last line is clipkit's share of the best.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from clipkit.threads import BOUNDED, SET_BY_USER

ROOT = Path(__file__).resolve().parent.parent
_WAYS: dict[str, dict[str, str]] = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "clipkit": BOUNDED,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--busy", type=int, default=1, help="processes beside which it is measured")
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="of GOMP_SPINCOUNT")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of configs/emoji.yaml")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.threads, args.overrides)
    from machine import machine

    print(f"{machine('torch')}, the demo with {' '.join(args.overrides) or 'its own config'}\n")
    ways = _WAYS | {f"{count:,} spins": {"GOMP_SPINCOUNT": str(count)} for count in args.spins}
    workers = {name: start(way, args) for name, way in ways.items()}
    for worker in workers.values():
        ask(worker, 0.1)
    rates: dict[bool, dict[str, list[float]]] = {
        busy: {name: [] for name in workers} for busy in (False, True)
    }
    for _ in range(args.rounds):
        for busy, found in rates.items():
            beside = [spin() for _ in range(args.busy if busy else 0)]
            for name, worker in workers.items():
                found[name].append(ask(worker, args.seconds))
            for process in beside:
                process.kill()
                process.wait()
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    print(f"| images a second | alone | beside {args.busy} busy |\n|---|---|---|")
    medians = {
        busy: {name: statistics.median(each) for name, each in found.items()}
        for busy, found in rates.items()
    }
    for name in workers:
        print(f"| {name} | {medians[False][name]:.1f} | {medians[True][name]:.1f} |")
    shares = [
        found["clipkit"] / max(found["default"], found["passive"]) for found in medians.values()
    ]
    print(
        f"\nclipkit's share of the better of default and passive: {shares[0]:.0%} alone, "
        f"{shares[1]:.0%} beside"
    )


def start(way: dict[str, str], args: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that takes steps when it is asked."""
    environment = {key: value for key, value in os.environ.items() if key not in SET_BY_USER}
    environment |= {**way, "OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, __file__, "--worker", "--threads", str(args.threads)]
    worker = subprocess.Popen(
        [*command, *args.overrides], env=environment, cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return worker


def spin() -> subprocess.Popen[bytes]:
    """A busy process of one thread."""
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def ask(worker: subprocess.Popen[str], seconds: float) -> float:
    """Images a second."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(f"{seconds}\n")
    worker.stdin.flush()
    return float(json.loads(worker.stdout.readline()))


def work(threads: int, overrides: list[str]) -> None:
    """Takes steps for as many seconds as each line of standard input says."""
    import torch

    from clipkit.config import load_config
    from clipkit.data import build_train_loader
    from clipkit.training.ahead import StepBatches
    from clipkit.training.distributed import clip_gradients
    from clipkit.training.optim import build_optimizer
    from clipkit.training.start import begin
    from clipkit.training.step import TrainStep

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        config = load_config("configs/emoji.yaml", [*overrides, f"output={folder}/run"])
        begun = begin(config)
        tokenizer, model, _ = begun.build(Path(config.output), keep=False)
        loader = build_train_loader(
            begun.reader, begun.config.data, begun.config.preprocess, tokenizer, seed=0,
            batch_size=begun.config.train.batch_size, start_step=0, steps=10**6,
        )  # fmt: skip
        batches = StepBatches(iter(loader), 1, begun.accelerator.device)
        step = TrainStep(model, model, begun.accelerator, begun.config)
        optimizer: Any = build_optimizer(
            model.named_parameters(), begun.config.optim, begun.config.train.precision
        )
        model.train()
        for line in sys.stdin:
            begin_time, count = time.perf_counter(), 0
            while True:
                batch = batches.take()
                step.gradients(batch, all_valid=True)
                clip_gradients(model, 1.0)
                batches.prepare()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                count += sum(len(part.keys) for part in batch)
                seconds = time.perf_counter() - begin_time
                if seconds >= float(line):
                    break
            print(json.dumps(count / seconds), flush=True)


if __name__ == "__main__":
    main()

"""Time, memory and error of the loss, forward and backward, beside open_clip's.

    python -m venv /tmp/open_clip && /tmp/open_clip/bin/pip install open_clip_torch
    python scripts/bench_loss.py --open-clip-python /tmp/open_clip/bin/python

Both run in turns on the same pairs: random directions of 512 dimensions, a pair's cosine about
0.7. Their median times are compared. Memory is the growth of the process's peak, gradients
included. Errors are of the loss against float64, mean over the scales 1 to 100, and relative
to those of plain float32 with the whole matrix.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

DIM = 512
SCALES = (1.0, 3.0, 10.0, 14.3, 30.0, 60.0, 100.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--open-clip-python", help="an interpreter that has open_clip")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--most-peer", type=int, default=16384, help="open_clip's largest N")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker", choices=("clipkit", "open_clip"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.threads)
    workers = {"clipkit": start(sys.executable, "clipkit", args.threads)}
    if args.open_clip_python:
        workers["open_clip"] = start(args.open_clip_python, "open_clip", args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, N × {DIM}\n")
    print("| N | matmuls | clipkit s | open_clip s | ratio | clipkit MiB | open_clip MiB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    ratios: dict[tuple[int, str], tuple[float, float]] = {}
    for size in args.sizes:
        for kind in ("fp32", "bf16"):
            results: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
            for _ in range(args.rounds):
                for name, worker in workers.items():
                    if name == "clipkit" or size <= args.most_peer:
                        results[name].append(ask(worker, {"size": size, "kind": kind}))
            seconds = {n: statistics.median(x["s"] for x in r) for n, r in results.items() if r}
            memory = {n: max(x["mib"] for x in r) for n, r in results.items() if r}
            row = [str(size), kind, f"{seconds['clipkit']:.2f}"]
            if "open_clip" in seconds:
                fast = seconds["open_clip"] / seconds["clipkit"]
                small = memory["open_clip"] / memory["clipkit"]
                ratios[size, kind] = fast, small
                row += [f"{seconds['open_clip']:.2f}", f"{fast:.2f}", f"{memory['clipkit']:.0f}"]
                row += [f"{memory['open_clip']:.0f}", f"{small:.0f}"]
            else:
                row += ["–", "–", f"{memory['clipkit']:.0f}", "–", "–"]
            print(f"| {' | '.join(row)} |", flush=True)
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    print(f"\n{errors()}")
    for (size, kind), (fast, small) in ratios.items():
        if size == max(n for n, _ in ratios):
            print(f"N = {size}, {kind}: {fast:.2f} × as fast as open_clip, 1/{small:.0f} of memory")


def start(python: str, name: str, threads: int) -> subprocess.Popen[str]:
    command = [python, __file__, "--worker", name, "--threads", str(threads)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(json.dumps(question) + "\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer


def work(name: str, threads: int) -> None:
    """Answers each question on standard input with the seconds and MiB of one step."""
    torch.set_num_threads(threads)
    loss = clipkit_loss() if name == "clipkit" else open_clip_loss()
    step(loss, *make_pairs(512), "fp32")
    step(loss, *make_pairs(512), "bf16")
    for line in sys.stdin:
        question = json.loads(line)
        images, texts = make_pairs(question["size"])
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
        before = memory("VmRSS")
        begin = time.perf_counter()
        step(loss, images, texts, question["kind"])
        seconds = time.perf_counter() - begin
        print(json.dumps({"s": seconds, "mib": memory("VmHWM") - before}), flush=True)


def step(loss: Any, images: torch.Tensor, texts: torch.Tensor, kind: str) -> None:
    scale = torch.tensor(14.3, requires_grad=True)
    loss(images.requires_grad_(), texts.requires_grad_(), scale, kind).backward()
    assert images.grad is not None
    assert scale.grad is not None
    images.grad = texts.grad = None


def clipkit_loss() -> Any:
    from clipkit.losses import contrastive_loss

    return lambda images, texts, scale, kind: contrastive_loss(
        images, texts, scale, bf16_matmul=kind == "bf16"
    )


def open_clip_loss() -> Any:
    from open_clip.loss import ClipLoss

    full = ClipLoss()

    def loss(images: Any, texts: Any, scale: Any, kind: str) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
            return full(images, texts, scale)

    return loss


def errors() -> str:
    """Of float32, against float64, beside those of the whole matrix."""
    ours = plain = worst = 0.0
    loss = clipkit_loss()
    for seed, scale in enumerate(SCALES * 4):
        images, texts = make_pairs(4096, seed)
        s = torch.tensor(scale)
        exact = whole(images.double(), texts.double(), s.double())
        error = abs(float(loss(images, texts, s, "fp32")) - exact)
        other = abs(whole(images, texts, s) - exact)
        ours, plain, worst = ours + error, plain + other, max(worst, error / max(exact, 1e-9))
    return (
        f"error against float64, N = 4096, 28 batches: {ours / 28:.1e} of clipkit, "
        f"{plain / 28:.1e} of the whole matrix in float32, {ours / plain:.2f} of it"
    )


def whole(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> float:
    logits = scale * images @ texts.T
    labels = torch.arange(len(images))
    cross_entropy = torch.nn.functional.cross_entropy
    return float((cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2)


def make_pairs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, DIM, generator=generator)
    texts = images + torch.randn(count, DIM, generator=generator)
    normalize = torch.nn.functional.normalize
    return normalize(images, dim=-1), normalize(texts, dim=-1)


def memory(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise ValueError(key)


if __name__ == "__main__":
    main()

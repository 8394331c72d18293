"""The memory that ``clipkit train --dry-run`` expects, beside that of real runs.

    python scripts/plan_report.py > scripts/results/plan_report.md

Each run takes two steps on data/emoji, on one CPU thread; its memory is the peak of the process
before the first checkpoint, less that of a run of next to nothing, which is what libraries take.
Of batches that data/emoji is too small for, it is written several times, under other keys. Runs are
measured twice: as they are, and with an allocator that gives back at once what is freed
and few kernels kept by oneDNN (the two environment variables below). The second is the memory of
tensors, which is what is estimated, and what ``torch.cuda.max_memory_allocated`` tells on a GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml
from machine import machine

ROOT = Path(__file__).resolve().parent.parent
TENSORS_ONLY = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8",
    "LRU_CACHE_CAPACITY": "8",
}
WITHIN = 0.15

NOTHING = {
    "preprocess": {"image_size": 32, "context_length": 64, "vocab_size": 2048},
    "model": {
        "embed_dim": 32,
        "vision": {"width": 64, "layers": 1, "patch_size": 16},
        "text": {"width": 64, "layers": 1},
    },
    "train": {"batch_size": 8, "precision": "bf16"},
}
SMALL = {
    "preprocess": {"image_size": 112, "context_length": 64, "vocab_size": 2048},
    "model": {
        "embed_dim": 256,
        "vision": {"width": 384, "layers": 6, "patch_size": 16},
        "text": {"width": 256, "layers": 6},
    },
    "train": {"batch_size": 256, "precision": "bf16"},
}
_DEMO = yaml.safe_load((ROOT / "configs/emoji.yaml").read_text(encoding="utf-8"))
EMOJI = {
    **{key: _DEMO[key] for key in ("preprocess", "model")},
    "train": {"batch_size": 256, "precision": "bf16"},
}
BASE = {
    "preprocess": {"image_size": 224, "context_length": 64, "vocab_size": 4096},
    "model": {
        "embed_dim": 512,
        "vision": {"width": 768, "layers": 12, "patch_size": 32},
        "text": {"width": 512, "layers": 12},
    },
    "train": {"batch_size": 32, "precision": "bf16"},
}
CASES = {
    "small, bf16, 256": (SMALL, {}),
    "small, bf16, 512": (SMALL, {"train.batch_size": 512}),
    "small, fp32, 256": (SMALL, {"train.precision": "fp32"}),
    "small, bf16, 512, half the patches": (
        SMALL,
        {"train.batch_size": 512, "model.vision.patch_dropout": 0.5},
    ),
    "small, bf16, 512, in parts of 128": (
        SMALL,
        {"train.batch_size": 512, "train.micro_batch": 128},
    ),
    "small, bf16, 1024, activations computed twice": (
        SMALL,
        {"train.batch_size": 1024, "train.activation_checkpointing": True},
    ),
    "emoji, bf16, 256": (EMOJI, {}),
    "emoji, bf16, 1,024, in parts of 256": (
        EMOJI,
        {"train.batch_size": 1024, "train.micro_batch": 256},
    ),
    "emoji, bf16, 16,384, in parts of 256": (
        EMOJI,
        {"train.batch_size": 16_384, "train.micro_batch": 256},
    ),
    "ViT-B/32, bf16, 64": (BASE, {"train.batch_size": 64}),
    "ViT-B/32, fp32, 32": (BASE, {"train.precision": "fp32"}),
    "ViT-B/32, bf16, 32, Muon, moving average": (
        BASE,
        {"optim.name": "muon", "train.ema": 0.999},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    print("# Memory: expected and measured\n")
    print(f"`python scripts/plan_report.py`, {machine('torch')}; each case on one thread.\n")
    print("| model, precision, batch | expected GiB | tensors GiB | error | process as it is GiB |")
    print("|---|---|---|---|---|")
    nothing = {name: measured(NOTHING, {}, env) for name, env in environments().items()}
    worst = 0.0
    for name in args.only:
        tree, changes = CASES[name]
        expected = estimate(tree, changes)
        tensors, whole = (
            measured(tree, changes, env) - nothing[kind] for kind, env in environments().items()
        )
        error = expected / tensors - 1
        worst = max(worst, abs(error))
        print(
            f"| {name} | {expected:.2f} | {tensors:.2f} | {error:+.0%} | {whole:.2f} |", flush=True
        )
    print(f"\nA process of next to nothing: {nothing['as it is']:.2f} GiB, not counted above.")
    print(
        f"Largest error: {worst:.0%}; {'within' if worst <= WITHIN else 'NOT within'} {WITHIN:.0%}"
    )


def environments() -> dict[str, dict[str, str]]:
    return {"tensors": TENSORS_ONLY, "as it is": {}}


def estimate(tree: dict[str, object], changes: dict[str, object]) -> float:
    """GiB that the plan expects on one rank."""
    with tempfile.TemporaryDirectory() as folder:
        said = clipkit(Path(folder), tree, changes, ["--dry-run"], {})
    found = re.search(r"memory estimate +([\d.]+) GiB", said)
    assert found, said
    return float(found[1])


def measured(tree: dict[str, object], changes: dict[str, object], env: dict[str, str]) -> float:
    """GiB that the process of a real run took at most, in two steps."""
    with tempfile.TemporaryDirectory() as folder:
        clipkit(Path(folder), tree, changes, [], env)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
    return float([r for r in records if r["kind"] == "train"][-1]["memory_gib"])


def enough_pairs(folder: Path, count: int) -> str:
    """Shards of data/emoji, or of several copies of it where it has fewer than ``count`` pairs."""
    shards = sorted((ROOT / "data/emoji").glob("train-*.tar"))
    members: list[tuple[str, bytes]] = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            members += [(each.name, tar.extractfile(each).read()) for each in tar]  # type: ignore[union-attr]
    pairs = len({name.partition(".")[0] for name, _ in members})
    if count <= pairs:
        return str(ROOT / "data/emoji/train-*.tar")
    for copy in range(-(-count // pairs)):
        with tarfile.open(folder / f"copy-{copy:03d}.tar", "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(f"{copy}-{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(folder / "copy-*.tar")


def clipkit(
    folder: Path,
    tree: dict[str, object],
    changes: dict[str, object],
    options: list[str],
    env: dict[str, str],
) -> str:
    """What the real command says, of a config in ``folder``."""
    size = int(str(changes.get("train.batch_size", 0)))
    config = {
        "output": str(folder / "run"),
        "data": {"train": enough_pairs(folder, size), "workers": 0},
        **tree,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    words = [f"{key}={value}" for key, value in changes.items()]
    words += ["train.steps=2", "train.log_every=1"]
    result = subprocess.run(
        [sys.executable, "-m", "clipkit", "train", str(path), *words, *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise SystemExit(result.stderr)
    return result.stdout


if __name__ == "__main__":
    main()

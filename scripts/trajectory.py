"""Compares runs before and after a change of the code, to the last bit.

    python scripts/trajectory.py record before.json     # on the code before
    python scripts/trajectory.py compare before.json    # on the code after, on the same machine

Runs of nine steps of a very small model on 221 emoji go through the command line, each with
another part of training switched on. The loss and the scale of each step are kept, and a hash of
the final weights. ``compare`` names the first step that differs, and then ends with exit 1.
Names of runs may follow, to take those alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from machine import cpu_name, versions
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "emoji"
STEPS = 9
BASE: dict[str, Any] = {
    "seed": 3,
    "data": {"train": str(DATA / "validation-*.tar"), "workers": 0},
    "preprocess": {"image_size": 32, "context_length": 16, "vocab_size": 600},
    "model": {
        "embed_dim": 32,
        "vision": {"width": 64, "layers": 2, "patch_size": 8, "dropout": 0.1},
        "text": {"width": 64, "layers": 2, "dropout": 0.1},
    },
    "optim": {"lr": 1e-3, "warmup_steps": 2},
    "train": {
        "batch_size": 48,
        "steps": STEPS,
        "precision": "fp32",
        "save_every": 3,
        "log_every": 1,
    },
}
# Keys that differ from those above. ``ranks``: processes; ``kill``: where the first start dies;
# ``after``: the run whose model this one starts from.
RUNS: dict[str, dict[str, Any]] = {
    "infonce": {},
    "bf16": {"train.precision": "bf16"},
    "sigmoid": {"loss.kind": "sigmoid", "loss.duplicates": "positives"},
    "micro_batch": {"train.micro_batch": 16, "train.precision": "bf16"},
    "sigmoid, micro_batch": {"loss.kind": "sigmoid", "train.micro_batch": 16},
    "accumulate": {"train.accumulate": 2, "loss.label_smoothing": 0.1},
    "muon, ema": {"optim.name": "muon", "train.ema": 0.9, "optim.schedule": "wsd"},
    "stages": {
        "train.stages": [
            {"share": 0.6, "image_size": 16, "context_length": 8, "patch_dropout": 0.5},
            {"share": 0.4},
        ],
        "train.batch_size": 40,
    },
    "hard negatives, workers": {"data.hard_negatives": 4, "data.workers": 2},
    "fine-tuning": {
        "after": "infonce",
        "model": {"pretrained": "", "freeze": "vision"},
        "preprocess": {"image_size": 32, "context_length": 16},
        "optim.layer_decay": 0.7,
        "train.activation_checkpointing": True,
    },
    "killed": {"kill": "step-5"},
    "ddp, 2 ranks": {"ranks": 2, "train.micro_batch": 24},
    "ddp, 2 ranks, sigmoid": {"ranks": 2, "loss.kind": "sigmoid"},
    "fsdp, 2 ranks, sigmoid, killed": {
        "ranks": 2,
        "kill": "step-5",
        "loss.kind": "sigmoid",
        "train.distributed": "fsdp",
        "train.checkpoint": "sharded",
    },
    "fsdp, 2 ranks, killed": {
        "ranks": 2,
        "kill": "step-5",
        "train.distributed": "fsdp",
        "train.checkpoint": "sharded",
        "train.ema": 0.9,
    },
}
_OWN = ("ranks", "kill", "after")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("names", nargs="*", help="of runs; none: all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RUNS):
        parser.error(f"no run is called {unknown.pop()!r}; there are {', '.join(RUNS)}")
    here = {"cpu": cpu_name(), "threads": os.cpu_count(), "versions": versions("torch", "numpy")}
    names = [name for name in RUNS if not args.names or name in args.names]
    if args.what == "compare":
        recorded = json.loads(args.file.read_text())
        if recorded["machine"] != here:
            parser.error(
                f"{args.file} is of {recorded['machine']}, this is {here}; bits are compared on "
                "one machine"
            )
        names = [name for name in names if name in recorded["runs"]]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        needed = {RUNS[name].get("after") for name in names}
        for name in RUNS:
            if name in names or name in needed:
                found[name] = trained(Path(folder), name)
                print(f"{name}: {found[name]['losses'][-1]}", file=sys.stderr)
    if args.what == "record":
        record = {"machine": here, "runs": {name: found[name] for name in names}}
        args.file.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{len(names)} runs are recorded in {args.file}")
        return 0
    differ = 0
    for name in names:
        told = difference(recorded["runs"][name], found[name])
        print(f"{name}: {told or 'equal'}")
        differ += bool(told)
    print(f"{len(names) - differ} of {len(names)} runs are equal, bit by bit")
    return 1 if differ else 0


def trained(folder: Path, name: str) -> dict[str, Any]:
    """Trains one run; the losses and scales of its steps as hexadecimal floats, and a hash of its
    weights."""
    options, output = RUNS[name], folder / name
    config = write_config(folder, name)
    ranks = options.get("ranks", 1)
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launch, "-m", "clipkit", "train", str(config)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // ranks))
    if place := options.get("kill"):
        dies = {**environment, "CLIPKIT_FAILPOINT": f"{place}:kill"}
        first = subprocess.run(command, env=dies, cwd=folder, capture_output=True, text=True)
        if first.returncode == 0 or (ranks == 1 and first.returncode != -signal.SIGKILL):
            raise SystemExit(f"{name}: was not killed at {place}\n{first.stderr}")
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}\n{done.stderr}")
    steps = steps_of(output)
    return {
        "losses": [float(record["loss"]).hex() for record in steps],
        "scales": [float(record["scale"]).hex() for record in steps],
        "weights": hash_of(output / "model" / "model.safetensors"),
    }


def changed(*changes: Mapping[str, Any]) -> dict[str, Any]:
    """``BASE`` with other values of dotted keys; ``__`` stands for a dot, too."""
    tree: dict[str, Any] = json.loads(json.dumps(BASE))
    for key, value in (item for each in changes for item in each.items()):
        *parents, last = key.replace("__", ".").split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def write_config(folder: Path, name: str, **changes: Any) -> Path:
    """Writes the config of a run whose output is ``folder/name``.

    Args:
        folder: of the config and of the run.
        name: of the run.
        changes: further keys, with ``__`` for each dot.
    """
    options = {key: value for key, value in RUNS[name].items() if key not in _OWN}
    tree = changed(options | {"output": str(folder / name)}, changes)
    if before := RUNS[name].get("after"):
        tree["model"] = {**RUNS[name]["model"], "pretrained": str(folder / before / "model")}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def steps_of(run: Path) -> list[dict[str, Any]]:
    """What ``metrics.jsonl`` has of each step.

    Raises:
        SystemExit: it is of other steps than 1 to ``STEPS``.
    """
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if record["kind"] == "train"]
    if [record["step"] for record in steps] != list(range(1, STEPS + 1)):
        raise SystemExit(f"{run}: its metrics are of other steps than 1 to {STEPS}")
    return steps


def hash_of(path: Path) -> str:
    """SHA-256 of all weights with their names, types and shapes."""
    digest = hashlib.sha256()
    with safe_open(path, framework="numpy") as file:
        for name in sorted(file.keys()):
            array = file.get_tensor(name)
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The first difference between two runs in words; empty where there is none."""
    for what in ("losses", "scales"):
        for step, (old, new) in enumerate(zip(before[what], after[what], strict=True), 1):
            if old != new:
                apart = float.fromhex(new) - float.fromhex(old)
                return f"the {what} differ from step {step} on, there by {apart:.1e}"
    return "" if before["weights"] == after["weights"] else "the final weights differ"


if __name__ == "__main__":
    sys.exit(main())

"""Losses, gradient norms and weights after 20 steps are one process's, however it is computed:
{DDP, FSDP2} × {at once, in parts with all negatives, accumulated} × {InfoNCE, SigLIP}, and
{DDP, FSDP2} × other ways to update the weights."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ENVIRONMENT, ROOT
from test_run import weights, write_config

KINDS = ("infonce", "sigmoid")
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"train__micro_batch": 16},
    "accumulated": {"train__accumulate": 3},
}
# Rates that differ by layer and tower, Muon, which needs whole matrices, and averaged weights,
# which are what is compared then.
UPDATES: dict[str, dict[str, Any]] = {
    "muon": {
        "optim": {
            "name": "muon", "lr": 1e-3, "muon_lr": 2e-3, "warmup_steps": 2, "schedule": "wsd",
            "layer_decay": 0.8, "vision_lr_scale": 0.5,
        },
        "train__ema": 0.9,
    },
}  # fmt: skip
FORWARDS: dict[str, dict[str, Any]] = {
    "bf16": {"train__precision": "bf16"},
    "recomputed": {"train__activation_checkpointing": True},
}
FULL = os.environ.get("CLIPKIT_MATRIX") == "full"
CELLS = [
    *itertools.product(KINDS, WAYS),
    *(("infonce", way) for way in (*UPDATES, *(FORWARDS if FULL else ()))),
]
RANKS = [2, 4] if FULL else [2]


def config(folder: Path, kind: str, way: str, **changes: Any) -> Path:
    """Twenty steps without dropout, which differs by rank; some rows are not valid."""
    return write_config(
        folder, loss={"kind": kind}, train__steps=20, train__save_every=20, data__evaluate={},
        model__vision__dropout=0.0, model__text__dropout=0.0,
        **(WAYS | UPDATES | FORWARDS)[way], **changes,
    )  # fmt: skip


def run(ranks: int, configs: list[Path], out: Path) -> dict[str, Any]:
    command = [sys.executable]
    if ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += [str(Path(__file__).with_name("equivalence_rank.py")), str(out), *map(str, configs)]
    result = subprocess.run(
        command, cwd=ROOT, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    told: dict[str, Any] = json.loads(out.read_text())
    return told


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == "train"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, all at once or accumulated."""
    folder = tmp_path_factory.mktemp("one")
    configs = [config(folder / f"{kind}-{way}", kind, way) for kind, way in CELLS]
    run(1, configs, folder / "told.json")
    return folder


@pytest.fixture(scope="module", params=RANKS)
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each cell of the matrix on several ranks."""
    folder = tmp_path_factory.mktemp("several")
    configs = [
        config(folder / f"{how}-{kind}-{way}", kind, way, train__distributed=how)
        for how, (kind, way) in itertools.product(("ddp", "fsdp"), CELLS)
    ]
    told = run(request.param, configs, folder / "told.json")
    for path in configs:
        fsdp, bf16 = (path.parent.name.find(word) >= 0 for word in ("fsdp", "bf16"))
        dtype = "torch.bfloat16" if fsdp and bf16 else "torch.float32"  # in which layers are sent
        assert told[str(path)] == {"steps": 20, "sharded": fsdp, "dtypes": [dtype]}
    return folder


def assert_equal(first: Path, second: Path, *, tolerance: float = 2e-4) -> None:
    assert_steps_equal(first, second, 20, tolerance)
    expected, found = weights(first / "run"), weights(second / "run")
    assert expected.keys() == found.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=tolerance)


def assert_steps_equal(first: Path, second: Path, steps: int, tolerance: float) -> None:
    a, b = records(first), records(second)
    assert len(a) == len(b) == 20
    for one, other in itertools.islice(zip(a, b, strict=True), steps):
        for key in ("loss", "grad_norm", "grad_norm_vision", "grad_norm_text", "scale"):
            assert one[key] == pytest.approx(other[key], rel=tolerance), (one["step"], key)


def distance(first: Path, second: Path) -> float:
    """Between the weights of two runs."""
    a, b = weights(first / "run"), weights(second / "run")
    assert a.keys() == b.keys()
    return sum((a[name].double() - b[name]).square().sum().item() for name in a) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "way"), [cell for cell in CELLS if cell[1] != "bf16"])
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_ranks_equal_one_process(one: Path, several: Path, how: str, kind: str, way: str) -> None:
    # Muon rounds its updates to bf16, which makes more of a difference in the last bits.
    tolerance = 2e-3 if way == "muon" else 2e-4
    assert_equal(one / f"{kind}-{way}", several / f"{how}-{kind}-{way}", tolerance=tolerance)


@pytest.mark.long
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_ranks_in_bf16_are_no_farther_from_float32_than_one_process(
    one: Path, several: Path, how: str
) -> None:
    # What bf16 rounds differs with the rows of a rank, and grows with every step of a run.
    rounded = several / f"{how}-infonce-bf16"
    assert_steps_equal(one / "infonce-bf16", rounded, steps=3, tolerance=0.01)
    own = distance(one / "infonce-bf16", one / "infonce-plain")
    assert 0 < distance(rounded, one / "infonce-plain") < 1.25 * own


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_parts_with_all_negatives_equal_the_whole_batch(one: Path, kind: str) -> None:
    assert_equal(one / f"{kind}-plain", one / f"{kind}-cached")


@pytest.mark.slow
def test_parts_with_their_own_negatives_are_another_loss(one: Path) -> None:
    plain, parts = records(one / "infonce-plain"), records(one / "infonce-accumulated")
    # About the logarithms of 48 and of 16, as nothing is learned yet.
    assert plain[0]["loss"] > parts[0]["loss"] + 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.micro_batch=16", "train.accumulate=3"], "leave one out"),
        (["train.micro_batch=20"], "train.batch_size: 48 is not divisible by train.micro_batch"),
        (["train.micro_batch=0"], "train.micro_batch: 0; it must be above 0"),
        (["train.accumulate=5"], "use 45 or 50"),
        (["train.accumulate=0"], "train.accumulate: 0; it must be above 0"),
        (["train.distributed=fsdp", "train.precision=fp16"], "use bf16"),
        (["loss.kind=sigmoid", "loss.label_smoothing=0.1"], "no distribution to smooth"),
        (["loss.label_smoothing=1.5"], "a share, below 1"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(
    clipkit: Any, tmp_path: Path, changes: list[str], message: str
) -> None:
    result = clipkit("train", write_config(tmp_path), *changes)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "run").exists()

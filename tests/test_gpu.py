"""What only a GPU can show: the same results there, compiled, offloaded and in every precision.

    pytest tests/test_gpu.py

Named as skipped where there is none.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import ENVIRONMENT, ROOT, Run

from clipkit import EmbeddingStore, load, similarity_matrix
from clipkit.losses import contrastive_loss, sigmoid_loss

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
SHORT = ("configs/emoji.yaml", "train.epochs=null", "train.steps=40", "eval.every=0")


def train(clipkit: Run, folder: Path, *changes: str, **options: Any) -> list[dict[str, Any]]:
    """The records of 40 steps of the demo."""
    result = clipkit(
        "train", *SHORT, f"output={folder}", "train.log_every=1", *changes, env=GPU, **options
    )
    assert result.returncode == 0, result.stderr
    assert "× cuda" in result.stderr + result.stdout
    return records(folder)


def records(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [each for each in map(json.loads, lines) if each["kind"] == "train"]


def losses(found: list[dict[str, Any]]) -> list[float]:
    return [each["loss"] for each in found]


@pytest.fixture(scope="module")
def plain(clipkit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(clipkit, folder)
    return folder


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_the_loss_and_its_gradients_are_those_of_float64(
    kind: str, scale: float, bf16: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(9000, 256, generator=generator)  # more than a block

    def pairs() -> list[torch.Tensor]:
        noise = torch.randn(9000, 256, generator=torch.Generator().manual_seed(1))
        return [F.normalize(x, dim=1) for x in (base, base + 3 * noise)]

    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        leaves = [x.to(device, dtype).requires_grad_() for x in pairs()]
        s = torch.tensor(scale, device=device, dtype=dtype, requires_grad=True)
        if device == "cpu":
            logits = s * leaves[0] @ leaves[1].T
            if kind == "infonce":
                own = torch.arange(len(logits))
                loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
            else:
                signs = 2 * torch.eye(len(logits), dtype=dtype) - 1
                loss = -F.logsigmoid(signs * (logits - 10)).sum() / len(logits)
        elif kind == "infonce":
            loss = contrastive_loss(*leaves, s, bf16_matmul=bf16)
        else:
            bias = torch.tensor(-10.0, device=device)
            loss = sigmoid_loss(*leaves, s, bias, bf16_matmul=bf16)
        loss.backward()
        results.append([loss.detach(), *(x.grad for x in (*leaves, s))])
    tolerance = 1e-2 if bf16 else 1e-5
    for expected, found in zip(*results, strict=True):
        error = (found.cpu().double() - expected).norm() / expected.norm()
        assert error < tolerance, float(error)


def test_training_learns_and_says_what_it_uses(plain: Path) -> None:
    found = records(plain)
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    assert found[-1]["memory_gib"] > 0
    assert all(0 <= each["data_wait"] <= 1 for each in found)


@pytest.mark.parametrize(
    "changes",
    [
        ("train.compile=true",),
        ("train.activation_checkpointing=0.5",),
        ("train.micro_batch=64",),
        ("model.attention=eager",),
        ("loss.matmul=bf16",),
        ("train.precision=fp16",),
        ("train.precision=fp32",),
    ],
)
def test_other_ways_to_compute_give_about_the_same(
    clipkit: Run, plain: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    found = train(clipkit, tmp_path / "run", *changes, timeout=500)
    tolerance = 0.1 if "fp16" in changes[0] else 0.03  # the scaler skips its first steps
    assert losses(found)[-1] == pytest.approx(losses(records(plain))[-1], rel=tolerance)


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("train.distributed=fsdp", "train.offload=true"),
        ("train.distributed=fsdp", "train.offload=true", "train.compile=true"),
    ],
)
def test_one_rank_under_a_launcher(
    clipkit: Run, plain: Path, tmp_path: Path, changes: tuple[str, ...]
) -> None:
    found = train(clipkit, tmp_path / "run", *changes, ranks=1, timeout=500)
    assert losses(found)[-1] == pytest.approx(losses(records(plain))[-1], rel=0.03)


def test_a_killed_run_goes_on_to_the_same_loss(clipkit: Run, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "clipkit", "train", *SHORT, f"output={folder}"]
    command += ["train.log_every=1", "train.save_every=10"]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**ENVIRONMENT, **GPU}, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(folder.glob("checkpoints/step-*/manifest.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = train(clipkit, folder, "train.save_every=10")
    assert losses(found)[-1] == pytest.approx(losses(records(plain))[-1], rel=0.03)
    assert (folder / "model" / "model.safetensors").is_file()


def test_the_estimate_of_memory_is_that_of_a_run(clipkit: Run, plain: Path) -> None:
    result = clipkit("train", *SHORT, "--dry-run", "plan.gpu_tflops=989")
    assert result.returncode == 0, result.stderr
    (line,) = (x for x in result.stdout.splitlines() if x.startswith("memory estimate"))
    estimate = float(line.split()[2])
    assert estimate == pytest.approx(records(plain)[-1]["memory_gib"], rel=0.15)


def test_a_profile_is_written(clipkit: Run, tmp_path: Path) -> None:
    result = clipkit("train", *SHORT, f"output={tmp_path}", "--profile", env=GPU)
    assert result.returncode == 0, result.stderr
    assert "image tower, forward" in result.stdout


def test_embeddings_are_those_of_a_cpu(clipkit: Run, plain: Path, tmp_path: Path) -> None:
    stores = []
    for name, env in (("gpu", GPU), ("cpu", {})):
        out = tmp_path / name
        result = clipkit("embed", plain, "data/emoji/train-000.tar", out, env=env)
        assert result.returncode == 0, result.stderr
        stores.append(out)
    gpu, cpu = (EmbeddingStore(store) for store in stores)
    assert gpu.table["key"].to_pylist() == cpu.table["key"].to_pylist()
    for what in ("image_embeds", "text_embeds"):
        one, other = (np.concatenate(getattr(store, what)).astype(float) for store in (gpu, cpu))
        assert (one * other).sum(1).min() > 0.998
    result = clipkit("search", stores[0], "red apple", "-k", "3", env=GPU)
    assert result.returncode == 0, result.stderr


def test_zero_shot_on_a_gpu_says_what_it_says_on_a_cpu(plain: Path) -> None:
    labels = ["red apple", "flag: Japan", "waving hand"]
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    found = []
    for device in ("cuda", "cpu"):
        model = load(str(plain), device=device)
        found.append(similarity_matrix(model, list(pixels), labels, progress=False).scores)
    np.testing.assert_allclose(found[0], found[1], atol=0.02)

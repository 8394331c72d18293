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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_line import ENVIRONMENT, ROOT, Run
from torch import Tensor

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


def plain_loss(kind: str, images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """With the whole matrix, in the dtype of what is given."""
    logits = scale * images @ texts.T
    if kind == "infonce":
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * (logits - 10)).sum() / len(logits)


def block_loss(kind: str, images: Tensor, texts: Tensor, scale: Tensor, bf16: bool) -> Tensor:
    if kind == "infonce":
        return contrastive_loss(images, texts, scale, bf16_matmul=bf16)
    bias = torch.tensor(-10.0, device=images.device)
    return sigmoid_loss(images, texts, scale, bias, bf16_matmul=bf16)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_the_loss_and_its_gradients_are_as_near_to_float64_as_a_plain_one(
    kind: str, scale: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    base, noise = torch.randn(2, 9000, 256, generator=generator)  # more than a block
    pairs = [F.normalize(x, dim=1) for x in (base, base + 3 * noise)]

    def results(dtype: torch.dtype, loss: Callable[..., Tensor], *options: Any) -> list[Tensor]:
        leaves = [*pairs, torch.tensor(scale)]
        leaves = [x.to("cuda", dtype, copy=True).requires_grad_() for x in leaves]
        value = loss(kind, *leaves, *options)
        value.backward()
        return [value.detach().double(), *(x.grad.double() for x in leaves if x.grad is not None)]

    exact = results(torch.float64, plain_loss)

    def errors(found: list[Tensor]) -> list[float]:
        assert len(found) == len(exact) == 4
        return [float((x - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]

    plain = errors(results(torch.float32, plain_loss))
    for error, other in zip(errors(results(torch.float32, block_loss, False)), plain, strict=True):
        assert error < max(3 * other, 2e-6)
    assert max(errors(results(torch.float32, block_loss, True))) < 1e-2  # products in bf16


def test_training_learns_and_says_what_it_uses(plain: Path) -> None:
    found = records(plain)
    assert found[-1]["loss"] < 0.8 * found[0]["loss"]
    assert found[-1]["memory_gib"] > 0
    assert all(0 <= each["data_wait"] <= 1 for each in found)


@pytest.mark.parametrize(
    "change",
    [
        "train.compile=true",
        "train.activation_checkpointing=0.5",
        "train.micro_batch=64",
        "model.attention=eager",
        "loss.matmul=bf16",
        "train.precision=fp16",
        "train.precision=fp32",
    ],
)
def test_other_ways_to_compute_give_about_the_same(
    clipkit: Run, plain: Path, tmp_path: Path, change: str
) -> None:
    found = train(clipkit, tmp_path / "run", change, timeout=500)
    tolerance = 0.1 if "fp16" in change else 0.03  # the scaler skips its first steps
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


def test_the_estimate_of_memory_is_that_of_a_run(clipkit: Run, tmp_path: Path) -> None:
    # Large, as what a library keeps for itself, some 80 MiB, is not known.
    large = ("train.batch_size=2048", "train.steps=3", "model.vision.width=384")
    found = train(clipkit, tmp_path / "run", *large)
    result = clipkit("train", *SHORT, *large, "--dry-run", "plan.gpu_tflops=989")
    assert result.returncode == 0, result.stderr
    (line,) = (x for x in result.stdout.splitlines() if x.startswith("memory estimate"))
    estimate = float(line.split()[2])
    assert estimate == pytest.approx(found[-1]["memory_gib"], rel=0.15)


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

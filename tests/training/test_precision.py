"""``train.precision: auto``: settled once, told, recorded and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_line import Run
from test_run import losses, said, write_config

from clipkit.config import Config, load_config
from clipkit.config.schema import OptimConfig
from clipkit.models.depth import PlacedParameter
from clipkit.models.precision import Choice
from clipkit.training import build
from clipkit.training.muon import Muon, orthogonalise
from clipkit.training.optim import build_optimizer
from clipkit.training.run import check_unchanged

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # as on most laptops: bf16 is emulated
SMALL = {
    "data__evaluate": {},
    "train__batch_size": 16,
    "train__save_every": 2,
    "train__save_in_background": False,
}


def recorded(run: Path) -> str:
    precision: str = yaml.safe_load((run / "config.yaml").read_text())["train"]["precision"]
    return precision


@pytest.mark.slow
def test_without_bf16_units_auto_trains_in_float32_and_keeps_it(
    clipkit: Run, tmp_path: Path
) -> None:
    config = write_config(tmp_path, train__precision="auto", train__steps=4, **SMALL)
    stopped = clipkit("train", config, env={**AVX2, "CLIPKIT_FAILPOINT": "step-3:kill"})
    assert stopped.returncode != 0
    assert "1 × cpu fp32 (bf16 is measured " in said(stopped)
    assert "times slower than float32 here), from scratch" in said(stopped)
    assert recorded(tmp_path / "run") == "fp32"
    start = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert start["precision"] == "fp32"
    assert "times slower" in start["precision_reason"]
    # Another state of the machine, where bf16 may be fast, changes nothing.
    resumed = clipkit("train", config)
    assert resumed.returncode == 0, resumed.stderr
    assert "fp32 (as the run was started), going on from step 2" in said(resumed)
    assert recorded(tmp_path / "run") == "fp32"
    assert "| precision | fp32 |" in (tmp_path / "run" / "model" / "README.md").read_text()
    pinned = clipkit("train", config, f"output={tmp_path}/pinned", "train.precision=fp32")
    assert pinned.returncode == 0, pinned.stderr
    assert losses(tmp_path / "run") == losses(tmp_path / "pinned")


@pytest.mark.slow
def test_a_run_that_began_in_bf16_goes_on_in_it_and_slow_bf16_is_told(
    clipkit: Run, tmp_path: Path
) -> None:
    config = write_config(tmp_path, train__precision="bf16", train__steps=2, **SMALL)
    result = clipkit("train", config, env=AVX2)
    assert result.returncode == 0, result.stderr
    assert "cpu bf16, from scratch train.precision: bf16 is measured " in said(result)
    assert "times slower than float32 here; set train.precision=fp32" in said(result)
    config = write_config(tmp_path, train__precision="auto", train__steps=4, **SMALL)
    result = clipkit("train", config, "--allow-change", "train.steps", env=AVX2)
    assert result.returncode == 0, result.stderr
    assert "bf16 (as the run was started), going on from step 2" in said(result)
    assert "set train.precision=fp32 and --allow-change train.precision" in said(result)
    assert recorded(tmp_path / "run") == "bf16"


def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Choice:
    """How a start of a run settles it on a machine where fp16 and bf16 are three times as fast."""
    monkeypatch.setattr(
        build, "fastest_precision", lambda device, **_: Choice("bf16", "three times as fast")
    )
    monkeypatch.setattr(build, "measure_speed", lambda device, precision, **_: 3.0)
    config = load_config(write_config(tmp_path, **changes))
    config, choice = build.settle_precision(config)
    assert config.train.precision == choice.precision
    return choice


def test_auto_takes_what_is_measured_and_what_is_asked_for_is_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = settled(tmp_path, monkeypatch, train__precision="auto")
    assert str(auto) == "bf16 (three times as fast)"
    for precision in ("fp32", "bf16", "fp16"):
        choice = settled(tmp_path, monkeypatch, train__precision=precision)
        assert choice == Choice(precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_auto_is_what_the_run_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(f"train: {{precision: {precision}}}\n")
    choice = settled(tmp_path, monkeypatch, train__precision="auto")
    assert choice == Choice(precision, "as the run was started")


def test_a_recorded_auto_is_no_change(tmp_path: Path) -> None:
    for saved, allowed in (("auto", ()), ("fp32", ("train.precision",))):
        (tmp_path / "config.yaml").write_text(f"train: {{precision: {saved}}}\n")
        config = Config()
        config.train.precision = "bf16"
        changed = check_unchanged(config, tmp_path, allowed)
        assert changed == [] if saved == "auto" else ["train.precision: fp32 → bf16"]


def test_muon_in_float32_is_float64_to_rounding() -> None:
    """The quintic iteration, written out; in bf16 it would be off by a hundred times as much."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(24, 8))
    before, gradient = weight.detach().double(), torch.randn(24, 8)
    weight.grad = gradient.clone()
    Muon([{"params": [weight]}], lr=0.01, weight_decay=0.1).step()
    momentum = 0.05 * gradient.double()
    x = (0.05 * gradient.double() + 0.95 * momentum).T
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    expected = before * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 24**0.5 * x.T
    torch.testing.assert_close(weight.detach().double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)],
)
def test_muon_computes_in_the_runs_precision(precision: str, dtype: torch.dtype) -> None:
    seen = []
    weight = torch.nn.Parameter(torch.randn(8, 8))
    scale = torch.nn.Parameter(torch.zeros(()))
    placed = [
        PlacedParameter("layers.0.mlp.fc1.weight", weight, "vision", 1, in_block=True),
        PlacedParameter("logit_scale", scale, None, 0, in_block=False),
    ]
    optimizer = build_optimizer(placed, OptimConfig(name="muon"), precision)
    weight.grad = torch.randn(8, 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "clipkit.training.muon.orthogonalise",
            lambda stack: (seen.append(stack.dtype), orthogonalise(stack))[1],
        )
        optimizer.step()
    assert seen == [dtype]

from __future__ import annotations

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ROOT, Run
from safetensors.torch import load_file
from test_run import STEPS, losses, weights, write_config
from torch import nn

from clipkit.evaluation.results import read_results
from clipkit.training.ema import WeightAverage


def test_the_average_is_the_recurrence_and_swapping_it_in_changes_no_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).requires_grad_(False))
    average = WeightAverage(model, decay=0.4)
    weight = model[0].weight
    expected = weight.detach().clone()
    for step in range(12):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(average.tensors["0.weight"], expected)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with average.in_place_of_weights():
        torch.testing.assert_close(weight.detach(), expected)
        assert torch.equal(model[1].weight, before["1.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def config(folder: Path, **changes: Any) -> Path:
    """A run with all that may be chosen of its update."""
    return write_config(
        folder,
        optim={
            "name": "muon", "lr": 1e-3, "muon_lr": 2e-3, "warmup_steps": 2, "schedule": "wsd",
            "layer_decay": 0.8, "vision_lr_scale": 0.5,
        },
        train__ema=0.9,
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(clipkit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    suite = folder / "tones.yaml"
    keys = {"kind": "zero_shot", "data": str(ROOT / "data/emoji/held-out-*.tar")}
    keys |= {"label": "json.skin_tones", "templates": "{} skin tone"}
    suite.write_text(json.dumps({"tasks": {"tone": keys}}))
    path = config(folder)
    result = clipkit("train", path, f"eval.suite={suite}", "eval.every=5")
    assert result.returncode == 0, result.stderr
    assert "step 5  tones: tone: mAP 0." in result.stderr
    assert "step 9  tones (EMA): tone: mAP 0." in result.stderr
    assert "held-out (EMA): text→image R@1" in result.stderr
    return folder / "run"


@pytest.mark.slow
def test_the_model_is_the_average_and_both_are_evaluated(whole: Path) -> None:
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    evals = [r for r in map(json.loads, lines) if r["kind"] == "eval"]
    assert [(r["split"], r.get("ema", False)) for r in evals] == [
        ("held-out", False),
        ("held-out", True),
    ] * 2
    assert evals[2] | {"ema": True} != evals[3]
    checkpoint = whole / "checkpoints" / f"step-{STEPS:06d}"
    last = load_file(checkpoint / "model" / "model.safetensors")
    average = load_file(checkpoint / "ema.safetensors")
    for name, value in weights(whole).items():
        assert torch.equal(value, average[f"backbone.{name}"])
    assert not torch.equal(
        last["text_projection.weight"], average["backbone.text_projection.weight"]
    )
    assert "held-out (EMA)" in (whole / "report.html").read_text()


@pytest.mark.slow
def test_a_suite_is_measured_with_the_splits_and_its_results_are_those_of_the_model(
    whole: Path,
) -> None:
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    tasks = [r for r in map(json.loads, lines) if r["kind"] == "task"]
    assert [(r["step"], r["suite"], r["task"], r.get("ema", False)) for r in tasks] == [
        (step, "tones", "tone", ema) for step in (5, STEPS) for ema in (False, True)
    ]
    results = read_results(whole / "eval" / "tones")
    assert results.tasks["tone"].metrics == {"mAP": tasks[-1]["mAP"]}
    weights = (whole / "model" / "model.safetensors").read_bytes()
    assert results.about["model"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert len(results.read_samples("tone")["key"]) == 221


@pytest.mark.slow
def test_a_finished_run_says_how_another_suite_is_measured(clipkit: Run, whole: Path) -> None:
    other = whole.parent / "other.yaml"
    other.write_text((whole.parent / "tones.yaml").read_text())
    changes = [f"eval.suite={other}", f"output={whole}"]
    result = clipkit("train", whole / "config.yaml", *changes)
    assert result.returncode == 0, result.stderr
    assert f"To evaluate it: clipkit eval {whole} --suite {other}" in result.stdout


@pytest.mark.slow
def test_resume_after_kill_is_bit_identical(clipkit: Run, whole: Path, tmp_path: Path) -> None:
    path = config(tmp_path)
    killed = clipkit("train", path, env={"CLIPKIT_FAILPOINT": "save-6-begun:kill"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = clipkit("train", path)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step 3" in resumed.stderr
    assert losses(tmp_path / "run") == losses(whole)
    expected, found = weights(whole), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)

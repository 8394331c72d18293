from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from test_run import losses, weights, write_config

import clipkit.training.loop as loop
from clipkit.config import load_config
from clipkit.errors import ConfigError
from clipkit.training.stages import build_stages

STAGES = [
    {"share": 0.5, "image_size": 16, "context_length": 8, "patch_dropout": 0.5},
    {"share": 0.5},
]


def test_stages_share_the_steps_and_end_at_the_models_own_size(tmp_path: Path) -> None:
    asked = [{"share": 0.3, "image_size": 8}, {"share": 0.3, "patch_dropout": 0.7}, {"share": 0.4}]
    config = load_config(write_config(tmp_path, train__stages=asked), [])
    stages = build_stages(config, 9, patch_size=8)
    assert [(stage.first, stage.end) for stage in stages] == [(0, 3), (3, 5), (5, 9)]
    assert [stage.preprocess.image_size for stage in stages] == [8, 32, 32]
    assert [stage.patch_dropout for stage in stages] == [0.0, 0.7, 0.0]
    assert stages[-1].preprocess == config.preprocess


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"share": 0.5, "image_size": 20}, {"share": 0.5}], "not a multiple of the patch size 8"),
        ([{"share": 0.5, "image_size": 64}, {"share": 0.5}], "64 is more than the model's 32"),
        ([{"share": 0.5, "context_length": 20}, {"share": 0.5}], "from 3 to the model's 16"),
        ([{"share": 0.001}, {"share": 0.999}], "0.001 of 9 steps is not one step"),
        ([{"image_size": 16}], "the last stage is at 16 pixels and 16 tokens, but the model"),
    ],
)
def test_stages_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, stages: list[dict[str, Any]], message: str
) -> None:
    config = load_config(write_config(tmp_path, train__stages=stages), [])
    with pytest.raises(ConfigError, match=message):
        build_stages(config, 9, patch_size=8)


def test_the_order_of_samples_goes_on_across_a_border(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[tuple[int, ...], list[str]]] = []
    count: Callable[..., None] = loop.count_skipped

    def note(batch: Any, *rest: Any) -> None:
        seen.append((tuple(batch.pixel_values.shape), list(batch.keys)))
        count(batch, *rest)

    monkeypatch.setattr(loop, "count_skipped", note)
    few = {"train__steps": 4, "data__evaluate": {}}
    loop.train(load_config(write_config(tmp_path / "plain", **few), []))
    loop.train(load_config(write_config(tmp_path / "staged", train__stages=STAGES, **few), []))
    assert [keys for _, keys in seen[:4]] == [keys for _, keys in seen[4:]]
    assert [shape for shape, _ in seen[4:]] == [(48, 3, 16, 16)] * 2 + [(48, 3, 32, 32)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", [pytest.param("step-2", marks=pytest.mark.long), "step-7"])
def test_a_kill_in_any_stage_resumes_bit_identical(
    clipkit: Run, whole: Path, tmp_path: Path, failpoint: str
) -> None:
    path = write_config(tmp_path, train__stages=STAGES, train__save_every=2)
    killed = clipkit("train", path, env={"CLIPKIT_FAILPOINT": f"{failpoint}:kill"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = clipkit("train", path)
    assert resumed.returncode == 0, resumed.stderr
    assert ("16×16 pixels" in resumed.stderr) == (failpoint == "step-2")
    assert losses(tmp_path / "run") == losses(whole)
    expected, found = weights(whole), weights(tmp_path / "run")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture(scope="module")
def whole(clipkit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    result = clipkit("train", write_config(folder, train__stages=STAGES, train__save_every=2))
    assert result.returncode == 0, result.stderr
    assert "steps 1 to 4: 16×16 pixels, 8 tokens, 50% of the patches dropped" in result.stderr
    assert "steps 5 to 9: 32×32 pixels, 16 tokens" in result.stderr
    return folder / "run"

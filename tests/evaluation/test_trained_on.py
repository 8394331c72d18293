"""What is measured on images of the training data is marked, whatever is measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_model import WORDS, noise_image, png_bytes, write_shard

from clipkit.cli import main


def _config(output: Path, train: Path) -> dict[str, Any]:
    return {"output": str(output), "data": {"train": str(train)}, "train": {"steps": 4}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A run, and beside it folders of classes, of which two of six images were trained on."""
    here = tmp_path_factory.mktemp("trained")
    train = [(png_bytes(noise_image(i)), f"{WORDS[i]} number {i}") for i in range(8)]
    config = _config(here / "run", here / "train.tar")
    write_shard(here / "train.tar", train)
    shutil.copytree(tiny_folder, here / "run" / "model")
    shutil.copytree(tiny_folder, here / "run" / "checkpoints" / "step-000004" / "model")
    (here / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    for i in range(6):
        path = here / "classes" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png_bytes(noise_image(i + 6)))
    others = [(png_bytes(noise_image(50 + i)), f"{WORDS[i]} one") for i in range(4)]
    write_shard(here / "others.tar", others)
    return here / "run"


@pytest.mark.parametrize("model", ["", "model", "checkpoints/step-000004/model"])
def test_accuracy_on_classes_says_how_many_images_were_trained_on(
    run: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    source = str(run.parent / "classes")
    assert main(["eval", str(run / model), source, "--workers", "0"]) == 0
    assert "classes: 2 of its images are in the training data" in capsys.readouterr().err


def test_retrieval_of_a_checkpoint_is_marked_and_of_other_images_is_not(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = run / "checkpoints" / "step-000004" / "model"
    assert main(["eval", str(model), str(run.parent / "train.tar"), "--workers", "0"]) == 0
    assert "8 of 8 images are in the training data" in capsys.readouterr().err
    assert main(["eval", str(model), str(run.parent / "others.tar"), "--workers", "0"]) == 0
    assert "training data" not in capsys.readouterr().err


def test_each_task_of_a_suite_says_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {
        "pairs": {"kind": "retrieval", "data": str(run.parent / "train.tar")},
        "classes": {"kind": "zero_shot", "data": str(run.parent / "classes")},
        "others": {"kind": "retrieval", "data": str(run.parent / "others.tar")},
    }
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    command = ["eval", str(run), "--suite", f"{tmp_path}/s.yaml", "--out", f"{tmp_path}/out"]
    assert main([*command, "--workers", "0"]) == 0
    told = capsys.readouterr().err
    assert "pairs: 8 of its images are in the training data" in told
    assert "classes: 2 of its images are in the training data" in told
    assert told.count("in the training data") == 2
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert "2 of its images are in the training data" in json.dumps(results)


def test_training_data_that_are_gone_are_said_to_be_not_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    config = _config(tmp_path / "run", tmp_path / "gone.tar")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    for source in ("classes", "others.tar"):
        command = ["eval", str(tmp_path / "run"), str(run.parent / source), "--workers", "0"]
        assert main(command) == 0
        assert "its images are not compared with the training data" in capsys.readouterr().err

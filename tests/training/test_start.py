"""Whatever stops a run at its start stops its plan and its profile, with the same sentence."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_run import write_config

import clipkit
import clipkit.training.evaluating as evaluating
import clipkit.training.loop as loop
from clipkit.config import Config, load_config
from clipkit.errors import ClipkitError, Preempted, RunRefused
from clipkit.lock import owner_of
from clipkit.training.plan import dry_run
from clipkit.training.profile import profile_run

WAYS: tuple[Callable[[Config], Any], ...] = (loop.train, dry_run, profile_run)


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"train__batch_size": 500}, 2, "500 is more than the 221 samples"),
        ({"train__trackers": ["tensorbord"]}, 2, "tensorbord; accelerate knows"),
        ({"train__offload": True, "train__distributed": "fsdp"}, 2, "this run is on the CPU"),
        ({"train__micro_batch": 20}, 2, "48 is not divisible by train.micro_batch 20"),
        ({"train__stages": [{"image_size": 16}]}, 2, "the last stage is at 16 pixels"),
        ({"preprocess__vocab_size": 300}, 2, "less than the 514 tokens"),
        ({"model__vision__mlp_ratio": 1e30}, 2, "model.vision.mlp_ratio: the weights of the model"),
        ({"preprocess__context_length": 10**9}, 2, "preprocess.context_length: the weights"),
    ],
)
def test_a_plan_and_a_profile_refuse_what_training_refuses(
    tmp_path: Path, changes: dict[str, Any], code: int, message: str
) -> None:
    said = set()
    for way in WAYS:
        with pytest.raises(ClipkitError) as caught:
            way(load_config(write_config(tmp_path, **changes)))
        assert caught.value.exit_code == code
        said.add(str(caught.value))
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert len(said) == 1
    assert message in said.pop()


def test_a_damaged_shard_is_refused_alike(tmp_path: Path, root: Path) -> None:
    shard = tmp_path / "train.tar"
    whole = (root / "data" / "emoji" / "validation-000.tar").read_bytes()
    shard.write_bytes(whole[: len(whole) // 2 + 100])
    said = set()
    for way in WAYS:
        with pytest.raises(ClipkitError, match=r"data\.max_loss_share=0\.001") as caught:
            way(load_config(write_config(tmp_path, data__train=str(shard))))
        assert caught.value.exit_code == 3
        said.add(str(caught.value))
    assert len(said) == 1


def test_a_suite_that_cannot_be_run_is_refused_alike_before_training(tmp_path: Path) -> None:
    data = tmp_path / "pictures"
    for name in ("whale", "seal"):
        (data / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(data / name / "a.png")
    suite = tmp_path / "suite.yaml"
    for task, code, message in (
        ("{kind: retrieval, data: nowhere}", 3, "nowhere: no such file or folder"),
        (f"{{use: cifar10, data: {data}}}", 2, "class_names: there are 10, and 2 folder"),
    ):
        suite.write_text(f"tasks: {{one: {task}}}")
        config = load_config(write_config(tmp_path, eval={"suite": str(suite)}))
        said = set()
        for way in WAYS:
            with pytest.raises(ClipkitError) as caught:
                way(config)
            assert caught.value.exit_code == code
            said.add(str(caught.value))
        assert len(said) == 1
        assert said.pop().startswith(f"{suite}, task one: {message}")


def test_a_place_that_cannot_hold_the_results_is_found_before_training(tmp_path: Path) -> None:
    pictures, suite = tmp_path / "pictures", tmp_path / "animals.yaml"
    for animal in ("whale", "wolf"):
        (pictures / animal).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(pictures / animal / "a.png")
    suite.write_text(f"tasks: {{one: {{kind: zero_shot, data: {pictures}}}}}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "eval").touch()
    with pytest.raises(ClipkitError, match=r"run/eval.*: (cannot be made|is no folder)"):
        loop.train(load_config(write_config(tmp_path, eval={"suite": str(suite)})))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_evaluation_that_was_stopped_is_made_again(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = str(root / "data" / "emoji" / "held-out-*.tar")
    splits = {"a": held_out, "b": held_out}
    config = load_config(
        write_config(tmp_path, train__steps=4, data__evaluate=splits, eval={"every": 2})
    )
    real, measured = evaluating.evaluate_retrieval, []

    def stopped_in_the_second(*args: Any) -> dict[str, float]:
        measured.append(args)
        if len(measured) == 2:
            raise Preempted(str(int(signal.SIGTERM)))
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "evaluate_retrieval", stopped_in_the_second)
        with pytest.raises(Preempted, match="saved at step 2;"):
            loop.train(config)
    loop.train(config)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    evals = [(r["step"], r["split"]) for r in map(json.loads, lines) if r["kind"] == "eval"]
    assert evals == [(2, "a"), (2, "b"), (4, "a"), (4, "b")]


def test_records_of_evaluations_stay_where_a_run_goes_on_with_others(
    tmp_path: Path, root: Path
) -> None:
    held_out = str(root / "data" / "emoji" / "held-out-*.tar")
    changes: dict[str, Any] = {"data__evaluate": {"a": held_out}, "train__save_every": 1}
    loop.train(load_config(write_config(tmp_path, train__steps=2, eval={"every": 1}, **changes)))
    changes["data__evaluate"]["b"] = held_out
    longer = write_config(tmp_path, train__steps=4, eval={"every": 3}, **changes)
    allowed = ["train.steps", "eval.every", "data.evaluate"]
    loop.train(load_config(longer), allow_change=allowed)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    evals = [(r["step"], r["split"]) for r in map(json.loads, lines) if r["kind"] == "eval"]
    assert evals == [(1, "a"), (2, "a"), (3, "a"), (3, "b"), (4, "a"), (4, "b")]


def test_a_plan_of_named_gpus_may_offload_on_a_machine_without(tmp_path: Path) -> None:
    offload = {"train__offload": True, "train__distributed": "fsdp"}
    config = load_config(write_config(tmp_path, plan={"gpu_tflops": 989}, **offload))
    assert "GPUs of 989 TFLOP/s" in (dry_run(config) or "")


@pytest.mark.parametrize("damage", ["a file", "empty", "cut short", "nested"])
def test_a_damaged_tokenizer_of_the_run_is_named(tmp_path: Path, damage: str) -> None:
    config = load_config(write_config(tmp_path))
    own = tmp_path / "run" / "tokenizer"
    own.parent.mkdir()
    if damage == "a file":
        own.write_text("")
    else:
        own.mkdir()
        text = {"empty": None, "cut short": '{"version": ', "nested": "[" * 100_000}[damage]
        if text is not None:
            (own / "tokenizer.json").write_text(text)
    for way in WAYS:
        with pytest.raises(ClipkitError, match="run/tokenizer: the run's tokenizer cannot") as told:
            way(config)
        assert told.value.exit_code == 4


@pytest.mark.parametrize("pid", ["-1", "0", "1e400", "1e30", "[" * 100_000])
def test_a_lock_with_an_absurd_owner_is_held_by_no_one_that_can_be_named(
    tmp_path: Path, pid: str
) -> None:
    text = f'{{"host": {json.dumps(socket.gethostname())}, "born": "1", "pid": {pid}}}'
    (tmp_path / "lock.json").write_text(text)
    assert owner_of(tmp_path / "lock.json") == "a process that cannot be named"
    (tmp_path / "run").mkdir()
    (tmp_path / "lock.json").rename(tmp_path / "run" / "lock.json")
    with pytest.raises(RunRefused, match="a process that cannot be named trains in this folder"):
        loop.train(load_config(write_config(tmp_path)))


def test_a_run_that_is_stopped_before_it_saved_does_not_say_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "count_skipped", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Preempted, match=r"SIGTERM before anything was saved; .* to begin again"):
        loop.train(load_config(write_config(tmp_path, data__evaluate={})))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    "key", ["output", "model.pretrained", "preprocess.tokenizer", "data.train.class_names"]
)
def test_an_empty_value_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ClipkitError, match=f"^{key}: it is empty"):
        load_config(write_config(tmp_path), [f"{key}=''"])


def test_the_model_that_a_run_begins_with_is_there_before_it(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path, train__steps=1, optim__lr=1e-12))
    before = clipkit.build_encoder(config)
    assert not (tmp_path / "run").exists()
    after = clipkit.load(loop.train(config), device="cpu")
    embeds = [encoder.encode_text(["red apple", "dog"]) for encoder in (before, after)]
    np.testing.assert_allclose(*embeds, atol=1e-4)
    assert before.scale == pytest.approx(1 / config.loss.init_temperature, rel=1e-4)

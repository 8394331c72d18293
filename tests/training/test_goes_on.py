"""What a run may go on as: with changes that are allowed, and what it was trained with."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import ROOT
from safetensors.torch import load_file
from test_run import losses, weights, write_config

import clipkit.training.loop as loop
from clipkit.config import load_config
from clipkit.errors import CheckpointError, DataError, RunRefused
from clipkit.training.convert import convert
from clipkit.training.failpoint import failpoint
from clipkit.training.samples import count_skipped
from clipkit.types import Batch, Skip

MUON: dict[str, Any] = {"optim": {"name": "muon", "lr": 1e-3, "warmup_steps": 2}}


class Cut(Exception):
    """The end of a run, where a test wants it."""


def cut(config: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains until a step, and no further."""

    def here(name: str) -> None:
        if name == f"step-{step}":
            raise Cut
        failpoint(name)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "failpoint", here)
        with pytest.raises(Cut):
            loop.train(load_config(config))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of nine steps by Muon, ended after the sixth was saved."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        cut(write_config(folder, **MUON, data__evaluate={}), 7, patch)
    status = json.loads((folder / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["message"]) == ("failed", 1, "Cut: ")
    return folder


@pytest.mark.parametrize(
    ("error", "code"),
    [(OSError(5, "Input/output error"), 4), (MemoryError(), 2), (RuntimeError("odd"), 1)],
)
def test_the_status_has_the_exit_code_of_what_nobody_thought_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(loop, "failpoint", fail)
    with pytest.raises(type(error)):
        loop.train(load_config(write_config(tmp_path, data__evaluate={})))
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", code)


@pytest.fixture
def again(begun: Path, tmp_path: Path) -> Any:
    """The same run in a folder of its own: its config, with changes."""
    shutil.copytree(begun / "run", tmp_path / "run")

    def config(**changes: Any) -> Any:
        return load_config(write_config(tmp_path, **{**MUON, "data__evaluate": {}, **changes}))

    return config


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("model.freeze", {"model__freeze": "vision"}),
        ("optim", {"optim": {"lr": 1e-3, "warmup_steps": 2}}),
        ("loss", {"loss": {"kind": "sigmoid"}}),
    ],
    ids=["frozen", "adamw", "sigmoid"],
)
def test_a_change_that_is_allowed_goes_on_to_the_end(
    again: Any, tmp_path: Path, key: str, changes: dict[str, Any]
) -> None:
    before = weights(tmp_path / "run" / "checkpoints" / "step-000006")
    loop.train(again(**changes), allow_change=[key])
    after = weights(tmp_path / "run")
    same = {name for name in after if after[name].equal(before[name])}
    frozen = {name for name in after if "vision_model" in name}
    assert frozen <= same if key == "model.freeze" else not frozen & same


def test_a_loss_without_a_bias_goes_on_from_one_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(write_config(tmp_path, loss={"kind": "sigmoid"}, data__evaluate={}), 4, monkeypatch)
    config = load_config(write_config(tmp_path, data__evaluate={}))
    loop.train(config, allow_change=["loss"])
    assert json.loads((tmp_path / "run/model/config.json").read_text())["logit_bias"] is None


def test_what_a_loss_learns_is_saved_as_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut(write_config(tmp_path, loss={"kind": "sigmoid"}, data__evaluate={}), 4, monkeypatch)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000003"
    learned = load_file(checkpoint / "objectives.safetensors")
    config = json.loads((checkpoint / "model" / "config.json").read_text())
    assert learned.keys() == {"logit_bias"}
    assert float(learned["logit_bias"]) == config["logit_bias"] != -10
    names = {name.split("::")[1] for name in load_file(checkpoint / "optimizer.safetensors")}
    assert names == {"step", "exp_avg", "exp_avg_sq"}


def test_a_run_that_clipkit_0_1_0_began_goes_on_as_it_would_have_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint has the bias of the logits among the optimizer's tensors."""
    old = Path(__file__).with_name("run_of_0_1_0")
    shutil.copytree(old / "run", tmp_path / "run")
    assert not list(tmp_path.rglob("objectives.safetensors"))
    monkeypatch.chdir(ROOT)
    config = load_config(old / "config.yaml", [f"output={tmp_path / 'run'}"])
    loop.train(config)
    expected = json.loads((old / "expected.json").read_text())
    found = losses(tmp_path / "run")
    assert [float.fromhex(found[step]) for step in (3, 4)] == pytest.approx(
        expected["losses"][2:], rel=1e-4
    )
    bias = json.loads((tmp_path / "run/model/config.json").read_text())["logit_bias"]
    assert bias == pytest.approx(expected["logit_bias"], rel=1e-5)
    newest = tmp_path / "run" / "checkpoints" / "step-000004"
    assert (newest / "objectives.safetensors").is_file()


def test_a_start_that_fails_leaves_the_run_to_the_config_it_had(again: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="weights are of another model"):
        loop.train(again(model__embed_dim=64), allow_change=["model.embed_dim"])
    assert loop.train(again()).is_dir()


def test_an_end_that_lies_behind_is_refused(again: Any, tmp_path: Path) -> None:
    shorter = again(train__steps=4)
    with pytest.raises(RunRefused, match="at step 6 already, and would have to end at 4; set"):
        loop.train(shorter, allow_change=["train.steps"])
    assert not (tmp_path / "run" / "model").exists()


def test_another_tokenizer_is_refused(again: Any, tmp_path: Path) -> None:
    path = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text())
    names = sorted(tree["model"]["vocab"], key=tree["model"]["vocab"].get)
    tree["model"]["vocab"] |= {names[100]: 101, names[101]: 100}
    path.write_text(json.dumps(tree))
    with pytest.raises(RunRefused, match="its tokenizer is not the one that it was trained with"):
        loop.train(again())
    assert loop.train(again(), allow_change=["preprocess.tokenizer"]).is_dir()


def test_steps_before_a_fault_of_the_data_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, train__save_every=100, data__evaluate={})
    take = loop.StepBatches.take
    taken = []

    def fail(self: Any) -> Any:
        taken.append(take(self))
        if len(taken) == 6:
            raise DataError("a disk is gone")
        return taken[-1]

    with monkeypatch.context() as patch:
        patch.setattr(loop.StepBatches, "take", fail)
        with pytest.raises(DataError, match="a disk is gone"):
            loop.train(load_config(config))
    latest = tmp_path / "run" / "checkpoints" / "latest"
    assert latest.read_text().strip() == "step-000005"
    whole = write_config(tmp_path / "whole", train__save_every=100, data__evaluate={})
    expected, found = loop.train(load_config(whole)), loop.train(load_config(config))
    a, b = weights(expected.parent), weights(found.parent)
    assert all(a[name].equal(b[name]) for name in a)


def test_a_learned_bias_stands_in_every_checkpoint_and_is_what_goes_on(tmp_path: Path) -> None:
    fast = {"name": "adamw", "lr": 5e-2, "warmup_steps": 2}
    sigmoid = {"kind": "sigmoid", "init_bias": -3.0}
    changes = {"optim": fast, "loss": sigmoid, "data__evaluate": {}, "train__keep": 9}
    run = loop.train(load_config(write_config(tmp_path, **changes, train__ema=0.5))).parent

    def bias(folder: Path) -> float:
        return float(json.loads((folder / "config.json").read_text())["logit_bias"])

    saved = [bias(run / "checkpoints" / f"step-{step:06d}" / "model") for step in (3, 6, 9)]
    assert len(set(saved)) == 3
    convert(run, tmp_path / "converted")
    assert bias(tmp_path / "converted") == bias(run / "model") != saved[-1]
    tuned = yaml.safe_load(write_config(tmp_path / "tuned", **changes).read_text())
    tuned |= {"model": {"pretrained": str(run / "model")}, "train": {**tuned["train"], "steps": 1}}
    tuned["loss"] = {"kind": "sigmoid"}
    tuned["optim"]["lr"] = 1e-9
    (tmp_path / "tuned" / "config.yaml").write_text(yaml.safe_dump(tuned))
    loop.train(load_config(tmp_path / "tuned" / "config.yaml"))
    assert bias(tmp_path / "tuned/run/model") == pytest.approx(bias(run / "model"), abs=1e-6)


def test_a_few_bad_samples_alone_in_a_part_do_not_end_a_run(tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path))
    pixels, ids = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.long)
    bad = Batch(pixels, ids, torch.tensor([False]), ["a"], skipped=[Skip("a.png", "empty caption")])
    counts: Counter[str] = Counter()
    for _ in range(10):
        count_skipped(bad, counts, config)
    with pytest.raises(DataError, match=r"a\.png: empty caption; 11 of 11 samples cannot be used"):
        count_skipped(bad, counts, config)
    counts.clear()
    for _ in range(19):
        config.data.max_skip_share = 0.5  # half of 200 is far
        count_skipped(bad, counts, config)
    with pytest.raises(DataError, match=r"a\.png: empty caption; 20 of 20 samples cannot be used"):
        count_skipped(bad, counts, config)
    config.data.max_skip_share = 1.0
    for _ in range(500):
        count_skipped(bad, counts, config)

"""Saving in the background, sharded checkpoints, and ``clipkit convert``: kills, full disks,
signals and other numbers of ranks, through the real command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Run
from safetensors.torch import load_file
from test_kills import LONG, Started, start  # noqa: F401
from test_run import STEPS, losses, weights, write_config

SHARDED = {"train__distributed": "fsdp", "train__checkpoint": "sharded"}
PLAIN = {"model__vision__dropout": 0.0, "model__text__dropout": 0.0}  # dropout differs by rank


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def two(clipkit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on two ranks, saved in parts."""
    folder = tmp_path_factory.mktemp("two")
    result = clipkit("train", write_config(folder, **SHARDED, **PLAIN), ranks=2)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def half(clipkit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed when six steps were saved by two ranks."""
    folder = tmp_path_factory.mktemp("half")
    config = write_config(folder, **SHARDED, **PLAIN)
    clipkit("train", config, ranks=2, env={"CLIPKIT_FAILPOINT": "save-6-renamed:kill"})
    assert "step-000006" in checkpoints(folder / "run")
    return folder / "run"


def assert_about_equal(first: Path, second: Path) -> None:
    a, b = losses(first), losses(second)
    assert a.keys() == b.keys()
    for step in a:
        assert float.fromhex(a[step]) == pytest.approx(float.fromhex(b[step]), rel=1e-4)
    expected, found = weights(first), weights(second)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_each_rank_writes_its_part_and_no_file_is_whole(two: Path) -> None:
    newest = two / "checkpoints" / f"step-{STEPS:06d}"
    assert not (newest / "optimizer.safetensors").exists()
    assert not (newest / "model" / "model.safetensors").exists()
    index = json.loads((newest / "index.json").read_text())
    manifest = json.loads((newest / "manifest.json").read_text())["files"]
    for name in ("model", "optimizer"):
        own = [load_file(newest / f"rank-{rank:05d}" / f"{name}.safetensors") for rank in (0, 1)]
        assert all(f"rank-{rank:05d}/{name}.safetensors" in manifest for rank in (0, 1))
        for key, told in index[name].items():
            held = sum(rank[key].numel() for rank in own if key in rank)
            assert held == torch.Size(told["shape"]).numel(), key
        assert 0.4 < sum(t.numel() for t in own[1].values()) / sum(
            t.numel() for rank in own for t in rank.values()
        ) < 0.6  # fmt: skip
    files = {str(p.relative_to(newest)) for p in newest.rglob("*") if p.is_file()}
    assert files == {*manifest, "manifest.json"}
    assert not [name for name in files if Path(name).suffix in {".bin", ".pt", ".pkl", ".distcp"}]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "how", "checkpoint"),
    [
        (2, "fsdp", "sharded"),
        (1, "fsdp", "sharded"),
        pytest.param(3, "fsdp", "sharded", marks=pytest.mark.long),
        (2, "ddp", "whole"),
    ],
)
def test_parts_go_on_with_other_ranks_and_whole_weights(
    clipkit: Run, two: Path, half: Path, tmp_path: Path, ranks: int, how: str, checkpoint: str
) -> None:
    shutil.copytree(half, tmp_path / "run")
    config = write_config(tmp_path, **PLAIN, train__distributed=how, train__checkpoint=checkpoint)
    resumed = clipkit("train", config, ranks=ranks)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step 6" in resumed.stderr
    assert_about_equal(two, tmp_path / "run")


@pytest.mark.slow
def test_whole_ones_go_on_in_parts(clipkit: Run, two: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, **PLAIN)
    clipkit("train", config, env={"CLIPKIT_FAILPOINT": "save-9-begun:kill"})
    config = write_config(tmp_path, **PLAIN, **SHARDED)
    resumed = clipkit("train", config, ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step 6" in resumed.stderr
    assert_about_equal(two, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failpoint", "step"),
    [
        *(
            pytest.param(where, 3, marks=pytest.mark.long)
            for where in ("save-6-copied", "save-6-begun", "save-6-synced", "save-6-written-1")
        ),
        ("save-9-latest", 9),
    ],
)
def test_a_kill_in_a_sharded_save_leaves_one_to_go_on_from(
    clipkit: Run, two: Path, tmp_path: Path, failpoint: str, step: int
) -> None:
    config = write_config(tmp_path, **SHARDED, **PLAIN)
    killed = clipkit("train", config, ranks=2, env={"CLIPKIT_FAILPOINT": f"{failpoint}:kill"})
    assert killed.returncode != 0
    latest = (tmp_path / "run" / "checkpoints" / "latest").read_text().strip()
    assert latest == f"step-{step:06d}"
    resumed = clipkit("train", config, ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on from step {step}" in resumed.stderr
    assert not [name for name in checkpoints(tmp_path / "run") if name.endswith(".tmp")]
    assert_about_equal(two, tmp_path / "run")


@pytest.mark.slow
def test_a_damaged_part_is_passed_over_by_all_ranks(
    clipkit: Run, two: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, **SHARDED, **PLAIN)
    clipkit("train", config, ranks=2, env={"CLIPKIT_FAILPOINT": "save-9-begun:kill"})
    part = tmp_path / "run/checkpoints/step-000006/rank-00001/optimizer.safetensors"
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)
    resumed = clipkit("train", config, ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert "rank-00001/optimizer.safetensors is not as it was written" in resumed.stderr
    assert "going on from step 3" in resumed.stderr
    assert_about_equal(two, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failpoint", "ranks"),
    [pytest.param("save-3-written", 0, marks=pytest.mark.long), ("save-3-written-1", 2)],
)
def test_a_full_disk_in_the_background_ends_all_ranks_in_one_sentence(
    clipkit: Run, tmp_path: Path, failpoint: str, ranks: int
) -> None:
    changes = SHARDED if ranks else {}
    config = write_config(tmp_path, **changes, train__steps=100_000, train__save_every=3)
    env = {"CLIPKIT_FAILPOINT": f"{failpoint}:full"}
    result = clipkit("train", config, ranks=ranks, env=env)
    told = [line for line in result.stderr.splitlines() if "cannot be written" in line]
    assert len(told) == 1, result.stderr
    assert "step-000003: the checkpoint cannot be written ([Errno 28] No space left" in told[0]
    assert "clipkit/training" not in result.stderr  # no traceback of ours
    assert result.returncode == (4 if ranks == 0 else 1)  # torchrun has its own
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 4
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_signal_waits_for_what_is_being_saved(start: Any, tmp_path: Path, ranks: int) -> None:  # noqa: F811
    changes = SHARDED if ranks == 2 else {}
    config = write_config(
        tmp_path, **{**LONG, "train__save_every": 4}, **changes, data__evaluate={},
        data__workers=1,
    )  # fmt: skip
    run = start(config, ranks=ranks, env={"CLIPKIT_FAILPOINT": "save-4-synced:slow"})
    run.wait_for_steps(6)  # a record of the start and of five steps: the fourth is being saved
    assert checkpoints(run.run) == ["step-000004.tmp"]
    trainers = run.trainers() if ranks == 2 else [run.process.pid]
    os.kill(trainers[0], signal.SIGTERM)
    said = run.end()
    assert 'Traceback (most recent call last):\n  File "/work' not in said
    assert run.status()["exit_code"] == 75, said
    last = max(losses(run.run))
    assert last < 12  # the next save would have waited
    assert checkpoints(run.run) == sorted({"latest", "step-000004", f"step-{last:06d}"})
    assert (run.run / "checkpoints/latest").read_text().strip() == f"step-{last:06d}"
    assert not run.left()


@pytest.mark.slow
def test_a_disk_that_fills_in_a_later_save_leaves_the_one_before(
    clipkit: Run, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE, set from outside in the middle of a run: what a full disk is to a process."""
    if shutil.which("prlimit") is None:
        pytest.skip("limiting another process takes prlimit")
    config = write_config(
        tmp_path, **{**LONG, "train__save_every": 40}, data__evaluate={}, train__log_every=1
    )
    run = Started(config)
    deadline = time.monotonic() + 120
    while not (run.run / "checkpoints" / "latest").exists():
        assert run.process.poll() is None, run.said.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    subprocess.run(["prlimit", f"--pid={run.process.pid}", "--fsize=600000"], check=True)
    said = run.end()
    assert run.process.returncode == 4, said
    assert "the checkpoint cannot be written" in said
    assert "Traceback" not in said
    (latest,) = (name for name in checkpoints(run.run) if name != "latest")
    assert (run.run / "checkpoints/latest").read_text().strip() == latest
    steps = int(latest[5:]) + 2
    resumed = clipkit("train", config, f"train.steps={steps}", "--allow-change", "train.steps")
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on from {latest[:4]} {int(latest[5:])}" in resumed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sharded", "whole"])
def test_convert_makes_a_folder_that_transformers_loads(
    clipkit: Run, two: Path, tmp_path: Path, kind: str
) -> None:
    run = two
    if kind == "whole":
        assert clipkit("train", write_config(tmp_path)).returncode == 0
        run = tmp_path / "run"
    out = tmp_path / "out"
    result = clipkit("convert", run, out)
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{run}/checkpoints/step-{STEPS:06d} → {out}\n"
    expected, found = weights(run), load_file(out / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    names = {p.name for p in (run / "model").iterdir()}
    assert {p.name for p in out.iterdir()} == names
    from transformers import AutoModel, AutoProcessor

    _, told = AutoModel.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"]
    AutoProcessor.from_pretrained(out)
    again = clipkit("convert", run / "checkpoints" / f"step-{STEPS:06d}", out)
    assert again.returncode == 4
    assert f"clipkit: {out}: it is there already" in again.stderr


@pytest.mark.slow
def test_convert_refuses_damage_and_what_is_no_checkpoint(
    clipkit: Run, two: Path, tmp_path: Path
) -> None:
    shutil.copytree(two, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / f"step-{STEPS:06d}"
    (newest / "rank-00001" / "model.safetensors").unlink()
    refused = clipkit("convert", newest, tmp_path / "out")
    assert refused.returncode == 4
    assert f"{newest}: rank-00001/model.safetensors is missing" in refused.stderr
    before = clipkit("convert", tmp_path / "run", tmp_path / "out")
    assert before.returncode == 0, before.stderr
    assert "damaged and passed over" in before.stderr
    assert "step-000006 →" in before.stdout
    for source, why in (
        (tmp_path / "run" / "model", "its weights are safetensors already"),
        (newest / "rank-00000", "no checkpoint (there is no manifest.json)"),
    ):
        nothing = clipkit("convert", source, tmp_path / "other")
        assert nothing.returncode == 4
        assert why in nothing.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["train.checkpoint=sharded"], "sharded goes with train.distributed=fsdp"),
        (["train.offload=true"], "train.offload: it goes with train.distributed=fsdp"),
        (
            ["train.offload=true", "train.distributed=fsdp"],
            "train.offload: this run is on the CPU, and has no accelerator",
        ),
    ],
)
def test_combinations_that_make_no_sense_are_refused(
    clipkit: Run, tmp_path: Path, changes: list[str], message: str
) -> None:
    result = clipkit("train", write_config(tmp_path), *changes)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_weights_of_another_model_are_refused(clipkit: Run, two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "run")
    config = write_config(tmp_path, **PLAIN, model__embed_dim=48)
    result = clipkit(
        "train", config, "train.steps=12", "--allow-change", "model", "--allow-change",
        "train.steps",
    )  # fmt: skip
    assert result.returncode == 4, result.stderr
    assert "its weights are of another model" in result.stderr
    assert "Traceback" not in result.stderr

"""Whole runs through the real command line: resume, ranks, launchers, mistakes."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import ENVIRONMENT, ROOT, Run, remarks
from PIL import Image
from safetensors.torch import load_file
from trajectory import STEPS, changed

from clipkit.cli import main


def write_config(folder: Path, **changes: Any) -> Path:
    """A run of nine steps of a very small model on 221 emoji; a few seconds on a CPU."""
    own = {
        "output": str(folder / "run"),
        "seed": 0,
        "data.evaluate": {"held-out": str(ROOT / "data" / "emoji" / "held-out-*.tar")},
        "model.text.layers": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(changed(own, changes)))
    return path


def said(result: subprocess.CompletedProcess[str]) -> str:
    """Stderr in one line: what is long is wrapped."""
    return " ".join(result.stderr.split())


def losses(run: Path) -> dict[int, str]:
    """The loss of every step, to the last bit."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in records if r["kind"] == "train"]
    assert len(train) == len({r["step"] for r in train}), "a step is recorded twice"
    return {r["step"]: float(r["loss"]).hex() for r in train}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def whole(clipkit: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run that others are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    result = clipkit("train", write_config(folder))
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.mark.slow
def test_a_run_leaves_what_the_readme_says(whole: Path) -> None:
    assert sorted(losses(whole)) == list(range(1, STEPS + 1))
    status = json.loads((whole / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, STEPS)
    kept = sorted(p.name for p in (whole / "checkpoints").glob("step-*"))
    assert kept == ["step-000006", "step-000009"]
    assert (whole / "checkpoints" / "latest").read_text().strip() == "step-000009"
    files = {p.name for p in (whole / "model").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"} <= files
    assert "| held-out | text → image | " in (whole / "model" / "README.md").read_text()
    assert not [p for p in whole.rglob("*") if p.suffix in {".tmp", ".bin", ".pt", ".pkl"}]
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["split"], last["num_images"]) == ("eval", "held-out", 221)
    assert {"text_to_image_R@1", "text_to_image_R@10", "image_to_text_median_rank"} <= set(last)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failpoint", "workers", "method"),
    [
        ("step-5", 0, "fork"),
        ("step-5", 2, "fork"),
        pytest.param("step-2", 2, "spawn", marks=pytest.mark.long),
        pytest.param("save-6-copied", 0, "fork", marks=pytest.mark.long),
        ("save-6-written", 0, "fork"),
        pytest.param("save-6-synced", 2, "fork", marks=pytest.mark.long),
        ("save-6-renamed", 0, "fork"),
    ],
)
def test_resume_after_kill_is_bit_identical(
    clipkit: Run, whole: Path, tmp_path: Path, failpoint: str, workers: int, method: str
) -> None:
    config = write_config(tmp_path, data__workers=workers)
    env = {"CLIPKIT_START_METHOD": method}
    killed = clipkit("train", config, env={**env, "CLIPKIT_FAILPOINT": f"{failpoint}:kill"})
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = clipkit("train", config, env=env)
    assert resumed.returncode == 0, resumed.stderr
    if failpoint.startswith("save"):  # what was saved before is on the disk by then
        step = 6 if failpoint == "save-6-renamed" else 3
        assert f"going on from step {step}" in resumed.stderr
    assert losses(tmp_path / "run") == losses(whole)
    expected, found = weights(whole), weights(tmp_path / "run")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(
    clipkit: Run, whole: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    clipkit("train", config, env={"CLIPKIT_FAILPOINT": "save-9-begun:kill"})
    newest = tmp_path / "run" / "checkpoints" / "step-000006"
    weights_file = newest / "model" / "model.safetensors"
    data = bytearray(weights_file.read_bytes())
    data[-5] ^= 1
    weights_file.write_bytes(data)
    resumed = clipkit("train", config)
    assert resumed.returncode == 0, resumed.stderr
    assert "model.safetensors is not as it was written" in said(resumed)
    assert "going on from step 3" in resumed.stderr
    assert losses(tmp_path / "run") == losses(whole)


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(clipkit: Run, whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    again = clipkit("train", write_config(whole.parent))
    assert again.returncode == 0, again.stderr
    assert f"all {STEPS} steps are done" in again.stdout
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_changed_config_is_shown_and_refused_unless_allowed(
    clipkit: Run, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    # The copy's config still names the first folder: output itself may change.
    config = write_config(tmp_path)
    free = ["train.log_every=2", "train.keep=3", "data.workers=1", "train.save_in_background=no"]
    fixed = ["optim.lr=5e-4", "train.batch_size=24", "model.embed_dim=16", "data.lanes=4", "seed=1"]
    refused = clipkit("train", config, *free, *fixed)
    assert refused.returncode == 4
    assert "optim.lr: 0.001 → 0.0005" in refused.stderr
    for change in fixed:
        assert f"--allow-change {change.split('=')[0]}" in refused.stderr
    for change in free:
        assert change.split("=")[0] not in refused.stderr
    assert "Traceback" not in refused.stderr
    allowed = clipkit("train", config, "optim.lr=5e-4", "--allow-change", "optim.lr")
    assert allowed.returncode == 0, allowed.stderr


@pytest.mark.slow
# torchrun is what test_equivalence.py starts its ranks with.
@pytest.mark.parametrize(
    "launcher", [pytest.param("torchrun", marks=pytest.mark.long), "accelerate"]
)
def test_two_ranks_equal_one_process(clipkit: Run, tmp_path: Path, launcher: str) -> None:
    # Dropout differs by rank; without it, only the order of sums does.
    plain = {"model__vision__dropout": 0.0, "model__text__dropout": 0.0}
    one = clipkit("train", write_config(tmp_path / "one", **plain))
    assert one.returncode == 0, one.stderr
    config = write_config(tmp_path / "two", **plain)
    if launcher == "torchrun":
        two = clipkit("train", config, ranks=2)
    else:
        # --multi_gpu is what makes it start several processes; without a GPU they use gloo.
        accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
        options = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no"]
        two = clipkit("train", config, launcher=[*accelerate, *options, "--dynamo_backend=no"])
    assert two.returncode == 0, two.stderr
    assert "2 × cpu" in two.stderr
    a, b = losses(tmp_path / "one" / "run"), losses(tmp_path / "two" / "run")
    assert a.keys() == b.keys()
    for step in a:
        assert float.fromhex(a[step]) == pytest.approx(float.fromhex(b[step]), rel=2e-5)
    first, second = weights(tmp_path / "one" / "run"), weights(tmp_path / "two" / "run")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_mistake_that_two_ranks_meet_is_said_once(clipkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, data__train="no/such/folder")
    result = clipkit("train", config, ranks=2)
    assert result.stderr.count("no/such/folder: no such file or folder") == 1
    assert "rank 1" not in result.stderr.split("torch.distributed")[0]
    assert "clipkit/training" not in result.stderr  # no traceback of ours; torchrun has its own


@pytest.mark.slow
def test_ranks_may_change_in_the_middle_of_a_run(clipkit: Run, tmp_path: Path) -> None:
    plain = {"model__vision__dropout": 0.0, "model__text__dropout": 0.0}
    one = clipkit("train", write_config(tmp_path / "one", **plain))
    assert one.returncode == 0, one.stderr
    config = write_config(tmp_path / "two", **plain)
    clipkit("train", config, ranks=2, env={"CLIPKIT_FAILPOINT": "save-6-begun:kill"})
    resumed = clipkit("train", config)
    assert resumed.returncode == 0, resumed.stderr
    assert "going on from step 3" in resumed.stderr
    a, b = losses(tmp_path / "one" / "run"), losses(tmp_path / "two" / "run")
    assert a.keys() == b.keys()
    for step in a:
        assert float.fromhex(a[step]) == pytest.approx(float.fromhex(b[step]), rel=2e-5)


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_the_run_goes_on(clipkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=5000, train__save_every=3, data__workers=2)
    process = subprocess.Popen(
        [sys.executable, "-m", "clipkit", "train", str(config)],
        cwd=ROOT,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step 5/"):
            os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    assert "Traceback" not in "".join(lines)
    assert "interrupted" in lines[-1]
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no loader worker is left


MISTAKES = [
    (["missing.yaml"], 2, "missing.yaml: no such config file"),
    (["{config}", "optim.lrr=1"], 2, "optim.lrr: no such key. Did you mean optim.lr?"),
    (["{config}", "train.batch_size=many"], 2, "train.batch_size: expected int, got many"),
    (["{config}", "--optim.lr=1"], 2, "Keys of the config are written without dashes: optim.lr=1"),
    (["{config}", "train.trackers=[tensorbord]"], 2, "tensorbord; accelerate knows"),
    (["{config}", "train.trackers=[clearml]"], 2, "clearml is not installed"),
    (["{config}", "data.train=no/such/folder"], 3, "no/such/folder"),
    (["{config}", "data.train={empty}"], 3, "{empty}"),
    (["{config}", "data.train={texts}"], 3, "{texts}"),
    (["{config}", "train.batch_size=500"], 2, "500 is more than the 221 samples"),
    (["{config}", "model.pretrained=no/such/model"], 4, "no/such/model"),
    (["{config}", "train.batch_size=500", "--dry-run"], 2, "500 is more than the 221 samples"),
]


def assert_one_line(
    run: Callable[[list[str]], tuple[int, str]],
    folder: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    """A mistake ends ``clipkit train`` in one line that says what it is.

    Args:
        run: gives the exit code of a command, and what it wrote to stderr.
        folder: for the run's config.
        arguments: of ``clipkit train``.
        code: the exit code.
        message: part of the line.
    """
    (folder / "empty").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "notes.txt").write_text("no image")
    (folder / "texts" / "table.xlsx").write_text("no image")
    names = {
        "config": str(write_config(folder)),
        "empty": str(folder / "empty"),
        "texts": str(folder / "texts"),
    }
    ended, stderr = run(["train", *(argument.format(**names) for argument in arguments)])
    assert ended == code, stderr
    lines = [line for line in remarks(stderr) if line.startswith("clipkit: ")]
    lines = [line for line in lines if "has no effect" not in line]  # said before the mistake
    assert len(lines) == 1, stderr
    assert message.format(**names) in lines[0]
    assert "Traceback" not in stderr


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
def test_a_mistake_ends_in_one_line_and_its_exit_code(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(ROOT)
    assert_one_line(
        lambda command: (main(command), capsys.readouterr().err), tmp_path, arguments, code, message
    )


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "code", "message"), [MISTAKES[1], MISTAKES[8], MISTAKES[10]])
def test_a_process_ends_with_a_mistake_in_one_line_too(
    clipkit: Run, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    def run(command: list[str]) -> tuple[int, str]:
        result = clipkit(*command)
        return result.returncode, result.stderr

    assert_one_line(run, tmp_path, arguments, code, message)


@pytest.mark.slow
def test_images_that_cannot_be_read_are_counted_and_too_many_end_the_run(
    clipkit: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (40, 40), (6 * i, 100, 50)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"colour number {i}")
    (folder / "3.png").write_text("<html>not found</html>")
    (folder / "7.txt").write_text("  ")
    small = {
        "data__train": str(folder), "data__evaluate": {}, "train__batch_size": 20,
        "train__steps": 4, "preprocess__vocab_size": 600,
    }  # fmt: skip
    config = write_config(tmp_path, **small)
    result = clipkit("train", config, "data.max_skip_share=0.1")
    assert result.returncode == 0, result.stderr
    records = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    # Two epochs of forty, two bad samples in each.
    assert records[-1]["skipped"] == 4, result.stderr
    assert sum(records[-1]["skipped_by_reason"].values()) == 4

    for i in range(0, 40, 2):
        (folder / f"{i}.png").write_text("<html>not found</html>")
    shutil.rmtree(tmp_path / "run")
    result = clipkit("train", config, "data.max_skip_share=0.1")
    assert result.returncode == 3, result.stderr
    assert "samples cannot be used" in result.stderr
    assert "max_skip_share" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 3


@pytest.mark.slow
def test_a_damaged_shard_ends_a_run_before_it_starts_unless_it_may_be_lost(
    clipkit: Run, tmp_path: Path
) -> None:
    members: list[tuple[str, bytes]] = []
    for i in range(60):
        picture = io.BytesIO()
        Image.new("RGB", (40, 40), (4 * i, 100, 50)).save(picture, "PNG")
        members += [(f"{i:03d}.png", picture.getvalue()), (f"{i:03d}.txt", b"colour %d" % i)]
    shard = tmp_path / "train-000.tar"
    with tarfile.open(shard, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2 + 100])
    config = write_config(
        tmp_path, data__train=str(shard), data__evaluate={}, train__batch_size=16,
        train__steps=2, preprocess__vocab_size=600,
    )  # fmt: skip
    refused = clipkit("train", config)
    assert refused.returncode == 3, refused.stderr
    assert f"{shard}: it is cut short" in refused.stderr
    assert "data.max_loss_share=0.001" in refused.stderr
    assert "Traceback" not in refused.stderr
    allowed = clipkit("train", config, "data.max_loss_share=0.1")
    assert allowed.returncode == 0, allowed.stderr
    assert f"{shard}: it is cut short" in said(allowed)
    # The order of other data cannot go on where that of these stopped.
    shard.write_bytes(whole)
    other = clipkit("train", config, "train.steps=4", "--allow-change", "train.steps")
    assert other.returncode == 4, other.stderr
    assert "these are not the samples" in other.stderr
    assert "--allow-change data.train" in other.stderr


def test_print_config_prints_the_whole_config_and_trains_nothing(
    clipkit: Run, tmp_path: Path
) -> None:
    result = clipkit("train", write_config(tmp_path), "optim.lr=0.25", "--print-config")
    assert result.returncode == 0, result.stderr
    tree = yaml.safe_load(result.stdout)
    assert tree["optim"]["lr"] == 0.25
    assert tree["data"]["lanes"] == 8
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_dry_run_says_what_the_run_would_take(clipkit: Run, tmp_path: Path) -> None:
    result = clipkit("train", write_config(tmp_path), "--dry-run")
    assert result.returncode == 0, result.stderr
    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert rows["samples"].startswith("221 in 1 shards")
    assert rows["steps"].startswith("9 of 48 pairs")
    assert "(48, 3, 32, 32)" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_terminal_shows_a_bar_with_the_numbers(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "clipkit", "train", str(write_config(tmp_path))],
        cwd=ROOT,
        env={**ENVIRONMENT, "OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        stderr=follower,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:  # how Linux says that the other side has closed
            break
        if not data:
            break
        shown += data
    os.close(leader)
    assert process.wait(60) == 0
    last = shown.decode().split("\r")
    bar = next(line for line in reversed(last) if f"{STEPS}/{STEPS}" in line)
    for word in ("train", "loss", "img/s", "MFU", "data", "eta"):
        assert word in bar
    assert max(len(line) for part in last for line in remarks(part)) <= 100


@pytest.mark.slow
def test_too_little_shared_memory_ends_the_run_in_one_line(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("making /dev/shm small takes root and unshare")
    config = write_config(tmp_path, data__workers=2)
    command = f"{sys.executable} -m clipkit train {config}"
    small = "mount -t tmpfs -o size=64k tmpfs /dev/shm"
    result = subprocess.run(
        ["unshare", "-m", "bash", "-c", f"{small} || exit 99; {command}"],
        cwd=ROOT, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    if result.returncode in (1, 99) and ("unshare" in result.stderr or "mount" in result.stderr):
        pytest.skip("this machine does not let /dev/shm be made small")
    assert result.returncode == 3, result.stderr
    assert "/dev/shm is full or too small" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on(clipkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    whole = f"{sys.executable} -m clipkit train {config}"
    # No file may grow beyond 768 KB: what a save meets on a full disk.
    result = subprocess.run(
        ["bash", "-c", f"ulimit -f 768; {whole}"],
        cwd=ROOT, env={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 4, result.stderr
    assert "step-000003: the checkpoint cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 4
    assert not list((tmp_path / "run/checkpoints").glob("*.tmp"))
    resumed = clipkit("train", config)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_training_that_is_not_finite_ends_with_exit_5(
    clipkit: Run, tmp_path: Path, precision: str
) -> None:
    config = write_config(tmp_path, train__steps=40, train__save_every=100, data__evaluate={})
    result = clipkit(
        "train", config, "optim.lr=1e30", "optim.grad_clip=null", f"train.precision={precision}"
    )
    assert result.returncode == 5, result.stderr
    assert "10 steps in a row had a gradient that is not finite" in result.stderr
    assert "Traceback" not in result.stderr
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 5
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
@pytest.mark.parametrize("text", [b"", b"optim: [", b"\xff\xfe"])
def test_a_damaged_config_of_the_run_is_refused_by_name(
    clipkit: Run, tmp_path: Path, text: bytes
) -> None:
    config = write_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_bytes(text)
    result = clipkit("train", config)
    assert result.returncode == 4, result.stderr
    assert "run/config.yaml: what this run was started with cannot be read" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, pytest.param(2, marks=pytest.mark.long)])
def test_weights_that_diverged_are_never_saved(clipkit: Run, tmp_path: Path, ranks: int) -> None:
    config = write_config(tmp_path, data__evaluate={})
    changes = ["train.distributed=fsdp", "train.checkpoint=sharded", "train.steps=6"]
    sound = clipkit("train", config, *changes, ranks=ranks)
    assert sound.returncode == 0, sound.stderr
    shutil.rmtree(tmp_path / "run" / "model")
    folder = tmp_path / "run" / "checkpoints"
    before = sorted(path.name for path in folder.iterdir())
    # Three steps more: too few for ten in a row, and enough to end.
    changes = [*changes[:2], "train.steps=9", "optim.lr=1e30", "optim.grad_clip=null"]
    allowed = ["--allow-change", "train.steps", "--allow-change", "optim"]
    result = clipkit("train", config, *changes, *allowed, ranks=ranks)
    assert said(result).count("step 9: the run ends in steps whose gradient is not finite") == 1
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 5
    assert sorted(path.name for path in folder.iterdir()) == before
    # Weights that one step took out of range, before any gradient shows it.
    result = clipkit(
        "train", config, *changes, "train.steps=7", "optim.weight_decay=1e30", *allowed, ranks=ranks
    )
    assert said(result).count("step 7: the weights are not finite, so they are not saved") == 1
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 5
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_a_mistake_that_was_put_right_does_not_stand_in_the_way(
    clipkit: Run, tmp_path: Path
) -> None:
    config = write_config(tmp_path)
    wrong = clipkit("train", config, "preprocess.vocab_size=300")
    assert wrong.returncode == 2, wrong.stderr
    right = clipkit("train", config)
    assert right.returncode == 0, right.stderr


@pytest.mark.slow
def test_a_mixture_is_trained_on_and_its_shares_are_told(clipkit: Run, tmp_path: Path) -> None:
    data = ROOT / "data" / "emoji"
    config = write_config(tmp_path, data__train=None, train__steps=3)
    tree = yaml.safe_load(config.read_text())
    del tree["data"]["train"]
    tree["data"]["mix"] = {
        "first": {"path": str(data / "validation-*.tar"), "weight": 3},
        "second": {
            "path": str(data / "held-out-*.tar"),
            "weight": 1,
            "filter": {"max_caption": 30},
        },
    }
    config.write_text(yaml.safe_dump(tree))
    result = clipkit("train", config)
    assert result.returncode == 0, result.stderr
    assert "mixture: first 75.00%" in said(result)
    assert "second 25.00%" in said(result)
    assert "filtered: caption too long" in said(result)

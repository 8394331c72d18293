"""Signals, locks and dead ranks, through the real command line under torchrun and gloo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import ENVIRONMENT, ROOT, Run
from test_run import losses, said, write_config

ALONE = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
LONG = {"train__steps": 100_000, "train__save_every": 100_000}


class Started:
    """A run in processes of its own."""

    def __init__(self, config: Path, ranks: int = 1, env: dict[str, str] | None = None) -> None:
        command = [sys.executable]
        if ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command += [str(ranks)]
        self.run = config.parent / "run"
        self.said = config.parent / "said.txt"  # a pipe that no one reads would fill up
        self.process = subprocess.Popen(
            [*command, "-m", "clipkit", "train", str(config)], cwd=ROOT,
            env={**ALONE, **(env or {})}, stderr=self.said.open("w"), start_new_session=True,
        )  # fmt: skip

    def wait_for_steps(self, count: int) -> None:
        metrics = self.run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text().count("\n") >= count):
            assert self.process.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def trainers(self) -> list[int]:
        """The process of each rank, in their order."""
        found: dict[int, int] = {}
        for path in Path("/proc").iterdir():
            if not path.name.isdigit():
                continue
            try:
                group = os.getpgid(int(path.name))
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                environ = (path / "environ").read_bytes().split(b"\0")
            except (OSError, ProcessLookupError):
                continue
            if parent == self.process.pid and group:
                ranks = [int(e[5:]) for e in environ if e.startswith(b"RANK=")]
                if ranks:
                    found[ranks[0]] = int(path.name)
        return [found[rank] for rank in sorted(found)]

    def end(self, timeout: float = 90) -> str:
        self.process.wait(timeout)
        return self.said.read_text()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return status

    def left(self) -> list[str]:
        """Processes of the run that are still there."""
        found = []
        for path in Path("/proc").iterdir():
            try:
                if path.name.isdigit() and os.getsid(int(path.name)) == self.process.pid:
                    found += [path.name] if alive(int(path.name)) else []
            except (OSError, ProcessLookupError):
                continue
        return found


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[Started] = []

    def begin(*arguments: Any, **options: Any) -> Started:
        started.append(Started(*arguments, **options))
        return started[-1]

    before = set(os.listdir("/dev/shm"))
    yield begin
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "torch" in name]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)]
)
def test_a_signal_saves_and_ends_with_75_and_the_run_goes_on(
    clipkit: Run, start: Any, tmp_path: Path, number: signal.Signals
) -> None:
    config = write_config(tmp_path, **LONG, data__workers=2, data__evaluate={})
    run = start(config)
    run.wait_for_steps(4)
    # To all processes, as Slurm does it: the workers stay until the trainer has saved.
    os.killpg(run.process.pid, number)
    said = run.end()
    assert run.process.returncode == 75, said
    assert "Traceback" not in said
    status = run.status()
    assert (status["state"], status["exit_code"]) == ("preempted", 75)
    last = max(losses(run.run))
    assert f"stopped by {number.name} and saved at step {last}" in said
    assert not run.left()
    shorter = clipkit("train", config, f"train.steps={last + 2}", "--allow-change", "train.steps")
    assert shorter.returncode == 0, shorter.stderr
    assert f"going on from step {last}" in shorter.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "how"),
    [
        (0, "fsdp"),
        (1, "ddp"),
        pytest.param(0, "ddp", marks=pytest.mark.long),
        pytest.param(1, "fsdp", marks=pytest.mark.long),
    ],
)
def test_two_ranks_stop_at_one_step_though_one_was_asked(
    start: Any, tmp_path: Path, how: str, which: int
) -> None:
    config = write_config(tmp_path, **LONG, data__evaluate={}, train__distributed=how)
    run = start(config, ranks=2)
    run.wait_for_steps(4)
    os.kill(run.trainers()[which], signal.SIGTERM)
    said = run.end()
    assert run.process.returncode != 0
    assert run.status()["exit_code"] == 75, said
    last = max(losses(run.run))
    assert f"saved at step {last}" in run.status()["message"]
    assert (run.run / "checkpoints" / "latest").read_text().strip() == f"step-{last:06d}"
    assert not run.left()


@pytest.mark.slow
def test_a_signal_while_evaluating_saves_too(start: Any, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, **LONG, eval={"every": 3, "batch_size": 2}, data__workers=0,
        data__evaluate={"held-out": str(ROOT / "data/emoji/train-*.tar")},
    )  # fmt: skip
    run = start(config)
    run.wait_for_steps(3)
    time.sleep(1)
    run.process.send_signal(signal.SIGTERM)
    said = run.end()
    assert run.process.returncode == 75, said
    assert "saved at step 3;" in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_a_rank_that_is_killed_ends_the_others_by_name(
    start: Any, tmp_path: Path, how: str
) -> None:
    config = write_config(tmp_path, **LONG, data__evaluate={}, train__distributed=how)
    run = start(config, ranks=2)
    run.wait_for_steps(4)
    victim = run.trainers()[1]
    os.kill(victim, signal.SIGKILL)
    said = run.end(timeout=60)
    assert run.process.returncode != 0
    assert f"rank 1 (process {victim} on" in said, said
    assert "clipkit/training" not in said  # no traceback of ours
    assert not run.left()


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_nothing_in_shared_memory(
    start: Any, tmp_path: Path
) -> None:
    """With loader workers, and a checkpoint half written."""
    config = write_config(
        tmp_path, **{**LONG, "train__save_every": 4}, data__evaluate={}, data__workers=2
    )
    before = set(os.listdir("/dev/shm"))
    run = start(config, env={"CLIPKIT_FAILPOINT": "save-4-written:slow"})
    run.wait_for_steps(6)
    pids = {str(run.process.pid), *run.left()}
    assert len(pids) >= 3  # the workers too
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 20
    while run.left() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not run.left()
    made = set(os.listdir("/dev/shm")) - before
    assert not [name for name in made if pids & set(re.findall(r"\d+", name))]


@pytest.mark.slow
def test_ranks_end_when_their_launcher_is_killed(start: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, **LONG, data__evaluate={})
    run = start(config, ranks=2)
    run.wait_for_steps(4)
    trainers = run.trainers()
    run.process.kill()
    run.process.wait()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in trainers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(alive(pid) for pid in trainers)
    assert run.status()["exit_code"] == 75, run.said.read_text()


@pytest.mark.long  # most of a minute is waiting
def test_a_rank_that_is_stopped_is_given_up_within_a_minute(start: Any, tmp_path: Path) -> None:
    """As a machine that has frozen: its process is there and does nothing."""
    config = write_config(tmp_path, **LONG, data__evaluate={})
    run = start(config, ranks=2)
    run.wait_for_steps(4)
    first, victim = run.trainers()
    os.kill(victim, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{first}").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(victim, signal.SIGKILL)  # nobody else's signal ends it
    assert not Path(f"/proc/{first}/exe").exists() or "Z" in Path(f"/proc/{first}/stat").read_text()
    status = run.status()
    assert status["exit_code"] == 75
    assert f"rank 1 (process {victim} on" in status["message"]
    assert "has been silent for 40 s" in status["message"]


@pytest.mark.slow
def test_a_folder_that_is_trained_in_is_refused_until_its_owner_is_dead(
    clipkit: Run, start: Any, tmp_path: Path
) -> None:
    config = write_config(tmp_path, data__evaluate={}, train__steps=100_000, train__save_every=3)
    run = start(config)
    run.wait_for_steps(7)
    second = clipkit("train", config)
    assert second.returncode == 4, second.stderr
    assert f"process {run.process.pid} on" in second.stderr
    assert "trains in this folder" in second.stderr
    assert clipkit("train", config, "train.batch_size=999999").returncode == 2
    assert run.status()["state"] == "running"
    run.process.kill()
    run.process.wait()
    steps = max(losses(run.run)) + 4
    taken = clipkit("train", config, f"train.steps={steps}", "--allow-change", "train.steps")
    assert taken.returncode == 0, taken.stderr
    assert "going on from step" in taken.stderr
    assert not list(run.run.glob("*lock*"))


@pytest.mark.slow
def test_checkpoints_are_written_every_so_many_minutes(start: Any, tmp_path: Path) -> None:
    config = write_config(tmp_path, **LONG, data__evaluate={}, train__save_minutes=0.01)
    run = start(config)
    run.wait_for_steps(10)
    time.sleep(2)
    kept = [p for p in (run.run / "checkpoints").glob("step-*") if p.suffix != ".tmp"]
    assert len(kept) in (2, 3)  # the third is about to be dropped
    run.process.kill()


@pytest.mark.slow
def test_samples_of_a_step_that_is_not_finite_are_named(clipkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, train__steps=40, train__save_every=100, data__evaluate={})
    result = clipkit("train", config, "optim.lr=1e30", "optim.grad_clip=null", ranks=2)
    dumps = sorted((tmp_path / "run" / "nonfinite").iterdir())
    assert len(dumps) == 10, result.stderr
    told = json.loads(dumps[0].read_text())
    assert [len(rank["samples"]) for rank in told["ranks"]] == [24, 24]
    assert told["gradient_norms"].keys() == {"all", "vision", "text"}
    assert f"samples are named in {dumps[0]}" in said(result)
    assert json.loads((tmp_path / "run/status.json").read_text())["exit_code"] == 5


@pytest.mark.slow
def test_data_that_fails_on_one_rank_ends_all_in_one_sentence(start: Any, tmp_path: Path) -> None:
    from test_faults import write_pictures

    source = write_pictures(tmp_path / "in")
    config = write_config(
        tmp_path, **LONG, data__evaluate={}, data__train=str(source), train__batch_size=8,
        preprocess__vocab_size=600,
    )  # fmt: skip
    run = start(config, ranks=2)
    run.wait_for_steps(4)
    for path in source.glob("*.png"):
        path.unlink()
    said = run.end()
    assert run.process.returncode != 0
    told = [line for line in said.splitlines() if "missing image file;" in line]
    assert len(told) == 1, said
    assert "clipkit/training" not in said
    assert run.status()["exit_code"] == 3


@pytest.mark.slow
def test_a_refused_change_leaves_a_finished_run_as_it_is(clipkit: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, data__evaluate={})
    assert clipkit("train", config).returncode == 0
    before = (tmp_path / "run" / "status.json").read_text()
    refused = clipkit("train", config, "optim.lr=1")
    assert refused.returncode == 4
    assert (tmp_path / "run" / "status.json").read_text() == before

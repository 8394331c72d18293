"""scripts/slurm.sh, with stand-ins for Slurm's commands and for torchrun."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, ROOT

OLD = '{"state": "preempted", "exit_code": 75, "time": 1}'
NEW = '{"state": "preempted", "exit_code": 75, "time": 2}'
REFUSED = '{"state": "failed", "exit_code": 4, "time": 2}'


@pytest.mark.parametrize(
    ("status", "again"), [(OLD, False), (NEW, True), (REFUSED, False)], ids=["old", "new", "other"]
)
def test_a_job_is_queued_again_when_this_start_was_preempted(
    tmp_path: Path, status: str, again: bool
) -> None:
    commands, run = tmp_path / "bin", tmp_path / "run"
    commands.mkdir()
    run.mkdir()
    (run / "status.json").write_text(OLD)
    for name, script in {
        "scontrol": f'echo "$@" >> {tmp_path}/asked; echo node-1',
        "srun": f'echo "$@" >> {tmp_path}/started; printf %s "$NEXT" > {run}/status.json; exit 1',
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{script}\n")
        (commands / name).chmod(0o755)
    result = subprocess.run(
        ["bash", str(ROOT / "scripts/slurm.sh"), "configs/emoji.yaml", f"output={run}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
        env={
            **ENVIRONMENT, "PATH": f"{commands}:{os.environ['PATH']}", "NEXT": status,
            "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "77",
            "SLURM_GPUS_ON_NODE": "4",
        },
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    assert "--nnodes 2 --nproc-per-node 4 " in (tmp_path / "started").read_text()
    assert ("requeue 77" in (tmp_path / "asked").read_text()) is again


def test_a_config_that_is_wrong_starts_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", str(ROOT / "scripts/slurm.sh"), "configs/emoji.yaml", "optim.lrr=1"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, env=ENVIRONMENT,
    )  # fmt: skip
    assert result.returncode == 2
    assert "Did you mean optim.lr?" in result.stderr

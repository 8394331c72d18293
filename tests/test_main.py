"""The command as a process: how it leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import ENVIRONMENT, ROOT

from clipkit.cli import main

_SCRIPT = """
import atexit, sys
atexit.register(print, "at the end")
sys.argv = ["clipkit", *sys.argv[1:]]
from clipkit.__main__ import run
run()
"""


def test_what_is_registered_for_the_end_runs_and_the_code_stays() -> None:
    result = subprocess.run(
        [sys.executable, "-c", _SCRIPT, "data", "check", "nowhere.tar"],
        env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 3
    assert result.stdout == "at the end\n"
    assert "nowhere.tar: no such file" in result.stderr


def test_out_of_memory_is_one_line_with_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch is asked for a petabyte, in training's place."""
    monkeypatch.setattr("clipkit.training.loop.train", lambda *_, **__: torch.empty(10**15))
    assert main(["train", str(ROOT / "configs/emoji.yaml")]) == 2
    assert capsys.readouterr().err.startswith("clipkit: out of memory; lower train.batch_size")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("image,caption\na.jpg,a cat\n")
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "clipkit", "data", "check", tmp_path / "pairs.csv"],
            env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert result.returncode != 0
    assert "Traceback" not in result.stderr

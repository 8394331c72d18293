"""How OpenMP's threads wait, and what is said of other busy processes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from command_line import ENVIRONMENT

from clipkit import threads
from clipkit.threads import Load, say_busy

_NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_COMMAND = """
import atexit, os, sys
atexit.register(lambda: print([os.environ.get(name) for name in %r]))
sys.argv = ["clipkit", "--version"]
from clipkit.__main__ import run
assert "torch" not in sys.modules
run()
"""


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({}, [None, "4000", "1"]),
        ({"OMP_WAIT_POLICY": "passive"}, ["passive", None, None]),
        ({"GOMP_SPINCOUNT": "7"}, [None, "7", None]),
        ({"KMP_BLOCKTIME": "200"}, [None, None, "200"]),
    ],
)
def test_a_command_bounds_spinning_before_torch_is_there_unless_the_user_has(
    own: dict[str, str], expected: list[str | None]
) -> None:
    clean = {key: value for key, value in ENVIRONMENT.items() if key not in _NAMES}
    result = subprocess.run(
        [sys.executable, "-c", _COMMAND % (_NAMES,)],
        env={**clean, **own}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == str(expected), result.stderr


def test_importing_clipkit_changes_no_environment() -> None:
    code = f"import os, clipkit; print([os.environ.get(name) for name in {_NAMES}])"
    clean = {key: value for key, value in ENVIRONMENT.items() if key not in _NAMES}
    result = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert result.stdout == "[None, None, None]\n", result.stderr


@pytest.mark.parametrize(
    ("busy", "own", "said"),
    [
        (20.0, 10.0, "other processes keep 1.0 of 2 cores busy"),
        (10.0, 10.0, None),
        (13.0, 10.0, None),
    ],
)
def test_other_busy_processes_are_told(
    monkeypatch: pytest.MonkeyPatch, busy: float, own: float, said: str | None
) -> None:
    monkeypatch.setattr(threads, "_cores", lambda: {0, 1})
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    times = iter([(0.0, 0.0, 0.0), (10.0, busy, own)])
    monkeypatch.setattr(threads, "_times", lambda: next(times))
    line = say_busy(Load())
    assert line is None if said is None else said in str(line)


def test_this_process_is_not_counted_among_the_others() -> None:
    load = Load()
    total = 0
    for number in range(3_000_000):
        total += number
    cores = len(threads._cores())
    assert 0 <= load.others() <= cores

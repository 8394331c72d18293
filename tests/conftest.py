"""What tests share: the real command line in a subprocess, and small real data sets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[..., "subprocess.CompletedProcess[str]"]

# Subprocesses must not pick up a terminal's width or a GPU, and there is no network to wait for.
ENVIRONMENT = {
    **os.environ,
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "100",
    "PYTHONUNBUFFERED": "1",
}


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def clipkit() -> Run:
    """``clipkit(*arguments)`` runs the real command line; ``ranks=2`` under torchrun."""

    def run(
        *arguments: object,
        ranks: int = 0,
        launcher: Sequence[str] = (),
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clipkit"]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", **(env or {})}
        if ranks:
            launcher = [
                sys.executable, "-m", "torch.distributed.run", "--standalone",
                "--nproc-per-node", str(ranks),
            ]  # fmt: skip
        if launcher:
            command = [*launcher, "-m", "clipkit"]
        return subprocess.run(
            [*command, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run

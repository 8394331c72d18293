"""What tests share: the real command line in a subprocess, and small real data sets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, ROOT, Run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what is marked ``long``, unless it is asked for."""
    if os.environ.get("CLIPKIT_MATRIX") != "full":
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: CLIPKIT_MATRIX=full"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def clipkit(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``clipkit(*arguments)`` runs the real command line; ``ranks=2`` under torchrun."""

    cache = tmp_path_factory.mktemp("cache")  # what is kept there is of this code alone

    def run(
        *arguments: object,
        ranks: int = 0,
        launcher: Sequence[str] = (),
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "clipkit"]
        environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(cache)}
        environment |= env or {}
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

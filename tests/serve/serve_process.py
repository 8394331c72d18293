"""``clipkit serve`` as a process, for any test."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from command_line import ENVIRONMENT, ROOT

ROWS = 40


@contextmanager
def serving(store: Path, *options: str) -> Iterator[tuple[str, int]]:
    """``clipkit serve`` as a process; its address without the path, and its pid."""
    command = [sys.executable, "-m", "clipkit", "serve", str(store), "--port", "0", *options]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " is at http://" in line, process.stderr.read() if process.stderr else line
        yield line.split(" is at ")[1].split()[0], process.pid
        process.terminate()
        assert process.wait(20) == 0


def rss_anon(pid: int) -> int:
    """Bytes of a process's own memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no RssAnon")

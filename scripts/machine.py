"""What a report says of the machine that its numbers are from."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(*packages: str) -> str:
    """``torch 2.14.1, numpy 2.4.6``."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


def machine(*packages: str) -> str:
    """The day, the processor, its threads, and the versions that decide the numbers."""
    cores = os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", cores)
    return (
        f"{datetime.date.today()}, {cores} cores of {cpu_name()}, threads {threads}, Python "
        f"{platform.python_version()}, {versions(*packages)}"
    )

"""The real command line in a subprocess, for tests in any folder."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

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


def remarks(err: str) -> list[str]:
    """The lines of stderr but those that say how a source was read."""
    return [line for line in err.splitlines() if not re.search(r": (about )?[\d,]+ rows[, ]", line)]

"""Named places where a test can make a run die, so that recovery is tested and not assumed."""

from __future__ import annotations

import os
import signal


def failpoint(name: str) -> None:
    """Kills this process with SIGKILL where ``CLIPKIT_FAILPOINT`` is ``NAME:kill``; else nothing.

    Args:
        name: of the place, e.g. ``step-7`` or ``save-8-renamed``.
    """
    if os.environ.get("CLIPKIT_FAILPOINT") == f"{name}:kill":
        os.kill(os.getpid(), signal.SIGKILL)

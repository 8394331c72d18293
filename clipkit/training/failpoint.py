"""Named places where a test can make a run fail, so that recovery is tested and not assumed."""

from __future__ import annotations

import errno
import os
import signal
import time


def failpoint(name: str) -> None:
    """Does what ``CLIPKIT_FAILPOINT`` says of this place, as ``NAME:kill``; else nothing.

    ``kill`` ends this process with SIGKILL, ``full`` is what writing to a full disk raises, and
    ``slow`` takes five seconds.

    Args:
        name: of the place, e.g. ``step-7`` or ``save-8-renamed``.
    """
    place, _, what = os.environ.get("CLIPKIT_FAILPOINT", "").partition(":")
    if place != name:
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif what == "slow":
        time.sleep(5)

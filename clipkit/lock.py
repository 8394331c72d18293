"""Files that name the process which holds something, and are touched while it lives."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

_BEAT = 20.0  # seconds between two signs of life …
_DEAD = 120.0  # … and without one, after which an owner on another machine is given up


class Held(Exception):
    """A living process holds it; the text says which."""


class Claim:
    """A file that is there while this process holds what it stands for.

    An owner on this machine is looked for by its process; one elsewhere by the file's age. The
    file of a dead owner is taken over.

    Args:
        path: of the file; its folder exists.

    Raises:
        Held: another process holds it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._acquire()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name=f"claim {path.name}", daemon=True).start()

    def release(self) -> None:
        """Lets others have it; more than once does no harm."""
        if not self._ended.is_set():
            self._ended.set()
            self._path.unlink(missing_ok=True)

    def _acquire(self) -> None:
        own = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
        aside = self._path.with_name(f".{self._path.stem}.{own['host']}.{own['pid']}.tmp")
        text = json.dumps(own) + "\n"
        try:
            aside.write_text(text, encoding="utf-8")
            for _ in range(100):
                try:
                    os.link(aside, self._path)  # fails where there is one, and is never half
                    return
                except FileExistsError:
                    owner = owner_of(self._path)
                if owner is not None:
                    raise Held(owner)
                dead = self._path.with_name(f"{aside.name}.dead")
                with contextlib.suppress(FileNotFoundError):  # another was quicker
                    self._path.rename(dead)
                    if owner_of(dead) is not None:  # … and this is its own file
                        with contextlib.suppress(FileExistsError):
                            os.link(dead, self._path)
                    dead.unlink()
        finally:
            aside.unlink(missing_ok=True)
        raise Held("a process that cannot be named")

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


def owner_of(path: Path) -> str | None:
    """Who holds a claim, or None where it is held by no one who lives."""
    try:
        age = time.time() - path.stat().st_mtime
        owner = json.loads(path.read_text(encoding="utf-8"))
        host, pid, born = owner["host"], int(owner["pid"]), owner["born"]
        if not 0 < pid < 2**31:
            raise ValueError("no process has this number")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None if age > _DEAD else "a process that cannot be named"
    here = host == socket.gethostname()
    alive = (born is not None and _born(pid) == born) if here else age < _DEAD
    return f"process {pid} on {host}" if alive else None


def _born(pid: int) -> str | None:
    """When a process was started, as the kernel counts; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        pass
    else:
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    try:  # where there is no /proc
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        return "running"
    return "running"

"""Two runs never write one folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

from clipkit.errors import RunRefused

_BEAT = 20.0  # seconds between two signs of life …
_DEAD = 120.0  # … and without one, after which an owner on another machine is given up


class RunLock:
    """A file in the run's folder that names its owner and is touched while the owner lives.

    An owner on this machine is looked for by its process; one elsewhere by the file's age.

    Args:
        folder: the run's, which exists.

    Raises:
        RunRefused: another process trains in this folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock.json"
        self._acquire()
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Lets others have the folder; more than once does no harm."""
        if not self._ended.is_set():
            self._ended.set()
            self._path.unlink(missing_ok=True)

    def _acquire(self) -> None:
        own = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}
        aside = self._path.with_name(f".lock.{own['host']}.{own['pid']}.tmp")
        aside.write_text(json.dumps(own) + "\n", encoding="utf-8")
        try:
            for _ in range(100):
                try:
                    os.link(aside, self._path)  # fails where there is one, and is never half
                    return
                except FileExistsError:
                    owner = self._owner()
                if owner is not None:
                    raise RunRefused(
                        f"{self._path.parent}: {owner} trains in this folder; wait for it, end "
                        "it, or set another output"
                    )
                dead = self._path.with_name(f"{aside.name}.dead")
                with contextlib.suppress(FileNotFoundError):  # another was quicker
                    self._path.rename(dead)
                    dead.unlink()
        finally:
            aside.unlink(missing_ok=True)
        raise RunRefused(f"{self._path}: cannot be taken over; remove it if nothing trains there")

    def _owner(self) -> str | None:
        """Who holds the lock, or None where it is held by no one who lives."""
        try:
            age = time.time() - self._path.stat().st_mtime
            owner = json.loads(self._path.read_text(encoding="utf-8"))
            host, pid, born = owner["host"], int(owner["pid"]), owner["born"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None if age > _DEAD else "a process that cannot be named"
        if host == socket.gethostname():
            alive = _born(pid) == born and born is not None
        else:
            alive = age < _DEAD
        return f"process {pid} on {host}" if alive else None

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._path)


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

"""Files and folders that are seen whole or not at all: written aside, on the disk, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import IO, Any

from clipkit.errors import CheckpointError


def write_text(path: Path, text: str) -> None:
    """Text that a reader sees as it was or as it is now, never half.

    Raises:
        CheckpointError: the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # Captions may hold halves of surrogate pairs, which UTF-8 does not have.
        aside.write_text(text, encoding="utf-8", errors="replace")
        sync(aside)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error


def write_json(path: Path, tree: Any) -> None:
    """JSON, as :func:`write_text` writes."""
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n")


def create_json(path: Path, tree: Any) -> bool:
    """JSON under a name that is free: of several processes that do this at once, one wins.

    Returns:
        Whether it was this one.

    Raises:
        CheckpointError: the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
            json.dump(tree, file, indent=1, ensure_ascii=False)
            file.write("\n")
        sync(aside)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if path.exists():
                return False
            aside.replace(path)
        sync(path.parent)
        return True
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


# What file systems without hard links answer.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def sync(path: Path) -> None:
    """A file, or a folder's list of names, on the disk and not only in its cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """A folder and all that is in it on the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def put_in_place(aside: Path, folder: Path) -> None:
    """Gives a finished folder its name, replacing what had it.

    Between the two renames that a replacement takes, the old folder is at ``.NAME.PID.old``.
    """
    sync_tree(aside)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    try:
        aside.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_stale(folder: Path) -> None:
    """Removes what processes that are no more left behind while they wrote this folder aside."""
    name = re.compile(rf"\.{re.escape(folder.name)}\.(\d+)\.tmp")
    try:
        beside = list(folder.parent.iterdir())
    except OSError:  # nothing is there yet
        return
    for path in beside:
        match = name.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if os.name != "posix":  # on Windows, asking would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's
        return True
    return True


class HashedFile(io.RawIOBase):
    """A file that is written once from start to end, hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.size, self.hash = file, 0, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._file.write(view)
        self.hash.update(view)
        self.size += len(view)
        return len(view)

    def tell(self) -> int:
        return self.size

"""Names → bytes: local files and fsspec URLs by one set of functions.

Handles are opened lazily and kept per process: a handle opened before a fork is never used
after it. Nothing here runs a shell, and names inside data sets are never paths here.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import re
import stat as stat_module
import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from clipkit.data import remote
from clipkit.errors import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_MAX_OPEN_FILES = 128  # well below the usual limit of 1024 a process


@dataclass(frozen=True, slots=True)
class FileStat:
    """A file's size in bytes, and a text that changes when the file does."""

    size: int
    tag: str


def is_url(path: str) -> bool:
    """Whether ``path`` goes through fsspec."""
    return "://" in path or "::" in path


def expand(path: str) -> list[str]:
    """The files or folders that a path, glob or brace range names, sorted.

    Raises:
        DataError: a file of a brace range is missing, or a glob matches nothing.
    """
    if not is_url(path):
        path = os.path.expanduser(path)
        if os.path.exists(path):  # a name that only looks like a pattern
            return [path]
    names = sorted(set(_expand_braces(path)))
    found: list[str] = []
    for name in names:
        if glob.has_magic(name.split("://")[-1]):
            found += _glob(name)
        else:
            found.append(name)
    if not found:
        raise DataError(f"{path}: no file matches.")
    return sorted(set(found))


def kind(path: str) -> str | None:
    """``file``, ``folder``, or None where there is nothing."""
    if is_url(path):
        fs, inner = remote.filesystem(path)
        try:
            what = remote.attempt(path, lambda: fs.info(inner)["type"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({remote.first_line(error)}).") from error
        return "folder" if what == "directory" else "file"
    return "folder" if os.path.isdir(path) else "file" if os.path.exists(path) else None


def walk(folder: str) -> list[str]:
    """All files below a folder, relative to it with ``/``, sorted.

    Links to folders are followed, each real folder once, by its own name where it has one below
    ``folder``. Hidden files are left out, and stores of embeddings: they are made from images,
    perhaps from those around them. A folder that may not be read is left out with a warning.
    """
    if is_url(folder):
        fs, inner = remote.filesystem(folder)
        prefix = inner.rstrip("/") + "/"
        found = remote.ask(folder, lambda: fs.find(inner))
        names = [name[len(prefix) :] for name in found if name.startswith(prefix)]
        return sorted(name for name in names if not any(map(_hidden, name.split("/"))))
    names, linked, seen = [], [""], set[str]()
    top = os.path.realpath(folder)
    while linked:
        # Links wait until what is no link has been seen: a loop ends, and nothing counts twice.
        folders, linked = linked, []
        while folders:
            base = folders.pop()
            path = os.path.join(folder, base) if base else folder
            real = os.path.realpath(path)
            # A link to a folder above leads back here, and to all that lies beside it.
            above = base and top.startswith(real.rstrip(os.sep) + os.sep)
            if above or real in seen or (base and is_store(path)):
                continue
            seen.add(real)
            for entry in _entries(path):
                name = f"{base}/{entry.name}" if base else entry.name
                if not _is_folder(entry):
                    names.append(name)
                elif entry.is_symlink():
                    linked.append(name)
                else:
                    folders.append(name)
        linked.sort(reverse=True)
    return sorted(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """Names in a folder that are not hidden; nothing where it may not be read, which is told."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _hidden(entry.name)]
    except OSError as error:
        why = error.strerror or error
        warnings.warn(
            f"{folder}: the folder cannot be read ({why}); what is in it is left out", stacklevel=3
        )
        return []


def join(folder: str, name: str) -> str:
    """``name`` as seen from ``folder``; absolute names and URLs stay as they are."""
    if is_url(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def parent(path: str) -> str:
    """The folder a file is in."""
    return path.rsplit("/", 1)[0] if is_url(path) else os.path.dirname(path)


def stat(path: str) -> FileStat:
    """Size and tag of a file.

    Raises:
        DataError: it is missing or cannot be reached.
    """
    if is_url(path):
        remote.forget(path)
        size, tag = remote.stat(path)
        return FileStat(size, f"{size}-{tag}")
    try:
        _forget(path)  # a handle to a file that was replaced would go on reading the old one
        info = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}.") from error
    return FileStat(info.st_size, f"{info.st_size}-{info.st_mtime_ns}")


def stat_all(paths: Sequence[str]) -> list[FileStat]:
    """``stat`` of many files; of remote ones, several at a time."""
    if not any(map(is_url, paths)):
        return [stat(path) for path in paths]
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(stat, paths))


def read(path: str, offset: int, size: int) -> bytes:
    """At most ``size`` bytes from ``offset`` on; fewer only where the file ends.

    Raises:
        DataError: the file is missing, unreadable or cannot be reached.
    """
    if size <= 0:
        return b""
    if is_url(path):
        return remote.read(path, offset, size)
    try:
        return _pread(_handle(path), size, offset)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error


def read_all(path: str, limit: int) -> bytes:
    """A whole small file, or its first ``limit`` + 1 bytes; not kept open.

    Raises:
        OSError: it is missing, or is not to be had.
        DataError: a server did not answer, however often it was asked.
    """
    if is_url(path):
        fs, inner = remote.filesystem(path)

        def fetch() -> bytes:
            with fs.open(inner, "rb") as file:
                data: bytes = file.read(limit + 1)
                return data

        return remote.attempt(path, fetch)
    # Opening a pipe waits for its writer, for ever; a device may never end.
    descriptor = os.open(
        path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    with open(descriptor, "rb") as local:
        if not stat_module.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        return local.read(limit + 1)


def total_size(paths: Iterable[str]) -> int | None:
    """Bytes of all these local files together, a missing one as none; None for URLs, where
    asking for each would take longer than reading."""
    total = 0
    for path in paths:
        if is_url(path):
            return None
        with contextlib.suppress(OSError):
            total += os.stat(path).st_size
    return total


def cache_folder() -> Path:
    """Where indexes live whose data sets cannot be written to."""
    return remote.cache_folder("index")


def digest(*parts: object) -> str:
    """A short hash of texts and numbers."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "replace")).hexdigest()[:32]


class _Handles:
    """Descriptors of one process by path; the least recently used are closed."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.open: OrderedDict[str, int] = OrderedDict()


_handles = _Handles()


def _handle(path: str) -> int:
    global _handles
    if _handles.pid != os.getpid():
        for descriptor in _handles.open.values():  # copies that fork made
            os.close(descriptor)
        _handles = _Handles()
    table = _handles.open
    with _handles.lock:
        if path in table:
            table.move_to_end(path)
        else:
            while len(table) >= _MAX_OPEN_FILES:
                os.close(table.popitem(last=False)[1])
            table[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        return table[path]


def _forget(path: str) -> None:
    if _handles.pid == os.getpid() and path in _handles.open:
        os.close(_handles.open.pop(path))


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:  # one read may return less, e.g. on network file systems
        if hasattr(os, "pread"):
            part = os.pread(descriptor, size, offset)
        else:  # Windows
            os.lseek(descriptor, offset, os.SEEK_SET)
            part = os.read(descriptor, size)
        if not part:
            break
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _glob(pattern: str) -> list[str]:
    if not is_url(pattern):
        return glob.glob(pattern, recursive=True)
    fs, inner = remote.filesystem(pattern)
    return [fs.unstrip_protocol(name) for name in remote.ask(pattern, lambda: fs.glob(inner))]


def _expand_braces(path: str) -> list[str]:
    """``a{00..02}{x,y}`` → a00x, a00y, a01x …; numbers keep their leading zeros."""
    pieces = _BRACES.split(path)  # text, braces, text, braces, … text
    choices: list[list[str]] = []
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            choices.append([piece])
        elif numbers := _NUMBERS.fullmatch(piece):
            first, last = numbers.groups()
            if int(last) - int(first) > 10_000_000:
                raise DataError(f"{path}: the range {{{piece}}} names over ten million files.")
            span = range(int(first), int(last) + 1)
            choices.append([str(n).zfill(len(first)) for n in span])
        else:
            choices.append(piece.split(","))
    return ["".join(parts) for parts in product(*choices)]


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def is_store(folder: str) -> bool:
    """Whether ``clipkit embed`` wrote this local folder, or is writing it."""
    for about in ("manifest.json", "plan.json"):
        try:
            with open(os.path.join(folder, about), "rb") as file:
                if b'"format": "clipkit-embeddings' in file.read(200):
                    return True
        except OSError:
            continue
    return False

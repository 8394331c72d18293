"""Reading over the network: fsspec's file systems, asked again where that may help, and a cache
of what was read on the local disk.

The cache holds blocks of remote files, not whole ones, under a limit of bytes; what was not
used for longest goes first. Processes share it. It never holds a name that a data set chose.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from clipkit.config.schema import DataConfig
from clipkit.errors import DataError

T = TypeVar("T")
RETRY_WAITS = [0.5, 1.0, 2.0, 4.0, 8.0]  # seconds, about, between attempts at a remote file
BLOCK = 4 * 2**20
_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError, ValueError)
_VERSION_FIELDS = (
    "ETag",
    "etag",
    "Last-Modified",
    "LastModified",
    "mtime",
    "Content-MD5",
    "Digest",
)
_LOCKS = 256  # files that processes lock while they fetch a block


def read(path: str, offset: int, size: int) -> bytes:
    """At most ``size`` bytes of a remote file, from ``offset`` on, through the cache if there
    is one; fewer only where the file ends.

    Raises:
        DataError: the file is missing or cannot be reached.
    """
    if not _cache.limit:
        return _fetch(path, offset, size)
    parts = []
    for number in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1):
        begin = number * BLOCK
        first, last = max(offset, begin) - begin, min(offset + size, begin + BLOCK) - begin
        parts.append(_cache.read(path, number, first, last))
    return b"".join(parts)


def stat(path: str) -> tuple[int, str]:
    """A remote file's size in bytes, and a text that changes when the file does, as far as the
    server tells.

    Raises:
        DataError: it is missing or cannot be reached, or the server does not tell its size.
    """
    fs, inner = filesystem(path)
    info = ask(path, lambda: fs.info(inner))
    if info.get("size") is None:
        raise DataError(f"{path}: the server does not say how large the file is.")
    # Over HTTP, fsspec's own key is that of the address alone.
    told = [f"{name}={info[name]}" for name in _VERSION_FIELDS if info.get(name)]
    return int(info["size"]), " ".join([str(ask(path, lambda: fs.ukey(inner))), *told])


def use_cache(gigabytes: float) -> None:
    """How much is kept of what is read of remote files, from now on, in this process.

    Args:
        gigabytes: at most, about; 0 keeps nothing. It is the default of ``data.cache_gb`` where
            nobody says otherwise.
    """
    global _cache
    folder, limit = cache_folder("blocks"), round(gigabytes * 1e9)
    if (_cache.folder, _cache.limit) != (folder, limit):
        _cache = _BlockCache(folder, limit)


def cache_folder(what: str) -> Path:
    """Where clipkit keeps what it can make anew: ``index`` or ``blocks``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "clipkit" / what


def forget(path: str) -> None:
    """Blocks of a file are read anew if it is not the one it was."""
    _cache.forget(path)


def _fetch(path: str, offset: int, size: int) -> bytes:
    fs, inner = filesystem(path)
    data: bytes = ask(path, lambda: fs.cat_file(inner, start=offset, end=offset + size))
    if len(data) > size:
        raise DataError(f"{path}: the server cannot send parts of a file; copy it first.")
    return data


class _BlockCache:
    """Blocks of remote files on the local disk; see the module.

    Args:
        folder: where.
        limit: bytes, of all blocks together. Every process looks once a sixteenth of it is
            newly written, so that for a while it may be more.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._names: dict[str, str] = {}
        self._written = limit  # look at once
        self._failed = False
        self._lock = threading.Lock()

    def read(self, path: str, number: int, first: int, last: int) -> bytes:
        """Bytes [first, last) of a block, fewer where the file ends."""
        name = f"{self._name(path)}-{number}"
        block = self.folder / name[:2] / name
        if (kept := _read_block(block, first, last)) is not None:
            return kept
        with self._alone(name):
            if (kept := _read_block(block, first, last)) is not None:  # by somebody else
                return kept
            data = _fetch(path, number * BLOCK, BLOCK)
            self._keep(block, data)
        return data[first:last]

    def forget(self, path: str) -> None:
        self._names.pop(path, None)

    def _name(self, path: str) -> str:
        """Of a file as it is now: another one in its place has another name."""
        if path not in self._names:
            identity = " ".join([path, *map(str, stat(path))])
            self._names[path] = hashlib.sha256(identity.encode()).hexdigest()[:32]
        return self._names[path]

    def _keep(self, block: Path, data: bytes) -> None:
        if self._failed:
            return
        aside = block.with_name(f".{block.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            block.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            aside.replace(block)
            with self._lock:
                self._written += len(data)
                if self._written >= self.limit // 16:
                    self._written = 0
                    self._make_room()
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            self._failed = True
            warnings.warn(
                f"{self.folder}: remote data are no longer cached ({error.strerror}); free some "
                "space, or set data.cache_gb to less.",
                stacklevel=2,
            )

    def _make_room(self) -> None:
        """Removes the blocks that were not used for longest, to nine tenths of the limit."""
        found = []
        for block in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError):  # another process was faster
                info = block.stat()
                found.append((info.st_mtime_ns, info.st_size, block))
        total = sum(size for _, size, _ in found)
        if total <= self.limit:
            return
        for _, size, block in sorted(found):
            if total <= self.limit * 9 // 10:
                break
            with contextlib.suppress(OSError):
                block.unlink()
            total -= size

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """No two processes or threads fetch one block at a time, where locks are to be had."""
        file: IO[bytes] | None = None
        try:
            import fcntl

            place = self.folder / "locks" / str(int(name[:8], 16) % _LOCKS)
            place.parent.mkdir(parents=True, exist_ok=True)
            file = place.open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        try:
            yield
        finally:
            if file is not None:
                file.close()


_cache = _BlockCache(cache_folder("blocks"), round(DataConfig.cache_gb * 1e9))


def _read_block(block: Path, first: int, last: int) -> bytes | None:
    """Bytes of a kept block, which is used by that; None where it is not kept."""
    try:
        with block.open("rb") as file:
            os.utime(file.fileno())
            file.seek(first)
            return file.read(last - first)
    except OSError:
        return None


def filesystem(path: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, inner = fsspec.core.url_to_fs(path)  # fsspec keeps one a process
    except (ImportError, ValueError) as error:
        raise DataError(f"{path}: {first_line(error)}") from error
    return fs, str(inner)


def ask(path: str, action: Callable[[], T]) -> T:
    """What ``action`` returns; whatever goes wrong becomes one line that names the file."""
    try:
        return attempt(path, action)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)}).") from error


def attempt(path: str, action: Callable[[], T]) -> T:
    """What ``action`` returns, asked again after a pause where trying again may help.

    Raises:
        OSError: the answer is no, and will be again.
        DataError: there was none, however often it was asked. Leaving the file out instead would
            change the order of the samples for a passing fault.
    """
    waits = [wait * random.uniform(0.75, 1.25) for wait in RETRY_WAITS]
    for wait in [*waits, None]:
        try:
            return action()
        except (FileNotFoundError, DataError):
            raise
        except Exception as error:  # each file system has errors of its own
            status = getattr(error, "status", None)
            refused = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
            if refused or isinstance(error, _LASTING):
                raise OSError(errno.EACCES, first_line(error), path) from error
            if wait is None:
                raise DataError(
                    f"{path}: cannot be read ({first_line(error)}), after {1 + len(waits)} "
                    "attempts; run the same command again to go on."
                ) from error
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

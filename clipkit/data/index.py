"""A file's index: what makes one of its samples a single read at a known place.

An index is made on first use and kept beside its file under a hidden name, which other programs
do not take for data, or in a cache folder where that is read-only. It is an ``.npz`` of plain
arrays, loaded without pickle; it is made anew when the file's size or time changes, or when it is
damaged itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipkit.data import files
from clipkit.errors import DataError

Arrays = dict[str, NDArray[Any]]
Advance = Callable[[int], object]
Build = Callable[[str, files.FileStat, Advance], Arrays]

_SUFFIX = ".clipkit-index.npz"
_FORMAT = 1
_MAX_INDEX = 2**30


def _ignore(_: int) -> None:
    pass


def indexed(
    paths: Iterable[str], build: Build, *, kind: str, progress: bool
) -> Iterator[tuple[str, files.FileStat, Arrays]]:
    """Each file with its index, read where it is kept and made where it is not.

    Args:
        paths: the files, in order.
        build: makes one file's arrays; told (path, stat, advance), it calls advance(bytes).
        kind: distinguishes indexes of one file made for different ends.
        progress: show a bar on stderr while an index is made.
    """
    stats = {path: files.stat(path) for path in paths}
    todo = sum(stat.size for stat in stats.values())
    bar: tqdm[Any] | None = None
    try:
        for path, stat in stats.items():
            arrays = load_index(path, stat, kind)
            if arrays is None:
                if bar is None and progress:
                    bar = tqdm(total=todo, desc="indexing", unit="B", unit_scale=True, delay=0.5)
                advance = bar.update if bar is not None else _ignore
                arrays = open_index(path, stat, build, kind=kind, advance=advance)
            elif bar is not None:
                bar.update(stat.size)
            else:
                todo -= stat.size
            yield path, stat, arrays
    finally:
        if bar is not None:
            bar.close()


def open_index(
    path: str, stat: files.FileStat, build: Build, *, kind: str, advance: Advance = _ignore
) -> Arrays:
    """The index of one file, read where it is kept and made, and kept, where it is not."""
    arrays = load_index(path, stat, kind)
    if arrays is None:
        arrays = build(path, stat, advance)
        _save(path, stat, kind, arrays)
    return arrays


def load_index(path: str, stat: files.FileStat, kind: str) -> Arrays | None:
    """The kept index of a file, or None where there is none that fits the file as it is.

    One that was copied to a server beside its file fits by the file's size: times do not
    survive copying.
    """
    if not files.is_url(path):
        _hide_old(path)
    for place in _places(path, kind):
        if arrays := _load(place, lambda fits: fits == _fits(stat, kind)):
            return arrays
    if not files.is_url(path):
        return None
    try:
        copied = io.BytesIO(files.read_all(index_beside(path), _MAX_INDEX))
    except (OSError, DataError):
        return None
    size = _fits(files.FileStat(stat.size, f"{stat.size}-"), kind)
    arrays = _load(copied, lambda fits: fits.startswith(size))
    if arrays is not None:
        _save(path, stat, kind, arrays)
    return arrays


def has_index_beside(path: str) -> bool:
    """Whether a file's index lies beside it, wherever that is."""
    return files.kind(index_beside(path)) == "file"


def index_beside(path: str) -> str:
    """``a/x.tar`` → ``a/.x.tar.clipkit-index.npz``, where its index may be."""
    cut = max(path.rfind("/"), path.rfind(os.sep)) + 1
    return f"{path[:cut]}.{path[cut:]}{_SUFFIX}"


def _hide_old(path: str) -> None:
    """Hides an index under the name that it had before it was hidden, or removes it where there
    is a hidden one."""
    old, new = path + _SUFFIX, index_beside(path)
    if os.path.isfile(old):
        with contextlib.suppress(OSError):
            if os.path.exists(new):
                os.unlink(old)
            else:
                os.replace(old, new)


def _load(place: Path | io.BytesIO, fits: Callable[[str], bool]) -> Arrays | None:
    try:
        with np.load(place, allow_pickle=False) as kept:
            if fits(str(kept["fits"])):
                return {name: kept[name] for name in kept.files if name != "fits"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None


def pack_texts(texts: Iterable[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Texts as one run of bytes and their ends: one long text must not widen all the others."""
    parts = list(texts)
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return np.frombuffer(b"".join(parts), dtype=np.uint8), ends


def unpack_text(packed: NDArray[np.uint8], ends: NDArray[np.int64], i: int) -> str:
    """Text i of ``pack_texts``."""
    return packed[ends[i - 1] if i else 0 : ends[i]].tobytes().decode("utf-8", "replace")


def pack_json(value: Any) -> NDArray[np.uint8]:
    """A small JSON value as an array."""
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def unpack_json(packed: NDArray[np.uint8]) -> Any:
    """The value of ``pack_json``."""
    return json.loads(packed.tobytes())


def _fits(stat: files.FileStat, kind: str) -> str:
    return f"{_FORMAT} {kind} {stat.tag}"


def _places(path: str, kind: str) -> list[Path]:
    cached = files.cache_folder() / f"{files.digest(os.path.abspath(path), kind)}.npz"
    if files.is_url(path):
        return [files.cache_folder() / f"{files.digest(path, kind)}.npz"]
    return [Path(index_beside(path)), cached]


def write_arrays(place: Path, arrays: Arrays) -> None:
    """An ``.npz`` that is seen whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    buffer = io.BytesIO()
    # numpy's stubs take the names of arrays for its own keyword.
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    aside = place.with_name(f".{place.name.removeprefix('.')}.{os.getpid()}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(buffer.getvalue())
        os.replace(aside, place)  # several processes may do this at once; any may win
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def _save(path: str, stat: files.FileStat, kind: str, arrays: Arrays) -> None:
    reason = ""
    for place in _places(path, kind):
        try:
            write_arrays(place, {"fits": np.array(_fits(stat, kind)), **arrays})
            return
        except OSError as error:
            reason = error.strerror or str(error)
    warnings.warn(
        f"{path}: its index cannot be kept ({reason}); it is made anew at each start.",
        stacklevel=2,
    )

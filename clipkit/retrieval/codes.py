"""A store's vectors → 8-bit codes beside them, in STORE/index/, that exact search reads instead.

    image-exact.json         what the codes are of, with sizes and hashes; written last
    image-exact-codes.npy    (N, D) int8
    image-exact-rows.npy     (3, N) float32: step, residual and length of each row
    image-exact-centre.npy   (D,) float32

:mod:`clipkit.retrieval.scan` says what they are and why search stays exact.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipkit._version import __version__
from clipkit.atomic import sync, write_json
from clipkit.digest import sha256
from clipkit.display.console import progress_bar, remark
from clipkit.errors import CheckpointError
from clipkit.retrieval.scan import CodeScan, quantise, read_rows, residual_norms
from clipkit.retrieval.store import VERIFIED_BYTES

if TYPE_CHECKING:
    from clipkit.retrieval.store import EmbeddingStore

FOLDER = "index"
_FORMAT, _VERSION = "clipkit-index", 1
_BLOCK_NUMBERS = 2**21
_SAMPLE = 16_384  # rows whose mean is the centre


def build_codes(store: EmbeddingStore, kind: str, *, progress: bool = True) -> int:
    """Writes the codes of one kind of a store's vectors, at constant memory.

    Args:
        store: whose vectors.
        kind: ``image`` or ``text``.
        progress: whether to show a progress bar.

    Returns:
        How many bytes they take.

    Raises:
        CheckpointError: there are no such vectors, they are not finite, or the codes cannot be
            written.
    """
    parts = vectors_of(store, kind)
    rows, dim = len(store), store.dim
    folder = store.folder / FOLDER
    centre = _mean(parts, rows)
    names = {what: f"{kind}-exact-{what}.npy" for what in ("codes", "rows", "centre")}
    aside = {name: folder / f".{name}.{os.getpid()}.tmp" for name in names.values()}
    try:
        folder.mkdir(exist_ok=True)
        with (
            aside[names["codes"]].open("wb") as file,
            progress_bar("index", rows, "row", show=progress) as bar,
        ):
            np.lib.format.write_array_header_1_0(
                file, {"descr": "|i1", "fortran_order": False, "shape": (rows, dim)}
            )
            facts = np.empty((3, rows), dtype=np.float32)
            size = max(_BLOCK_NUMBERS // dim, 1)
            for begin in range(0, rows, size):
                end = min(begin + size, rows)
                block = read_rows(parts, begin, end)
                codes, steps = quantise(block - centre)
                residuals, lengths = residual_norms(block, centre, codes, steps)
                if not np.isfinite(residuals).all():
                    raise CheckpointError(
                        f"{store.folder}: its {kind} vectors are not finite; embed again"
                    )
                facts[:, begin:end] = steps, residuals, lengths
                file.write(codes.data)
                bar.update(end - begin)
        for what, array in (("rows", facts), ("centre", centre)):
            with aside[names[what]].open("wb") as file:
                np.save(file, array, allow_pickle=False)
        return commit(store, kind, "exact", {name: aside[name] for name in names.values()}, {})
    except OSError as error:
        reason = error.strerror or f"is the disk full? {error}"
        raise CheckpointError(f"{folder}: cannot be written ({reason})") from error
    finally:
        for path in aside.values():
            path.unlink(missing_ok=True)


def open_codes(store: EmbeddingStore, kind: str) -> CodeScan | None:
    """The codes of a store's vectors; None where none have been made.

    Raises:
        CheckpointError: they are damaged, or of what the store was before.
    """
    found = open_manifest(store, kind, "exact")
    if found is None:
        return None
    arrays = {}
    for name in found["files"]:
        path = store.folder / FOLDER / name
        what = name.removesuffix(".npy").rsplit("-", 1)[-1]
        try:
            # "c": pages that are written would be copied; none are. torch wants them so.
            arrays[what] = np.load(path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _broken(path, "is no array of numbers", store) from error
    rows, dim = len(store), store.dim
    expected = {
        "codes": ((rows, dim), np.int8),
        "rows": ((3, rows), np.float32),
        "centre": ((dim,), np.float32),
    }
    for what, (shape, dtype) in expected.items():
        array = arrays.get(what)
        if array is None or array.shape != shape or array.dtype != dtype:
            path = store.folder / FOLDER / f"{kind}-exact-{what}.npy"
            raise _broken(path, "does not have the store's shape", store)
    steps, residuals, lengths = arrays["rows"]
    return CodeScan(arrays["codes"], steps, residuals, lengths, arrays["centre"])


def renew_codes(store: EmbeddingStore) -> None:
    """Makes codes of the store's vectors anew, where they are of what the store was before.

    Raises:
        CheckpointError: they cannot be written.
    """
    for kind in ("image", "text"):
        if (store.folder / FOLDER / f"{kind}-exact.json").exists():
            try:
                open_codes(store, kind)
            except CheckpointError:
                build_codes(store, kind, progress=False)
    for kind in ("image", "text"):
        try:
            open_manifest(store, kind, "approximate")
        except CheckpointError as error:
            remark(str(error))


def vectors_of(store: EmbeddingStore, kind: str) -> list[np.ndarray]:
    """The arrays of one kind.

    Raises:
        CheckpointError: the store has none.
    """
    parts = store.image_embeds if kind == "image" else store.text_embeds
    if not parts:
        raise CheckpointError(f"{store.folder}: no {kind} embeddings are in this store")
    return parts


def commit(
    store: EmbeddingStore, kind: str, what: str, files: dict[str, Path], about: dict[str, Any]
) -> int:
    """Gives finished files their names and writes the manifest that binds them to the store.

    Returns:
        How many bytes the files take.

    Args:
        store: what they are of.
        kind: ``image`` or ``text``.
        what: ``exact`` or ``approximate``.
        files: their names, and where they are now.
        about: what else the manifest says.
    """
    folder = store.folder / FOLDER
    manifest = folder / f"{kind}-{what}.json"
    manifest.unlink(missing_ok=True)  # half new, half old is nothing
    facts = {}
    for name, path in files.items():
        sync(path)
        facts[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        path.replace(folder / name)
    sync(folder)
    tree = {
        "format": _FORMAT,
        "version": _VERSION,
        "of": _state(store),
        "model": store.manifest["model"],
        "weights_sha256": store.manifest["weights_sha256"],
        "preprocess_sha256": store.manifest["preprocess_sha256"],
        **about,
        "files": facts,
        "clipkit": __version__,
    }
    write_json(manifest, tree)
    return sum((folder / name).stat().st_size for name in facts)


def open_manifest(
    store: EmbeddingStore, kind: str, what: str, *, all_bytes: bool = False
) -> dict[str, Any] | None:
    """The manifest of an index whose files are whole and of this store; None where there is none.

    Args:
        store: whose.
        kind: ``image`` or ``text``.
        what: ``exact`` or ``approximate``.
        all_bytes: whether files of any size are hashed, not only small ones.

    Raises:
        CheckpointError: it is of another model or of what the store was before, or damaged.
    """
    folder = store.folder / FOLDER
    path = folder / f"{kind}-{what}.json"
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, "cannot be read", store) from error
    if not _well_formed(manifest, f"{kind}-{what}"):
        raise _broken(path, "is not the manifest of an index that this clipkit reads", store)
    for name in ("weights_sha256", "preprocess_sha256"):
        if manifest[name] != store.manifest[name]:
            raise _broken(
                path,
                f"of the model {manifest['model']} ({str(manifest[name])[:12]}), where the store "
                f"is of {store.manifest['model']} ({store.manifest[name][:12]})",
                store,
            )
    if manifest["of"] != _state(store):
        raise _broken(path, "of what the store was before; it has changed since", store)
    files = manifest["files"]
    small = sum(facts["bytes"] for facts in files.values()) <= VERIFIED_BYTES
    for name, facts in files.items():
        file = folder / name
        if not file.is_file():
            raise _broken(file, "is missing", store)
        if file.stat().st_size != facts["bytes"]:
            raise _broken(
                file, f"{file.stat().st_size} bytes, where {facts['bytes']} were written", store
            )
        if (small or all_bytes) and sha256(file) != facts["sha256"]:
            raise _broken(file, "damaged, it is not what its hash says", store)
    found: dict[str, Any] = manifest
    return found


def _state(store: EmbeddingStore) -> str:
    """A hash of the vectors' hashes."""
    parts = {
        name: facts["sha256"]
        for name, facts in sorted(store.manifest["parts"].items())
        if name.endswith(".npy")
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _broken(path: Path, fault: str, store: EmbeddingStore) -> CheckpointError:
    options = " --approximate" if "approximate" in path.name else ""
    options += " --kind text" if path.name.startswith("text") else ""
    return CheckpointError(
        f"{path}: {fault}; make it anew with clipkit index {store.folder}{options}, or delete "
        f"{store.folder / FOLDER}"
    )


def _well_formed(manifest: Any, prefix: str) -> bool:
    if not isinstance(manifest, dict):
        return False
    files = manifest.get("files")
    return (
        manifest.get("format") == _FORMAT
        and manifest.get("version") == _VERSION
        and all(
            isinstance(manifest.get(name), str)
            for name in ("of", "model", "weights_sha256", "preprocess_sha256")
        )
        and isinstance(files, dict)
        and all(
            Path(name).name == name
            and name.startswith(prefix)
            and isinstance(facts, dict)
            and isinstance(facts.get("bytes"), int)
            and isinstance(facts.get("sha256"), str)
            for name, facts in files.items()
        )
    )


def _mean(parts: list[np.ndarray], rows: int) -> np.ndarray:
    """(D,) float32 of rows from all over the store. Any centre is right; this one is near."""
    blocks = min(16, rows)
    size = max(min(_SAMPLE, rows) // blocks, 1)
    total = np.zeros(parts[0].shape[1])
    for i in range(blocks):
        begin = min(i * (rows // blocks), rows - size)
        total += read_rows(parts, begin, begin + size).mean(axis=0, dtype=np.float64)
    centre: np.ndarray = (total / blocks).astype(np.float32)
    return np.where(np.isfinite(centre), centre, 0).astype(np.float32)

"""A run's checkpoints: written aside, fsynced, named by hash, renamed; only then pruned.

``checkpoints/step-000400/`` holds ``model/`` (a Hugging Face folder), ``optimizer.safetensors``,
``objectives.safetensors`` where the loss has parameters of its own, ``state.json`` and, written
last, ``manifest.json`` with the size and SHA-256 of every file; a sharded one, instead of whole
tensors, a folder for each rank's part (see :mod:`.parts`). Data
order, augmentation, dropout and learning rate are functions of (seed, step), so the step is all
the state that there is besides weights and moments. No pickle is written or read.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from clipkit.atomic import sync, sync_tree, write_json, write_text
from clipkit.digest import sha256
from clipkit.errors import CheckpointError
from clipkit.training.distributed import Ranks
from clipkit.training.failpoint import failpoint
from clipkit.training.parts import join_indices, rank_folder

_CANNOT = (OSError, SafetensorError, CheckpointError)  # how writing fails


def checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


def save_checkpoint(
    folder: Path,
    step: int,
    write: Callable[[Path], Any],
    *,
    keep: int,
    ranks: Ranks | None = None,
) -> None:
    """Saves one checkpoint so that a kill at any moment leaves a loadable folder.

    Args:
        folder: the run's ``checkpoints``.
        step: optimizer steps done.
        write: called with the checkpoint's new folder, to fill it. With ``ranks``, a rank other
            than the first writes into :func:`.rank_folder` alone, and each returns its
            :func:`.index_of`.
        keep: how many of the newest checkpoints up to this one stay.
        ranks: that write parts of it, all of which call this; none: one process writes it.

    Raises:
        CheckpointError: this process cannot write it, as when the disk is full. Where another
            rank could not, this one returns, and there is no new checkpoint.
    """
    ranks = ranks or Ranks(alone=True)
    final = folder / checkpoint_name(step)
    aside = folder / f"{final.name}.tmp"
    try:
        _save(final, aside, step, write, keep, ranks)
    except _CANNOT as error:
        if ranks.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{final}: the checkpoint cannot be written ({error}); those before it are intact. "
            f"{_remedy(error)}, then run the same command to go on from the newest"
        ) from error


def _remedy(error: Exception) -> str:
    """What to do about a checkpoint that cannot be written."""
    cause = error.__cause__ if isinstance(error, CheckpointError) else error
    number = cause.errno if isinstance(cause, OSError) else None
    if told := re.search(r"\(os error (\d+)\)", str(error)):  # of safetensors
        number = int(told[1])
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Free some space"
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Make that folder writable"
    return "Mend that"


def _save(
    final: Path, aside: Path, step: int, write: Callable[[Path], Any], keep: int, ranks: Ranks
) -> None:
    folder, first = final.parent, ranks.rank == 0

    def begin() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        failpoint(f"save-{step}-begun")

    def fill() -> tuple[dict[str, Any], Any]:
        index = write(aside)
        failpoint(f"save-{step}-written" if first else f"save-{step}-written-{ranks.rank}")
        own = aside if first else rank_folder(aside, ranks.rank)
        others = {rank_folder(aside, rank) for rank in range(1, ranks.number)} - {own}
        files = [p for p in own.rglob("*") if p.is_file() and not others & set(p.parents)]
        facts = {
            str(path.relative_to(aside)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in sorted(files)
        }
        for path in {*files, *(path.parent for path in files)}:
            sync(path)
        return facts, index

    def finish(parts: list[tuple[dict[str, Any], Any]]) -> None:
        files = {name: facts for own, _ in parts for name, facts in own.items()}
        if any(index for _, index in parts):
            path = aside / "index.json"
            write_json(path, join_indices([index for _, index in parts]))
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        write_json(aside / "manifest.json", {"step": step, "files": files})
        sync_tree(aside)
        if final.exists():  # a damaged one that was passed over at the start
            shutil.rmtree(final)
        failpoint(f"save-{step}-synced")
        aside.rename(final)
        sync(folder)
        failpoint(f"save-{step}-renamed")
        write_text(folder / "latest", final.name + "\n")
        failpoint(f"save-{step}-latest")
        # A newer one is damaged, or this run would have gone on from it; it counts for nothing.
        for old in [each for each in checkpoints_in(folder) if _step_of(each) <= step][keep:]:
            shutil.rmtree(old)

    if _all_do(ranks, begin if first else lambda: None) is None:
        return
    parts = _all_do(ranks, fill)
    if parts is not None and first:
        finish(parts)
    elif first:
        shutil.rmtree(aside, ignore_errors=True)


def _all_do(ranks: Ranks, action: Callable[[], Any]) -> list[Any] | None:
    """What ``action`` returned on each rank; None where it failed on another one.

    Raises:
        OSError, SafetensorError, CheckpointError: it failed on this one; the others know.
    """
    fault: Exception | None = None
    result = None
    try:
        result = action()
    except _CANNOT as error:
        fault = error
    told = ranks.gather((fault is None, result))
    if fault is not None:
        raise fault
    return [each for _, each in told] if all(done for done, _ in told) else None


def find_checkpoint(folder: Path, ranks: Ranks | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as they were written.

    Args:
        folder: the run's ``checkpoints``.
        ranks: that look together, each at its share of the files; none: one process.

    Returns:
        Its folder, or None where no checkpoint was ever finished; and a line for each newer
        one that is damaged and was passed over.

    Raises:
        CheckpointError: there are checkpoints and all of them are damaged.
    """
    ranks = ranks or Ranks(alone=True)
    damaged: list[str] = []
    # What the first rank sees, so that all look at the same.
    for candidate in ranks.gather(checkpoints_in(folder))[0]:
        fault = find_damage(candidate, ranks)
        if fault is None:
            return candidate, damaged
        damaged.append(f"{candidate}: {fault}")
    if damaged:
        raise CheckpointError(
            f"{damaged[0]}; no other checkpoint is left to go on from. Restore the folder from a "
            "copy, or set another output to start anew"
        )
    return None, damaged


def find_damage(checkpoint: Path, ranks: Ranks | None = None) -> str | None:
    """What is wrong with a checkpoint's files, or None; ``ranks`` as in :func:`find_checkpoint`."""
    ranks = ranks or Ranks(alone=True)
    try:
        files = list(read_json(checkpoint / "manifest.json")["files"].items())
        own = [_fault(checkpoint, *each) for each in files[ranks.rank :: ranks.number]]
        found = next(filter(None, own), None if files else "manifest.json names no files")
    except (CheckpointError, KeyError, TypeError, AttributeError):
        found = "manifest.json is missing or unreadable"
    return next(filter(None, ranks.gather(found)), None)


def _fault(checkpoint: Path, name: str, facts: dict[str, Any]) -> str | None:
    path = checkpoint / name
    if not path.is_file():
        return f"{name} is missing"
    if path.stat().st_size != facts["bytes"] or sha256(path) != facts["sha256"]:
        return f"{name} is not as it was written (its hash differs)"
    return None


def checkpoints_in(folder: Path) -> list[Path]:
    """Finished ones, the newest first."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdecimal()]
    return sorted(found, key=_step_of, reverse=True)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[5:])


def read_json(path: Path) -> Any:
    """Reads JSON that we wrote.

    Raises:
        CheckpointError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None

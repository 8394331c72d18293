"""A run's checkpoints: written aside, fsynced, named by hash, renamed; only then pruned.

``checkpoints/step-000400/`` holds ``model/`` (a Hugging Face folder), ``optimizer.safetensors``,
``state.json`` and, written last, ``manifest.json`` with the size and SHA-256 of every file. Data
order, augmentation, dropout and learning rate are functions of (seed, step), so the step is all
the state that there is besides weights and moments. No pickle is written or read.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from clipkit.atomic import sync, sync_tree, write_json, write_text
from clipkit.errors import CheckpointError
from clipkit.training.distributed import like_parameter, whole_tensor
from clipkit.training.failpoint import failpoint


def checkpoint_name(step: int) -> str:
    return f"step-{step:06d}"


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Saves one checkpoint so that a kill at any moment leaves a loadable folder.

    Args:
        folder: the run's ``checkpoints``.
        step: optimizer steps done.
        write: called with a new, empty folder to fill.
        keep: how many of the newest checkpoints stay.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written, as when the disk is full.
    """
    final = folder / checkpoint_name(step)
    aside = folder / f"{final.name}.tmp"
    try:
        return _save(final, aside, step, write, keep)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{final}: the checkpoint cannot be written ({error}); those before it are intact. "
            "Free some space, then run the same command to go on from the newest"
        ) from error


def _save(final: Path, aside: Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    folder = final.parent
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    failpoint(f"save-{step}-begun")
    write(aside)
    failpoint(f"save-{step}-written")
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(aside)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in files
    }
    write_json(aside / "manifest.json", {"step": step, "files": manifest})
    sync_tree(aside)
    if final.exists():  # a damaged one that was passed over at the start
        shutil.rmtree(final)
    failpoint(f"save-{step}-synced")
    aside.rename(final)
    sync(folder)
    failpoint(f"save-{step}-renamed")
    write_text(folder / "latest", final.name + "\n")
    for old in _checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return final


def find_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as they were written.

    Returns:
        Its folder, or None where no checkpoint was ever finished; and a line for each newer
        one that is damaged and was passed over.

    Raises:
        CheckpointError: there are checkpoints and all of them are damaged.
    """
    damaged: list[str] = []
    for candidate in _checkpoints(folder):
        fault = _damage(candidate)
        if fault is None:
            return candidate, damaged
        damaged.append(f"{candidate}: {fault}")
    if damaged:
        raise CheckpointError(
            f"{damaged[0]}; no other checkpoint is left to go on from. Restore the folder from a "
            "copy, or set another output to start anew"
        )
    return None, damaged


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, torch.Tensor]:
    """The optimizer's state by parameter name: ``name::exp_avg`` and so on; and as
    ``name::parameter`` what is learned beside the backbone. All ranks must call it."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            tensors[f"{name}::parameter"] = parameter.detach().clone()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}::{key}"] = whole_tensor(value).contiguous()
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Undoes :func:`optimizer_tensors`; all ranks must call it.

    Raises:
        CheckpointError: the state is of another set of parameters.
    """
    parameters = dict(model.named_parameters())
    for full_name, value in tensors.items():
        name, key = full_name.split("::")
        if name not in parameters:
            raise CheckpointError(f"optimizer.safetensors: {name} is no parameter of this model")
        parameter = parameters[name]
        if key == "parameter":
            parameter.data.copy_(value)
        elif value.shape == parameter.shape and key != "step":
            optimizer.state[parameter][key] = like_parameter(value, parameter)
        else:
            optimizer.state[parameter][key] = value


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return tensors


def read_json(path: Path) -> Any:
    """Reads JSON that we wrote.

    Raises:
        CheckpointError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None


def _checkpoints(folder: Path) -> list[Path]:
    """Finished ones, the newest first."""
    found = [p for p in folder.glob("step-*") if p.is_dir() and p.name[5:].isdigit()]
    return sorted(found, key=lambda p: int(p.name[5:]), reverse=True)


def _damage(checkpoint: Path) -> str | None:
    try:
        files = read_json(checkpoint / "manifest.json")["files"].items()
    except (CheckpointError, KeyError, TypeError, AttributeError):
        return "manifest.json is missing or unreadable"
    for name, facts in files:
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"] or _sha256(path) != facts["sha256"]:
            return f"{name} is not as it was written (its hash differs)"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What goes wrong in a run: all ranks end alike, and it is said once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from clipkit.atomic import write_json
from clipkit.errors import ClipkitError, Preempted
from clipkit.interrupt import Stop
from clipkit.training.tracking import write_status
from clipkit.types import Batch

T = TypeVar("T")


def main_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What ``action`` returns, in the main process first. A user's mistake that it finds there
    ends all ranks alike, and is said once.

    Raises:
        ClipkitError: what ``action`` raised in the main process.
    """
    told: list[ClipkitError | None] = [None]
    if accelerator.is_main_process:
        try:
            result = action()
        except ClipkitError as error:
            told = [error]
    broadcast_object_list(told)
    if told[0] is not None:
        told[0].said = not accelerator.is_main_process
        raise told[0]
    return result if accelerator.is_main_process else action()


def raise_first(fault: ClipkitError | None) -> None:
    """Ends all ranks if one of them met a fault, with its sentence; all ranks must call it.

    Raises:
        ClipkitError: the first rank's that has one, said by those that met it.
    """
    faults = [each for each in gather_object([fault]) if each is not None]
    if not faults:
        return
    if fault is not None and str(fault) == str(faults[0]):
        raise fault
    faults[0].said = True
    raise faults[0]


def raise_if_asked(stop: Stop) -> None:
    """Ends an evaluation; all ranks hear of it where their shares are joined."""
    if stop.signal:
        raise Preempted(str(int(stop.signal)))


def rank_lost(folder: Path, rank: int, sentence: str) -> None:
    """Says, from a thread, that another rank is no more."""
    print(f"clipkit (rank {rank}): {sentence}", file=sys.stderr)
    if rank == 0:
        write_status(folder, "failed", Preempted.exit_code, message=sentence)


def dump_samples(
    folder: Path,
    step: int,
    batch: list[Batch],
    loss: torch.Tensor,
    norms: dict[str, torch.Tensor],
) -> Path:
    """Names the samples of a step whose gradient is not finite; all ranks must call it."""
    path = folder / "nonfinite" / f"step-{step + 1:06d}.json"
    own = {"loss": str(float(loss)), "samples": [key for part in batch for key in part.keys]}
    ranks = gather_object([own])
    if not dist.is_initialized() or dist.get_rank() == 0:
        path.parent.mkdir(exist_ok=True)
        told = {name: str(float(norm)) for name, norm in norms.items()}
        write_json(path, {"step": step + 1, "gradient_norms": told, "ranks": ranks})
    return path

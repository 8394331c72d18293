"""What the ranks of an evaluation do together: gather their shares, and end alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from clipkit.errors import ClipkitError

T = TypeVar("T")


def gather_shares(make: Callable[[], T], world_size: int) -> list[T] | None:
    """What every rank makes, in their order, on rank 0; None on the others. All must call it.

    A rank that meets an error tells the others, which else would wait for it.

    Raises:
        ClipkitError: of the first rank that met one; on all ranks, to be said by rank 0.
    """
    share: T | ClipkitError
    try:
        share = make()
    except ClipkitError as error:
        share = error
    everyone = _to_rank_zero(share, world_size)

    def check() -> None:
        for each in everyone or []:
            if isinstance(each, ClipkitError):
                raise each

    at_rank_zero(check, world_size)
    return everyone


def at_rank_zero(make: Callable[[], T], world_size: int) -> T | None:
    """What rank 0 makes, there; None on the others. All must call it.

    Raises:
        ClipkitError: that rank 0 met; on all ranks, to be said by rank 0.
    """
    if world_size == 1:
        return make()
    made: T | None = None
    told: list[ClipkitError | None] = [None]
    if dist.get_rank() == 0:
        try:
            made = make()
        except ClipkitError as error:
            told = [error]
    dist.broadcast_object_list(told)
    if told[0] is not None:
        told[0].said = dist.get_rank() != 0
        raise told[0]
    return made


def from_rank_zero(make: Callable[[], T], world_size: int) -> T:
    """What rank 0 makes, on all ranks. All must call it.

    Raises:
        ClipkitError: that rank 0 met; on all ranks, to be said by rank 0.
    """
    made: Any = at_rank_zero(make, world_size)
    if world_size == 1:
        return made  # type: ignore[no-any-return]
    box = [made]
    dist.broadcast_object_list(box)
    value: T = box[0]
    return value


def rank_zero_first(action: Callable[[], T], world_size: int) -> T:
    """What ``action`` returns on each rank, on rank 0 before the others: what is wrong there ends
    all of them. All must call it.

    Raises:
        ClipkitError: that rank 0 met; on all ranks, to be said by rank 0.
    """
    own: list[T] = []
    at_rank_zero(lambda: own.append(action()), world_size)
    return own[0] if own else action()


def _to_rank_zero(value: Any, world_size: int) -> list[Any] | None:
    """The values of all ranks, in their order, on rank 0; None on the others."""
    if world_size == 1:
        return [value]
    assert world_size == dist.get_world_size(), "all ranks, or one alone"
    gathered = [None] * world_size if dist.get_rank() == 0 else None
    dist.gather_object(value, gathered)
    return gathered

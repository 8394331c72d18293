"""Rows of every rank on every rank, with a gradient that is exactly right.

Every rank uses every rank's embeddings as columns, so the gradient of an embedding is the sum
of what all ranks ask of it: the backward of the gather is a reduce-scatter. Under DDP's mean
over ranks, a loss that is the mean over a rank's own rows then has the gradient of the global
loss, with no factor of world size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.14 renamed it, and warns of the old name at every call.
all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def world() -> tuple[int, int]:
    """(rank, world size); (0, 1) where nothing is distributed."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_rows(rows: Tensor) -> Tensor:
    """All ranks' rows, in the order of ranks; differentiable.

    Args:
        rows: (B, ...), of one shape on all ranks.

    Returns:
        (N, ...), N = B times the world size; ``rows`` itself on one rank.
    """
    if world()[1] == 1:
        return rows
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty(world()[1] * rows.shape[0], *rows.shape[1:])
        all_gather(gathered, rows.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        rank, size = world()
        count = grad.shape[0] // size
        # Not a reduce-scatter: gloo lacks it in the oldest torch that we support.
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[rank * count : (rank + 1) * count]

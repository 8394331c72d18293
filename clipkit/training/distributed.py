"""What ranks do together: agree, shard the model (FSDP2), and make it whole again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from clipkit.models import DualEncoder

T = TypeVar("T")


class Ranks:
    """What ranks tell one another over the CPU, without a look at the accelerator.

    Args:
        alone: this process, whatever others there are.
        apart: by a group of its own, so that a thread may use it.
    """

    def __init__(self, *, alone: bool = False, apart: bool = False) -> None:
        together = dist.is_initialized() and not alone
        self.number = dist.get_world_size() if together else 1
        self.rank = dist.get_rank() if together else 0
        self._group: Any = None
        if self.number > 1 and (apart or dist.get_backend() != "gloo"):
            self._group = dist.new_group(backend="gloo")

    def most(self, *values: int) -> list[int]:
        """The greatest of each value over all ranks."""
        if self.number == 1:
            return list(values)
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        result: list[int] = tensor.tolist()
        return result

    def total(self, *values: float) -> list[float]:
        """The sum of each value over all ranks."""
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.number > 1:
            dist.all_reduce(tensor, group=self._group)
        result: list[float] = tensor.tolist()
        return result

    def gather(self, value: T) -> list[T]:
        """The value of each rank."""
        if self.number == 1:
            return [value]
        values: list[Any] = [None] * self.number
        dist.all_gather_object(values, value, group=self._group)
        return values


def shard(model: DualEncoder, device: torch.device, *, offload: bool = False) -> DualEncoder:
    """Shards weights, and with them gradients and moments, over all ranks, layer by layer.

    ``logit_scale`` and the bias stay whole, and on the device: FSDP2 shards nothing of no
    dimensions. Their gradients are averaged by :func:`average_whole`.

    What a layer computes in, its weights are sent in: it would round them itself, to the same
    bits. Its gradients are float32 before they are summed. What is in no layer is sent as it is,
    for some of it is computed in float32.

    Args:
        model: on the device.
        device: of this rank.
        offload: what is sharded stays in the CPU's memory.

    Reference: ZeRO-3, https://arxiv.org/abs/1910.02054, section 5.3; PyTorch's FSDP2.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy: OffloadPolicy = CPUOffloadPolicy() if offload else OffloadPolicy()
    rounded = MixedPrecisionPolicy(
        param_dtype=model.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in model.blocks():
        fully_shard(block, mesh=mesh, offload_policy=policy, mp_policy=rounded)
    whole = {p for p in model.parameters() if p.ndim == 0}
    fully_shard(model, mesh=mesh, ignored_params=whole, offload_policy=policy)
    return model


def average_whole(parameters: Iterable[nn.Parameter]) -> None:
    """Averages over ranks the gradients of those parameters that FSDP leaves alone."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A sharded model is whole inside, so that ranks may run it unequally often."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every rank; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def is_finite(model: nn.Module) -> bool:
    """Whether what this rank holds of the weights has no NaN and no Inf."""
    local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return all(bool(torch.isfinite(part).all()) for part in local)


def clip_gradients(model: DualEncoder, max_norm: float | None) -> dict[str, Tensor]:
    """Scales all gradients down to a total norm of at most ``max_norm``.

    Returns:
        The norms before that: ``all``, ``vision`` and ``text`` (towers with their projections);
        (), the same on all ranks. Not finite if a gradient is not.
    """
    gradients: dict[str, list[Tensor]] = {"vision": [], "text": [], "other": []}
    for placed in model.parameters_by_depth():
        if placed.parameter.grad is not None:
            gradients[placed.tower or "other"].append(placed.parameter.grad)
    norms = {
        tower: whole_tensor(torch.nn.utils.get_total_norm(grads))
        for tower, grads in gradients.items()
        if grads
    }
    # Of offloaded gradients, the norms are on the CPU; those of the scale are not.
    device = next(iter(norms.values())).device
    total = torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms.values()]))
    if max_norm is not None:
        factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
        for grads in gradients.values():
            if grads:
                local = [g.to_local() if isinstance(g, DTensor) else g for g in grads]
                torch._foreach_mul_(local, factor.to(local[0].device))
    zero = torch.zeros_like(total)
    return {"all": total, "vision": norms.get("vision", zero), "text": norms.get("text", zero)}

"""Muon for matrices, whole or sharded, beside AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Each step moves a matrix by its momentum with all singular values made about 1.

    It computes what ``torch.optim.Muon`` does with ``match_rms_adamw``, all matrices of a shape
    at once; sharded ones are made whole once a step, where that one would talk in each of its
    matmuls.

    Args:
        groups: of matrices alone.
        lr: a step is as large as one of AdamW with this rate.
        weight_decay: decoupled, as AdamW's.

    Reference: https://kellerjordan.github.io/posts/muon; the size of the step and the decay:
    https://arxiv.org/abs/2502.16982, section 2.2.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, weight_decay: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                weights = [_local(matrix) for matrix in matrices]
                updates = self._updates(matrices)
                size = 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates, alpha=-group["lr"] * size)

    def _updates(self, matrices: list[nn.Parameter]) -> list[Tensor]:
        """For matrices of one shape: this rank's rows of each one's update."""
        gradients = [_local(_grad(matrix)) for matrix in matrices]
        momenta = [_local(self._momentum(matrix)) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
        stack = torch.stack(ahead).bfloat16()  # (K, rows of this rank, columns)
        first = matrices[0]
        if isinstance(first, DTensor):
            mesh, shape = first.device_mesh, torch.Size((len(matrices), *first.shape))
            sharded = DTensor.from_local(
                stack.to(mesh.device_type), mesh, (Shard(1),), run_check=False,
                shape=shape, stride=(shape[1] * shape[2], shape[2], 1),
            )  # fmt: skip
            whole = orthogonalise(sharded.full_tensor())
            # Every rank has all of it, so that nothing is sent.
            stack = distribute_tensor(whole, mesh, (Shard(1),), src_data_rank=None).to_local()
        else:
            stack = orthogonalise(stack)
        return list(stack.to(gradients[0]))

    def _momentum(self, matrix: nn.Parameter) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


class MuonAdamW(torch.optim.Optimizer):
    """Both as one optimizer, with one ``state`` and one list of groups."""

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        self._parts = (muon, adamw)
        self._first = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        groups = (self.param_groups[: self._first], self.param_groups[self._first :])
        for part, own in zip(self._parts, groups, strict=True):
            # Each time, because loading a state replaces both.
            part.state, part.param_groups = self.state, own
            part.step()


def orthogonalise(matrices: Tensor) -> Tensor:
    """(K, R, C) → the nearest matrices with singular values of about 1 (0.7 to 1.2), in bf16.

    Reference: a quintic Newton-Schulz iteration, https://kellerjordan.github.io/posts/muon.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad

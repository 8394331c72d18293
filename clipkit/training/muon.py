"""Muon for matrices, whole or sharded, beside AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from clipkit.losses.gather import all_gather

_MOMENTUM = 0.95
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Each step moves a matrix by its momentum with all singular values made about 1.

    It computes what ``torch.optim.Muon`` does with ``match_rms_adamw``, all matrices of a shape
    at once; sharded ones are made whole once a step, where that one would talk in each of its
    matmuls. Of several ranks each computes the updates of its share of the matrices, by cost, and
    all are told all updates, in the dtype that they are computed in.

    Args:
        groups: of matrices alone.
        lr: a step is as large as one of AdamW with this rate.
        weight_decay: decoupled, as AdamW's.
        dtype: what updates are computed in: bfloat16 where the device is fast in it.

    Reference: https://kellerjordan.github.io/posts/muon; the size of the step and the decay:
    https://arxiv.org/abs/2502.16982, section 2.2.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        groups = [
            (group, [matrix for matrix in group["params"] if matrix.grad is not None])
            for group in self.param_groups
        ]
        updates = self._updates([matrix for _, matrices in groups for matrix in matrices])
        for group, matrices in groups:
            for shape, own in _by_shape(matrices).items():
                weights = [_local(matrix) for matrix in own]
                moves = [_rows(updates[matrix], matrix).to(weights[0]) for matrix in own]
                size = 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, moves, alpha=-group["lr"] * size)

    def _updates(self, matrices: list[nn.Parameter]) -> dict[nn.Parameter, Tensor]:
        """The whole update of each matrix, in ``dtype``, before it is scaled."""
        together = dist.is_initialized() and dist.get_world_size() > 1
        ranks = dist.get_world_size() if together else 1
        shares = _shares(matrices, ranks)
        mine = set(shares[dist.get_rank() if together else 0])
        updates: dict[nn.Parameter, Tensor] = {}
        for same in _by_shape(matrices).values():
            stack = self._ahead(same)
            own = [number for number, matrix in enumerate(same) if matrix in mine]
            if len(own) < len(same):
                stack = stack[own]
            if own:
                done = orthogonalise(stack)
                updates |= zip((same[number] for number in own), done, strict=True)
        return _told(updates, shares, self.dtype) if together and matrices else updates

    def _ahead(self, matrices: list[nn.Parameter]) -> Tensor:
        """Matrices of one shape → (K, R, C) of ``dtype``, the direction of each before it is made
        orthogonal; the momenta move on."""
        gradients = [_local(_grad(matrix)) for matrix in matrices]
        momenta = [_local(self._momentum(matrix)) for matrix in matrices]
        torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
        stack = torch.empty((len(ahead), *ahead[0].shape), dtype=self.dtype, device=ahead[0].device)
        torch._foreach_copy_(list(stack), ahead)  # (K, rows of this rank, C)
        first = matrices[0]
        if not isinstance(first, DTensor):
            return stack
        mesh, shape = first.device_mesh, torch.Size((len(matrices), *first.shape))
        sharded = DTensor.from_local(
            stack.to(mesh.device_type), mesh, (Shard(1),), run_check=False,
            shape=shape, stride=(shape[1] * shape[2], shape[2], 1),
        )  # fmt: skip
        return sharded.full_tensor()

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

    @property
    def matrices(self) -> set[nn.Parameter]:
        """What Muon updates."""
        groups = self.param_groups[: self._first]
        return {matrix for group in groups for matrix in group["params"]}

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        assert closure is None
        groups = (self.param_groups[: self._first], self.param_groups[self._first :])
        for part, own in zip(self._parts, groups, strict=True):
            # Each time, because loading a state replaces both.
            part.state, part.param_groups = self.state, own
            part.step()


def orthogonalise(matrices: Tensor) -> Tensor:
    """(K, R, C) → the nearest matrices with singular values of about 1 (0.7 to 1.2), in the dtype
    of what comes in.

    Reference: a quintic Newton-Schulz iteration, https://kellerjordan.github.io/posts/muon.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = (x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)).contiguous()
    y, gram = torch.empty_like(x), x.new_empty(len(x), x.shape[1], x.shape[1])
    factor = torch.empty_like(gram)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):  # in the same memory: fresh pages cost as much as some products
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=factor)
        torch.baddbmm(x, factor, x, beta=a, out=y)
        x, y = y, x
    return x.mT if tall else x


def _by_shape(matrices: list[nn.Parameter]) -> dict[torch.Size, list[nn.Parameter]]:
    found: dict[torch.Size, list[nn.Parameter]] = {}
    for matrix in matrices:
        found.setdefault(matrix.shape, []).append(matrix)
    return found


def _shares(matrices: list[nn.Parameter], ranks: int) -> list[list[nn.Parameter]]:
    """Which matrices each rank computes the updates of: the costliest first, each to the rank
    that has the least to do."""
    shares: list[list[nn.Parameter]] = [[] for _ in range(ranks)]
    load = [0] * ranks
    for matrix in sorted(matrices, key=_cost, reverse=True):
        rank = load.index(min(load))
        shares[rank].append(matrix)
        load[rank] += _cost(matrix)
    return shares


def _cost(matrix: nn.Parameter) -> int:
    """Multiplications of an iteration: two products with the long side, one without."""
    short, long = sorted(matrix.shape)
    return short**2 * (2 * long + short)


def _told(
    own: dict[nn.Parameter, Tensor], shares: list[list[nn.Parameter]], dtype: torch.dtype
) -> dict[nn.Parameter, Tensor]:
    """The updates of all ranks, from this one's; all ranks must call it."""
    sizes = [sum(matrix.numel() for matrix in share) for share in shares]
    first = shares[0][0]
    device = first.device_mesh.device_type if isinstance(first, DTensor) else first.device
    sent = torch.zeros(max(sizes), dtype=dtype, device=device)
    mine = shares[dist.get_rank()]
    if mine:
        sent[: sizes[dist.get_rank()]] = torch.cat([own[matrix].flatten() for matrix in mine])
    received = sent.new_empty(len(shares) * len(sent))
    all_gather(received, sent)
    updates: dict[nn.Parameter, Tensor] = {}
    for share, size, row in zip(shares, sizes, torch.split(received, len(sent)), strict=True):
        parts = torch.split(row[:size], [matrix.numel() for matrix in share])
        updates |= {m: part.view(m.shape) for m, part in zip(share, parts, strict=True)}
    return updates


def _rows(update: Tensor, matrix: nn.Parameter) -> Tensor:
    """What this rank holds of a matrix, of its update."""
    if not isinstance(matrix, DTensor):
        return update
    rank = matrix.device_mesh.get_local_rank()
    chunks = update.chunk(matrix.device_mesh.size())
    return chunks[rank] if rank < len(chunks) else update[:0]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad

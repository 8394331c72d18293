"""(rows, columns) → sums over their logits, in memory linear in both.

The logits ``scale · rows @ columns.T`` are made block by block, small enough to stay in a CPU's
cache, and made again in the backward pass; never all of them at once. What is kept of a row or a
column is one number, in float64 where the device has it.

Each rank takes its own rows against the columns of all ranks, so that every logit is computed
once in the whole job. Inf-CL (https://arxiv.org/abs/2410.17243) is the idea of running sums over
blocks; its ring of ranks is not needed, as gathered embeddings are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_CPU_BLOCK = (1024, 1024)  # 4 MiB of float32
_GPU_BLOCK = (8192, 8192)
# One shift for a whole block is exact enough while its sums stay this far above underflow …
_LEAST_SUM = 1e-20
# … and while what it is undone by stays this far below overflow, in nats.
_MOST_SPREAD = 40.0


def log_sum_exp(
    rows: Tensor, columns: Tensor, scale: Tensor, first: int, *, bf16: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """What a softmax over the logits of rows against columns needs, in both directions.

    Args:
        rows: (B, D) float32.
        columns: (N, D) float32.
        scale: (), of the logits.
        first: row i and column first + i are a pair.
        bf16: multiply matrices in bf16; sums are float32 all the same.

    Returns:
        (B,) the log-sum-exp of each row, (N,) that of each column over these rows, and (B,) the
        logit of each pair; float64 where the device has it. -inf for a sum of nothing.
    """
    result: tuple[Tensor, Tensor, Tensor] = _LogSumExp.apply(rows, columns, scale, first, bf16)
    return result


def sum_softplus(
    rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, first: int, *, bf16: bool = False
) -> Tensor:
    """The sum over all pairs of ``softplus(±logit)``: minus for a pair, plus for the others.

    Args:
        rows: (B, D) float32.
        columns: (N, D) float32.
        scale: (), of the logits.
        bias: (), added to the logits.
        first: row i and column first + i are a pair.
        bf16: as for :func:`log_sum_exp`.

    Returns:
        (); float64 where the device has it.
    """
    result: Tensor = _SumSoftplus.apply(rows, columns, scale, bias, first, bf16)
    return result


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def each_block(
    rows: Tensor, columns: Tensor, scale: Tensor, *, bf16: bool = False
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(rows, columns, their logits), block by block; the logits' memory is used again."""
    height, width = _CPU_BLOCK if rows.device.type == "cpu" else _GPU_BLOCK
    height, width = min(height, len(rows)), min(width, len(columns))
    if not height or not width:
        return
    memory = rows.new_empty(height * width, dtype=torch.float32)
    for i in range(0, len(rows), height):
        some = rows[i : i + height]
        some = some.to(torch.bfloat16) if bf16 else some * scale
        for j in range(0, len(columns), width):
            other = columns[j : j + width]
            other = other.to(torch.bfloat16) if bf16 else other
            logits = memory[: len(some) * len(other)].view(len(some), len(other))
            if not bf16:
                torch.mm(some, other.T, out=logits)
            elif rows.is_cuda:
                logits.copy_(torch.mm(some, other.T, out_dtype=torch.float32)).mul_(scale)
            else:
                logits.copy_(some @ other.T).mul_(scale)
            yield slice(i, i + len(some)), slice(j, j + len(other)), logits


def block_bytes(rows: int, columns: int, *, gpu: bool) -> int:
    """Of the logits that are there at one time."""
    height, width = _GPU_BLOCK if gpu else _CPU_BLOCK
    return 4 * min(height, rows) * min(width, columns)


def pair_rows(i: slice, j: slice, first: int) -> slice:
    """The rows of a block whose pair is among its columns."""
    begin, end = max(i.start, j.start - first), min(i.stop, j.stop - first)
    return slice(begin, max(begin, end))


def pair_logits(i: slice, j: slice, first: int, logits: Tensor) -> Tensor:
    """A view of the logits of pairs in a block; empty where it has none."""
    rows = pair_rows(i, j, first)
    part = logits[rows.start - i.start : rows.stop - i.start]
    offset = rows.start + first - j.start
    return part.diagonal(offset) if len(part) else logits.new_empty(0)


def _add_products(
    to_rows: Tensor, to_columns: Tensor, block: Tensor, rows: Tensor, columns: Tensor, *, bf16: bool
) -> None:
    """to_rows += block @ columns and to_columns += block.T @ rows; bf16 rounds what is
    multiplied, not what is summed up."""
    if bf16:
        mixed = block.to(torch.bfloat16)
        to_rows.add_(mixed @ columns.to(torch.bfloat16))
        to_columns.add_(mixed.T @ rows.to(torch.bfloat16))
    else:
        to_rows.addmm_(block, columns)
        to_columns.addmm_(block.T, rows)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """(), the sum of the products, without room for all of them."""
    total = left.new_zeros((), dtype=_wide(left.device))
    for some, others in zip(torch.split(left, 1024), torch.split(right, 1024), strict=True):
        total += torch.dot(some.flatten(), others.flatten())
    return total.to(left.dtype)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, first: int, bf16: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = _wide(rows.device)
        of_rows = rows.new_full((len(rows),), -torch.inf, dtype=wide)
        of_columns = rows.new_full((len(columns),), -torch.inf, dtype=wide)
        pairs = rows.new_zeros(len(rows), dtype=wide)
        spare: Tensor | None = None
        for i, j, logits in each_block(rows, columns, scale, bf16=bf16):
            pairs[pair_rows(i, j, first)] = pair_logits(i, j, first, logits).to(wide)
            if rows.device.type == "cpu":
                if spare is None:
                    spare = torch.empty(logits.numel())
                peak = logits.amax()
                exp = spare[: logits.numel()].view_as(logits)
                torch.exp(torch.sub(logits, peak, out=exp), out=exp)
                by_row, by_column = exp.sum(1), exp.sum(0)
                # One exponential serves both directions, unless a row or a column lies so far
                # below the block's greatest logit that nothing is left of it.
                if float(torch.minimum(by_row.amin(), by_column.amin())) > _LEAST_SUM:
                    by_row = by_row.to(wide).log_().add_(peak)
                    by_column = by_column.to(wide).log_().add_(peak)
                else:
                    by_row, by_column = logits.logsumexp(1), logits.logsumexp(0)
            else:  # without a look at the values, for which the processor would have to wait
                by_row, by_column = logits.logsumexp(1), logits.logsumexp(0)
            of_rows[i] = torch.logaddexp(of_rows[i], by_row.to(wide))
            of_columns[j] = torch.logaddexp(of_columns[j], by_column.to(wide))
        ctx.save_for_backward(rows, columns, scale, of_rows, of_columns)
        ctx.first, ctx.bf16 = first, bf16
        return of_rows, of_columns, pairs

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_rows: Tensor, grad_columns: Tensor, grad_pairs: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, columns, scale, of_rows, of_columns = ctx.saved_tensors
        to_rows, to_columns = torch.zeros_like(rows), torch.zeros_like(columns)
        cpu = rows.device.type == "cpu"
        sums: Tensor | None = None
        for i, j, logits in each_block(rows, columns, scale, bf16=ctx.bf16):
            shift = None
            if cpu:
                highest = min(float(of_rows[i].max()), float(of_columns[j].max()))
                lowest = min(float(of_rows[i].min()), float(of_columns[j].min()))
                shift = highest if highest - lowest < _MOST_SPREAD else None
            # What the loss's gradient is by each logit, in place of the logits.
            if shift is not None:
                by_row = (grad_rows[i] * (shift - of_rows[i]).exp()).to(rows.dtype)
                by_column = (grad_columns[j] * (shift - of_columns[j]).exp()).to(rows.dtype)
                if sums is None:
                    sums = torch.empty(logits.numel())
                both = sums[: logits.numel()].view_as(logits)
                torch.add(by_row[:, None], by_column, out=both)
                logits.sub_(shift).exp_().mul_(both)
            else:
                other = (logits - of_columns[j].to(rows.dtype)).exp_()
                logits.sub_(of_rows[i].to(rows.dtype)[:, None]).exp_()
                logits.mul_(grad_rows[i].to(rows.dtype)[:, None])
                logits.add_(other.mul_(grad_columns[j].to(rows.dtype)))
            pairs = pair_logits(i, j, ctx.first, logits)
            pairs.add_(grad_pairs[pair_rows(i, j, ctx.first)].to(rows.dtype))
            _add_products(to_rows[i], to_columns[j], logits, rows[i], columns[j], bf16=ctx.bf16)
        to_scale = _dot(rows, to_rows)
        return to_rows.mul_(scale), to_columns.mul_(scale), to_scale, None, None


class _SumSoftplus(torch.autograd.Function):
    """Has no normaliser to wait for, so the gradient is found in the same pass."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        first: int,
        bf16: bool,
    ) -> Tensor:
        wide = _wide(rows.device)
        total = rows.new_zeros((), dtype=wide)
        backward = any(ctx.needs_input_grad)
        if backward:
            to_rows, to_columns = torch.zeros_like(rows), torch.zeros_like(columns)
            to_bias = rows.new_zeros((), dtype=wide)
        for i, j, logits in each_block(rows, columns, scale, bf16=bf16):
            logits.add_(bias)
            pairs = pair_logits(i, j, first, logits)
            pairs.neg_()
            total += F.softplus(logits).sum(dtype=wide)
            if backward:
                logits.sigmoid_()
                pairs.neg_()
                to_bias += logits.sum(dtype=wide)
                _add_products(to_rows[i], to_columns[j], logits, rows[i], columns[j], bf16=bf16)
        if backward:
            to_scale = _dot(rows, to_rows)
            ctx.save_for_backward(
                to_rows.mul_(scale), to_columns.mul_(scale), to_scale, to_bias.to(rows.dtype)
            )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(saved * grad.to(saved.dtype) for saved in ctx.saved_tensors), None, None

"""Matrix products in int8: whether a CPU has them, and what they round.

In int8 the weights of each output have a scale of their own, and so has each token, taken from the
token itself (vector-wise quantization: LLM.int8(), https://arxiv.org/abs/2208.07339, section 3.1),
so that an embedding does not depend on what else is in its batch.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_MOST = 127
# A little less for tokens: the scale is rounded to their dtype, and what is above 127 would become
# negative.
_MOST_OF_TOKEN = 126.5
_ZERO = 128  # tokens are shifted by it, for the instructions take one factor without a sign
_LEAST = 1e-30  # of a scale: tokens of zeros have none
_AS_INT = {torch.float32: (torch.int32, 2**31 - 1), torch.bfloat16: (torch.int16, 2**15 - 1)}


class Int8Weights(NamedTuple):
    """Weights of a linear module in int8, for a CPU.

    Attributes:
        packed: (N, K) int8, in the order that oneDNN takes.
        scales: (N,) float32.
        zeros: (N,) int64, all 0.
        bias: (N,) float32, or None.
    """

    packed: Tensor
    scales: Tensor
    zeros: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Int8Weights:
        """(N, K) float32 and (N,) → the same, rounded."""
        weight = weight.detach()
        scales = weight.abs().amax(1).clamp_min(_LEAST) / _MOST
        rounded = (weight / scales[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(rounded, None)
        zeros = torch.zeros(len(weight), dtype=torch.int64)
        return cls(packed, scales, zeros, None if bias is None else bias.detach())

    def linear(self, x: Tensor) -> Tensor:
        """(…, K) float32 or bfloat16 → (…, N) of the same dtype."""
        x = x.contiguous()
        kind, without_sign = _AS_INT[x.dtype]
        # The largest of a row by its bits, whose order is that of numbers without a sign: several
        # times as fast as by the numbers.
        most = (x.view(kind) & without_sign).amax(-1, keepdim=True).view(x.dtype)
        factor = (_MOST_OF_TOKEN / most.float().clamp_min(_LEAST)).to(x.dtype)
        rounded = (x * factor).round_().to(torch.int8).view(torch.uint8) ^ _ZERO  # plus 128
        y = _multiply(rounded, self, x.dtype)
        scale = (1 / factor.float()).to(x.dtype)
        return (
            y.mul_(scale) if self.bias is None else torch.addcmul(self.bias.to(x.dtype), y, scale)
        )


def _multiply(rounded: Tensor, weights: Int8Weights, dtype: torch.dtype) -> Tensor:
    """(…, K) uint8, shifted → (…, N): the products with the weights, times their scales."""
    packed, scales, zeros, _ = weights
    result: Tensor = torch.ops.onednn.qlinear_pointwise(
        rounded, 1.0, _ZERO, packed, scales, zeros, None, 1.0, 0, dtype, "none", [], ""
    )
    return result


@cache
def has_int8_products() -> bool:
    """Whether this CPU multiplies int8 fast, and exactly: before VNNI, sums of two products were
    kept in 16 bits, and cut off."""
    if not _has_flag("avx512_vnni", "avx_vnni", "amx_int8"):
        return False
    weights = torch.tensor([[127.0], [-127.0], [1.0]]).expand(3, 64).contiguous()
    tokens = torch.tensor([[255], [0]], dtype=torch.uint8).expand(2, 64).contiguous()
    expected = (tokens.float() - _ZERO) @ weights.T
    try:
        made = Int8Weights.of(weights, None)._replace(scales=torch.ones(3))
        found = _multiply(tokens, made, torch.float32)
    except (AttributeError, RuntimeError):  # another PyTorch
        return False
    expected[:, 2] *= _MOST  # whose scale was 1 / 127
    return torch.equal(found, expected)


def _has_flag(*names: str) -> bool:
    """Whether this CPU has one of these sets of instructions."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(rf"\b({'|'.join(names)})\b", flags) is not None

"""Queries, keys and values of many images or captions, one after the other → attention.

Tokens come flat, (T, W), and a layout says which belong together: images are all of one length,
captions (see :mod:`clipkit.models.packing`) of any. In bf16 on a CPU the backward pass of
PyTorch's SDPA is several times slower than plain batched matrix products, in float32 and on a
GPU it is faster; ``resolve_attention`` chooses.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.models.packing import PackedTexts
from clipkit.models.plain import call


class Layout(Protocol):
    """Which tokens attend to which. H heads; W is H times their width.

    Attributes:
        shares: where each layer leaves its attention; None where nobody asks for it.
    """

    @property
    def shares(self) -> list[Tensor] | None: ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
        """(T, W) each → (T, W). With one query an image or caption, that of its pooled token,
        q is (B, W) and so is the result."""

    def attend_by(self, module: nn.Module, x: Tensor) -> Tensor:
        """(T, W) → (T, W), by a module that takes (B, L, W) and a mask to add, as transformers'
        attention does."""

    def pool(self, x: Tensor) -> Tensor:
        """(T, W) → (B, W), the tokens that become embeddings."""


class ImageLayout(NamedTuple):
    """B images of L tokens each, the first of them pooled; every token sees its image.

    Where ``shares`` is a list, each layer adds its attention to it, (B, H, queries, L).
    """

    images: int
    length: int
    sdpa: bool
    shares: list[Tensor] | None = None

    def pool(self, x: Tensor) -> Tensor:
        return x.view(self.images, self.length, -1)[:, 0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
        queries, keys, values = (_heads(x, self.images, heads) for x in (q, k, v))
        if self.shares is not None:
            self.shares.append(_shares(queries, keys, None))
            return _flat(self.shares[-1] @ values)
        return _flat(_attention(queries, keys, values, None, dropout, sdpa=self.sdpa))

    def attend_by(self, module: nn.Module, x: Tensor) -> Tensor:
        return _called(module, x.view(self.images, self.length, -1), None)


class TextLayout(NamedTuple):
    """B captions; a token sees those of its caption up to itself; the end token is pooled."""

    texts: PackedTexts
    sdpa: bool
    shares: None = None

    def pool(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.texts.ends)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, heads: int, dropout: float) -> Tensor:
        texts = self.texts
        last = len(q) != len(k)  # only the end tokens' queries
        tokens = len(k)
        keys, values = (_Pad.apply(x, texts.padded, texts.unpadded) for x in (k, v))
        queries = q if last else _Pad.apply(q, texts.padded, texts.unpadded)
        sizes = [count * length for count, length in texts.groups]
        parts = zip(
            texts.groups,
            torch.split(queries, [count for count, _ in texts.groups] if last else sizes),
            torch.split(keys, sizes),
            torch.split(values, sizes),
            torch.split(texts.unpadded, sizes),
            strict=True,
        )
        results = []
        for (count, length), *qkv, unpadded in parts:
            if last:  # a key that pads is the last of the tokens, which is filling
                mask = (unpadded < tokens - 1).view(count, 1, 1, length)
            else:
                mask = _causal(length, q.device)
            q_part, k_part, v_part = (_heads(x, count, heads) for x in qkv)
            attended = _attention(q_part, k_part, v_part, mask, dropout, sdpa=self.sdpa)
            results.append(_flat(attended))
        result = torch.cat(results)
        return result if last else _Unpad.apply(result, texts.padded, texts.unpadded, tokens)

    def attend_by(self, module: nn.Module, x: Tensor) -> Tensor:
        texts = self.texts
        padded = _Pad.apply(x, texts.padded, texts.unpadded)
        results = []
        parts = torch.split(padded, [count * length for count, length in texts.groups])
        for (count, length), part in zip(texts.groups, parts, strict=True):
            unseen = torch.finfo(x.dtype).min
            mask = torch.full((length, length), unseen, dtype=x.dtype, device=x.device).triu(1)
            results.append(_called(module, part.view(count, length, -1), mask[None, None]))
        flat = torch.cat(results)
        unpadded: Tensor = _Unpad.apply(flat, texts.padded, texts.unpadded, len(x))
        return unpadded


class _Pad(torch.autograd.Function):
    """(T, W) tokens → (P, W), padded with the last of them, whose gradient is left out: it is 0.

    Both this and its gradient only read rows, which is ten times as fast as to add to them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, padded: Tensor, unpadded: Tensor) -> Tensor:
        ctx.save_for_backward(padded)
        ctx.tokens = len(x)
        return x.index_select(0, unpadded)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _unpad(gradient, ctx.saved_tensors[0], ctx.tokens), None, None


class _Unpad(torch.autograd.Function):
    """(P, W) → (T, W), 0 for what is filling; the reverse of ``_Pad``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padded: Tensor, unpadded: Tensor, tokens: int) -> Tensor:
        ctx.save_for_backward(unpadded)
        return _unpad(x, padded, tokens)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return gradient.index_select(0, ctx.saved_tensors[0]), None, None, None


def _called(module: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, L, W) → (B · L, W)."""
    result = call(module, x, attention_mask=mask)
    result = result[0] if isinstance(result, tuple) else result
    flat: Tensor = result.to(x.dtype).flatten(0, 1)
    return flat


def _unpad(x: Tensor, padded: Tensor, tokens: int) -> Tensor:
    result = x.new_zeros(tokens, x.shape[1])
    torch.index_select(x, 0, padded, out=result[: len(padded)])
    return result


def resolve_attention(attention: str, device: torch.device, dtype: torch.dtype) -> str:
    """``auto`` → ``eager`` in bf16 on a CPU and ``sdpa`` elsewhere; anything else as it is.

    Args:
        attention: ``auto``, ``eager`` or ``sdpa``.
        device: where the model runs.
        dtype: what it computes in.
    """
    if attention != "auto":
        return attention
    return "eager" if device.type == "cpu" and dtype == torch.bfloat16 else "sdpa"


def _heads(x: Tensor, count: int, heads: int) -> Tensor:
    """(B · L, W) → (B, H, L, W / H)."""
    return x.reshape(count, -1, heads, x.shape[-1] // heads).transpose(1, 2)


def _flat(x: Tensor) -> Tensor:
    """(B, H, L, W / H) → (B · L, W)."""
    return x.transpose(1, 2).reshape(-1, x.shape[1] * x.shape[3])


def _causal(length: int, device: torch.device) -> Tensor:
    """(L, L) bool: what each token sees."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, *, sdpa: bool
) -> Tensor:
    """(B, H, L, W / H) each → the same; ``mask`` is True where a key is seen."""
    if sdpa:
        causal = mask is not None and mask.ndim == 2  # a flag is faster than a mask
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if causal else mask, dropout_p=dropout, is_causal=causal
        )
    shares = _shares(q, k, mask)
    if dropout:
        shares = F.dropout(shares, dropout)
    return shares @ v


def _shares(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, queries, L): how much of each key a query takes; each row sums to 1."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    shares: Tensor = scores.softmax(-1)
    return shares

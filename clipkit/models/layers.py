"""A layer of a tower: transformers' parameters, a forward pass that does less and does it once.

Beside transformers' own forward: queries, keys and values are one matrix product; tokens come
flat and unpadded; of the last layer only the pooled tokens are computed; weights are rounded to
the dtype of what comes in, so that bf16 needs neither autocast nor a second copy of the model. A
module that is not plain (:mod:`clipkit.models.plain`) is called instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention, CLIPEncoderLayer

from clipkit.models.attention import ImageLayout, Layout, TextLayout
from clipkit.models.plain import call, is_plain
from clipkit.models.products import Int8Weights

_Joined = tuple[Tensor, Tensor | None]  # weights and biases of modules, one under the other


class EncoderLayer(CLIPEncoderLayer):  # type: ignore[misc]
    """A ``CLIPEncoderLayer`` that takes a layout; without one it is what it was.

    Attributes:
        recompute: keep only what comes in, and compute again in the backward pass.
    """

    recompute = False

    def forward(
        self, hidden_states: Tensor, layout: Any = None, pool: bool = False, **kwargs: Any
    ) -> Tensor:
        """One layer.

        Args:
            hidden_states: (T, W), the tokens of all images or captions.
            layout: which belong together.
            pool: return the pooled tokens only, (B, W), and compute no more than they need.
            kwargs: of transformers, where there is no layout.
        """
        if not isinstance(layout, ImageLayout | TextLayout):
            result: Tensor = super().forward(hidden_states, layout, **kwargs)
            return result
        if self.recompute and torch.is_grad_enabled():
            # Inside the layer, so that FSDP's hooks are not called by the second pass.
            arguments = hidden_states, layout, pool
            again: Tensor = checkpoint(self._compute, *arguments, use_reentrant=False)
            return again
        return self._compute(hidden_states, layout, pool)

    def _compute(self, hidden_states: Tensor, layout: Layout, pool: bool) -> Tensor:
        x = hidden_states
        y = self._attend(norm(x, self.layer_norm1), layout, pool)
        x = (layout.pool(x) if pool else x) + y
        y = norm(x, self.layer_norm2)
        if not is_plain(self.mlp, CLIPMLP):
            called: Tensor = x + call(self.mlp, y).to(x.dtype)
            return called
        y = linear(y, self.mlp.fc1)
        return x + linear(self.mlp.activation_fn(y), self.mlp.fc2)

    def _attend(self, y: Tensor, layout: Layout, pool: bool) -> Tensor:
        """(T, W) → (T, W), or (B, W) where the pooled tokens alone are asked for."""
        attention = self.self_attn
        # A module that is called gives no shares; whoever asks for them gets its own four Linears.
        if layout.shares is None and not is_plain(attention, CLIPAttention):
            attended = layout.attend_by(attention, y)
            return layout.pool(attended) if pool else attended
        if pool:
            q = linear(layout.pool(y), attention.q_proj)
            k, v = linear(y, attention.k_proj, attention.v_proj).chunk(2, dim=-1)
        else:
            qkv = linear(y, attention.q_proj, attention.k_proj, attention.v_proj)  # (T, 3 W)
            q, k, v = qkv.chunk(3, dim=-1)
        dropout = attention.dropout if self.training else 0.0
        y = layout.attend(q, k, v, attention.num_heads, dropout)
        return linear(y, attention.out_proj)


def linear(x: Tensor, *modules: nn.Linear) -> Tensor:
    """(…, W) → (…, the sum of their widths): all of the modules at once, in the dtype of x."""
    if not all(is_plain(module, nn.Linear) for module in modules):
        called = [call(module, x).to(x.dtype) for module in modules]
        return called[0] if len(called) == 1 else torch.cat(called, dim=-1)
    kept: _Kept | None = getattr(modules[0], "kept", None)
    if kept is None:
        return F.linear(x, *_joined(modules, x.dtype))
    return kept.linear(x, modules)


class _Kept:
    """What is made once of a module's weights, alone or with those of others.

    Args:
        int8: whether they are multiplied in int8.
    """

    def __init__(self, int8: bool) -> None:
        self._int8 = int8
        self._made: dict[tuple[int, torch.dtype], _Joined | Int8Weights] = {}

    def linear(self, x: Tensor, modules: Sequence[nn.Linear]) -> Tensor:
        key = len(modules), x.dtype
        made = self._made.get(key)
        if made is None:
            made = _joined(modules, torch.float32 if self._int8 else x.dtype)
            made = self._made[key] = Int8Weights.of(*made) if self._int8 else made
        return made.linear(x) if isinstance(made, Int8Weights) else F.linear(x, *made)


def _joined(modules: Sequence[nn.Linear], dtype: torch.dtype) -> _Joined:
    """The weights and biases of the modules, one under the other."""
    weights = [module.weight.to(dtype) for module in modules]
    biases = [module.bias.to(dtype) for module in modules if module.bias is not None]
    if len(modules) == 1:
        return weights[0], biases[0] if biases else None
    return torch.cat(weights), torch.cat(biases)


@contextmanager
def kept_weights(model: nn.Module, *, int8: bool | None = None) -> Iterator[None]:
    """Rounds and joins the weights of a model once and not each time they are used, for as long as
    this lasts. They must not change meanwhile, and no gradient be taken.

    Args:
        model: the towers.
        int8: whether to multiply in int8 within layers; see ``clipkit.models.products``. None: as
            it is within another of these, or else not.
    """
    mine = [each for each in model.modules() if isinstance(each, nn.Linear)]
    if int8 is None:
        mine = [each for each in mine if not hasattr(each, "kept")]
    layers = [each for each in model.modules() if int8 and isinstance(each, EncoderLayer)]
    inner = {id(each) for layer in layers for each in layer.modules()}
    before = [vars(each).get("kept") for each in mine]
    for each in mine:
        each.kept = _Kept(id(each) in inner)  # type: ignore[assignment]
    try:
        yield
    finally:
        for each, kept in zip(mine, before, strict=True):
            del each.kept
            if kept is not None:
                each.kept = kept


def norm(x: Tensor, module: nn.LayerNorm) -> Tensor:
    """Layer norm in the dtype of x; its sums are float32."""
    if not is_plain(module, nn.LayerNorm):
        own = next((p.dtype for p in module.parameters()), x.dtype)
        called: Tensor = module(x.to(own)).to(x.dtype)
        return called
    weight, bias = module.weight.to(x.dtype), module.bias.to(x.dtype)
    return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)

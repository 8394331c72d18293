"""Tells the modules that the fast forward computes itself from those that it calls.

The fast forward reads a module's weights and does not call the module. That is right only where
nobody would notice: it would pass over a LoRA wrapper, a parametrisation, a hook or a quantised
weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every

_TENSORS = (nn.Parameter, Tensor)


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module may be computed from its weights, without a call, and nobody notices.

    Args:
        module: a part of a tower.
        kind: its class, whose forward is known. A parametrised module is of a class of its own.
    """
    return (
        type(module) is kind
        and "forward" not in vars(module)
        and not has_hooks(module)
        and not _every_call_is_watched()
        and all(type(p) in _TENSORS for p in module._parameters.values() if p is not None)
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own that a call runs."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _every_call_is_watched() -> bool:
    """Whether there are hooks on the calls of all modules."""
    return bool(
        every._global_forward_hooks
        or every._global_forward_pre_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    )


def call(module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Calls a module whose weights may be of another dtype than what comes in.

    Args:
        module: it computes in the dtype of ``x`` by autocast, which takes bf16 and fp16; for any
            other, ``x`` is converted to the module's.
        x: floating point.
        args: further ones.
        kwargs: further ones.
    """
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), x.dtype)
    if own == x.dtype:
        return module(x, *args, **kwargs)
    if x.dtype not in (torch.bfloat16, torch.float16):
        return module(x.to(own), *args, **kwargs)
    with torch.autocast(x.device.type, dtype=x.dtype):
        return module(x, *args, **kwargs)

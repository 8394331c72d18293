"""Parameters → an optimizer: which of them decay, how fast each learns, and who updates it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from clipkit.config.schema import OptimConfig
from clipkit.models.depth import PlacedParameter
from clipkit.training.muon import Muon, MuonAdamW


def build_optimizer(
    parameters: Iterable[PlacedParameter],
    config: OptimConfig,
    precision: str = "fp32",
) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters, or Muon over the layers' matrices and AdamW over the
    rest; in groups, each with its ``lr_scale``.

    Matrices and embeddings decay; norms, biases and ``logit_scale`` (all of fewer than two
    dimensions) do not, as in CLIP (https://arxiv.org/abs/2103.00020, section 2.5).

    Args:
        parameters: of the model; those that are not trained are left out.
        config: see ``OptimConfig``.
        precision: of the run, settled. Muon computes in bf16 where the run does, else in float32.
    """
    adamw: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    muon: dict[tuple[Any, ...], list[nn.Parameter]] = {}
    for placed in parameters:
        parameter = placed.parameter
        if not parameter.requires_grad:
            continue
        scale = _lr_scale(placed, config)
        if config.name == "muon" and parameter.ndim == 2 and placed.in_block:
            scale *= (config.muon_lr or config.lr) / config.lr
            muon.setdefault((scale,), []).append(parameter)
        else:
            # Those of no dimensions apart, because FSDP does not shard them.
            adamw.setdefault((scale, min(parameter.ndim, 2)), []).append(parameter)
    rest = torch.optim.AdamW(
        [
            {
                "params": group,
                "lr_scale": scale,
                "weight_decay": config.weight_decay if ndim == 2 else 0.0,
            }
            for (scale, ndim), group in adamw.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    if not muon:
        return rest
    matrices = Muon(
        [{"params": group, "lr_scale": scale} for (scale,), group in muon.items()],
        lr=config.lr,
        weight_decay=config.weight_decay,
        dtype=muon_dtype(precision),
    )
    return MuonAdamW(matrices, rest)


def muon_dtype(precision: str) -> torch.dtype:
    """Type that Muon computes updates in: fp16 has too small a range for gradients."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def moments(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, set[str]]:
    """What an optimizer that ``build_optimizer`` made keeps of each parameter that it updates."""
    matrices = optimizer.matrices if isinstance(optimizer, MuonAdamW) else set()
    return {
        parameter: {"momentum_buffer"}
        if parameter in matrices
        else {"step", "exp_avg", "exp_avg_sq"}
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """``lr`` times each group's own ``lr_scale``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def _lr_scale(placed: PlacedParameter, config: OptimConfig) -> float:
    """The factor of a parameter's learning rate, by its tower and its depth in it.

    Each block between a parameter and the end of its tower, the projection counted as one, is a
    factor of ``layer_decay``. The scale and the bias of the logits belong to no tower: 1.

    Reference: layer-wise decay as in BEiT, https://arxiv.org/abs/2106.08254, section 3.1.
    """
    if placed.tower is None:
        return 1.0
    own = config.vision_lr_scale if placed.tower == "vision" else config.text_lr_scale
    return own * config.layer_decay**placed.above

"""The optimizer, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from clipkit.config.schema import OptimConfig


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in groups.

    Matrices and embeddings decay; norms, biases and ``logit_scale`` (all of fewer than two
    dimensions) do not, as in CLIP (https://arxiv.org/abs/2103.00020, section 2.5).
    """
    trainable = [p for _, p in named_parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim == 1], "weight_decay": 0.0},
        # Apart, because FSDP does not shard them.
        {"params": [p for p in trainable if p.ndim == 0], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of a step: linear warm-up to ``lr``, then half a cosine to ``min_lr``.

    Args:
        step: 0 for the first.
        total_steps: of the whole run.
        config: ``lr``, ``min_lr``, ``warmup_steps``.

    Reference: cosine decay, https://arxiv.org/abs/1608.03983, equation 5, without restarts.
    """
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

"""The learning rate as a function of the step, and of nothing else: resuming needs no state."""

from __future__ import annotations

import math

from clipkit.config.schema import OptimConfig

_COOLDOWN = 0.2  # of the steps; what both papers find enough


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of a step: linear warm-up to ``lr``, then ``schedule`` to ``min_lr``.

    Args:
        step: 0 for the first.
        total_steps: of the whole run.
        config: ``lr``, ``min_lr``, ``warmup_steps``, ``schedule``, ``cooldown``.

    Reference: cosine: https://arxiv.org/abs/1608.03983, equation 5, without restarts; wsd:
    https://arxiv.org/abs/2404.06395, section 4; the form 1 − √x of its decay, and constant with a
    linear cooldown: https://arxiv.org/abs/2405.18392, section 3.
    """
    warmup = min(config.warmup_steps, total_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "cosine":
        fall = 0.5 - 0.5 * math.cos(math.pi * _progress(step, warmup, total_steps))
    else:
        share = _COOLDOWN if config.cooldown is None else config.cooldown
        progress = _progress(step, max(warmup, total_steps - share * total_steps), total_steps)
        fall = math.sqrt(progress) if config.schedule == "wsd" else progress
    return config.lr - (config.lr - config.min_lr) * fall


def _progress(step: float, start: float, end: float) -> float:
    """0 until ``start``, then linearly to 1 at ``end``."""
    return min(1.0, max(0.0, (step - start) / max(1.0, end - start)))

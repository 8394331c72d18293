"""(image_embeds, text_embeds) of all ranks → SigLIP's loss, in memory linear in the batch."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.losses.blocks import sum_softplus
from clipkit.losses.columns import prepare, sum_over_positives
from clipkit.losses.gather import world


def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: Tensor,
    bias: Tensor,
    valid: Tensor | None = None,
    *,
    groups: Tensor | None = None,
    bf16_matmul: bool = False,
) -> Tensor:
    """A binary question for each image with each text of the global batch: are they a pair?

    Args:
        image_embeds: (B, D), unit length; B is the same on all ranks.
        text_embeds: (B, D), unit length.
        scale: (), of the logits; the paper begins with 10.
        bias: (), added to the logits; the paper begins with -10.
        valid: as for :func:`~clipkit.losses.contrastive_loss`.
        groups: likewise; pairs that share a text or an image are answered with yes.
        bf16_matmul: likewise.

    Returns:
        (), float32, in nats: the sum over all images and texts, divided by the number of pairs;
        0 where none is valid. The mean over ranks is the global loss.

    Raises:
        ValueError: the two batches differ in shape.

    Reference: SigLIP, https://arxiv.org/abs/2303.15343, equation 1 and algorithm 1.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        c = prepare("sigmoid_loss", image_embeds, text_embeds, valid, groups)
        scale, bias = scale.float(), bias.float()
        total = sum_softplus(c.images, c.all_texts, scale, bias, c.first, bf16=bf16_matmul)
        if c.groups is not None:
            # softplus(-x) = softplus(x) - x, for each pair that is one through its group only.
            own = slice(c.first, c.first + len(c.images))
            others = sum_over_positives(c.groups, c.all_texts)[own] - c.all_texts[own]  # (B, D)
            number = sum_over_positives(c.groups, torch.ones_like(c.all_texts[:, :1]))[own]
            cosines = (c.images * others).sum()
            total = total - scale * cosines - bias * (number - 1).sum()
        return (total * world()[1] / max(1, len(c.all_texts))).float()

"""(image_embeds, text_embeds) of all ranks → InfoNCE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses.gather import gather_rows, world


def contrastive_loss(
    image_embeds: Tensor, text_embeds: Tensor, scale: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE between matched images and texts, over the global batch.

    Row i of both inputs is one pair; every other row, of this rank or of another, is a
    negative. With several ranks each computes its own rows against the gathered columns;
    the mean of the returned values over ranks is the global loss, and DDP's mean of the
    gradients is the global gradient, that of ``scale`` included.

    Args:
        image_embeds: (B, D), unit length; B is the same on all ranks.
        text_embeds: (B, D), unit length.
        scale: (), inverse temperature.
        valid: (B,) bool; rows that are False are neither positives nor negatives.

    Returns:
        (), float32, in nats: the mean of the image-to-text and text-to-image losses; 0 where
        no row is valid.

    Raises:
        ValueError: the two batches differ in shape.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, Figure 3; InfoNCE,
    https://arxiv.org/abs/1807.03748, equation 4.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"contrastive_loss: image_embeds {tuple(image_embeds.shape)} and text_embeds "
            f"{tuple(text_embeds.shape)} differ in shape; row i of both must be one pair"
        )
    rank, world_size = world()
    # fp32: bf16 logits at scale 100 are off by up to 0.44.
    with torch.autocast(image_embeds.device.type, enabled=False):
        images, texts, scale = image_embeds.float(), text_embeds.float(), scale.float()
        all_images, all_texts = gather_rows(images), gather_rows(texts)  # (N, D)
        labels = torch.arange(len(images), device=images.device) + rank * len(images)  # (B,)
        bias = None
        count: Tensor | int = len(all_images)
        if valid is not None:
            valid = valid.to(images.device)
            all_valid = gather_rows(valid.float())  # (N,)
            count = all_valid.sum().clamp_min(1)
            bias = torch.log(all_valid)  # (N,): 0, or -inf where a column is left out
            images, texts, labels = images[valid], texts[valid], labels[valid]
        loss = _rows_against_columns(images, all_texts, scale, labels, bias)
        loss = loss + _rows_against_columns(texts, all_images, scale, labels, bias)
        return loss * (world_size / 2) / count


def _rows_against_columns(
    rows: Tensor, columns: Tensor, scale: Tensor, labels: Tensor, bias: Tensor | None
) -> Tensor:
    """(), the sum of the rows' cross-entropies."""
    logits = scale * rows @ columns.T  # (B, N)
    if bias is not None:
        logits = logits + bias
    return F.cross_entropy(logits, labels, reduction="sum")

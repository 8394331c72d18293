"""(image_embeds, text_embeds) of all ranks → InfoNCE, in memory linear in the global batch."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.losses.blocks import log_sum_exp
from clipkit.losses.columns import Columns, prepare, sum_over_positives
from clipkit.losses.gather import gather_rows, world


def contrastive_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    scale: Tensor,
    valid: Tensor | None = None,
    *,
    groups: Tensor | None = None,
    label_smoothing: float = 0.0,
    bf16_matmul: bool = False,
) -> Tensor:
    """Symmetric InfoNCE between matched images and texts, over the global batch.

    Row i of both inputs is one pair; every other row, of this rank or of another, is a
    negative. With several ranks each computes its images against the gathered texts; the mean
    of the returned values over ranks is the global loss, and DDP's mean of the gradients is the
    global gradient, that of ``scale`` included.

    Args:
        image_embeds: (B, D), unit length; B is the same on all ranks.
        text_embeds: (B, D), unit length.
        scale: (), inverse temperature.
        valid: (B,) bool; rows that are False are neither positives nor negatives, whatever
            they hold. Given on all ranks or on none.
        groups: (B, 2) int64, a number for the text and one for the image of each pair. Pairs
            that share either are positives of one another: a row's target is spread evenly over
            its positives (UniCL, https://arxiv.org/abs/2204.03610, equations 2 and 3).
        label_smoothing: this share of a row's target is spread evenly over all columns
            (https://arxiv.org/abs/1512.00567, section 7).
        bf16_matmul: multiply matrices in bf16, two to five times as fast on a CPU that has it;
            on a CPU logits are then rounded to 8 bits, on a GPU only what is multiplied.

    Returns:
        (), float32, in nats: the mean of the image-to-text and text-to-image losses; 0 where
        no row is valid.

    Raises:
        ValueError: the two batches differ in shape.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, Figure 3; InfoNCE,
    https://arxiv.org/abs/1807.03748, equation 4.
    """
    # fp32: bf16 logits at scale 100 are off by up to 0.44.
    with torch.autocast(image_embeds.device.type, enabled=False):
        scale = scale.float()
        c = prepare("contrastive_loss", image_embeds, text_embeds, valid, groups)
        of_rows, of_columns, pairs = log_sum_exp(
            c.images, c.all_texts, scale, c.first, bf16=bf16_matmul
        )
        if world()[1] > 1:  # so far over the images of this rank
            of_columns = gather_rows(of_columns[None]).logsumexp(0)  # (N,)
        own_columns = of_columns[c.first : c.first + len(c.images)]
        total = (of_rows + own_columns).sum()
        total = total - 2 * (1 - label_smoothing) * pairs.sum()
        if c.groups is not None:
            total = total - (1 - label_smoothing) * scale * _further_positives(c, c.groups)
        if label_smoothing:
            mean_text = c.all_texts.sum(0) / max(1, len(c.all_texts))  # (D,)
            total = total - 2 * label_smoothing * scale * (c.images @ mean_text).sum()
        count = max(1, len(c.all_texts))
        return (total * (world()[1] / 2) / count).float()


def _further_positives(c: Columns, groups: Tensor) -> Tensor:
    """(), the sum of the cosines that targets spread over several positives add to the pairs'.

    With m[i, j] telling the positives of a row and n[i] their number, the target of row i is
    m[i, j] / n[i], and that of column j is m[i, j] / n[j].
    """
    own = slice(c.first, c.first + len(c.images))
    number = sum_over_positives(groups, torch.ones_like(c.all_texts[:, :1]))  # (N, 1)
    of_rows = sum_over_positives(groups, c.all_texts)[own] / number[own]
    of_columns = sum_over_positives(groups, c.all_texts / number)[own]
    return (c.images * (of_rows + of_columns - 2 * c.all_texts[own])).sum()

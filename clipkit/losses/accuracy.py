"""(image_embeds, text_embeds) of all ranks → how often a pair finds itself in its batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.losses.blocks import each_block, pair_logits, pair_rows
from clipkit.losses.columns import prepare
from clipkit.losses.gather import world


@torch.no_grad()
def in_batch_accuracy(
    image_embeds: Tensor, text_embeds: Tensor, valid: Tensor | None = None
) -> Tensor:
    """The share of images whose text is the nearest of the global batch, and of texts whose
    image is; of several that are equally near, none counts before its own.

    Args:
        image_embeds: (B, D), unit length; B is the same on all ranks.
        text_embeds: (B, D), unit length.
        valid: (B,) bool, given on all ranks or on none.

    Returns:
        (2,) float32, the same on all ranks; NaN where no row is valid.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        c = prepare("in_batch_accuracy", image_embeds, text_embeds, valid, None)
        of_rows = c.images.new_full((len(c.images),), -torch.inf)
        own = of_rows.clone()
        of_columns = c.images.new_full((len(c.all_texts),), -torch.inf)
        for i, j, logits in each_block(c.images, c.all_texts, c.images.new_ones(())):
            own[pair_rows(i, j, c.first)] = pair_logits(i, j, c.first, logits)
            of_rows[i] = torch.maximum(of_rows[i], logits.amax(1))
            of_columns[j] = torch.maximum(of_columns[j], logits.amax(0))
        if world()[1] > 1:
            dist.all_reduce(of_columns, dist.ReduceOp.MAX)
        right = torch.stack(
            [(own >= of_rows).sum(), (own >= of_columns[c.first : c.first + len(own)]).sum()]
        ).float()
        if world()[1] > 1:
            dist.all_reduce(right)
        return right / len(c.all_texts)

"""(image_embeds, text_embeds) of all ranks → how often a pair finds itself in its batch."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from clipkit.losses.blocks import each_block
from clipkit.losses.columns import prepare
from clipkit.losses.gather import world

_TIE = 1e-6  # cosines of equal vectors differ by less


@torch.no_grad()
def in_batch_accuracy(
    image_embeds: Tensor,
    text_embeds: Tensor,
    valid: Tensor | None = None,
    *,
    groups: Tensor | None = None,
) -> Tensor:
    """The share of images whose nearest text in the global batch is right, and of texts whose
    nearest image is.

    Pairs with the same text or the same image are right answers of one another. Ties count
    against the model. A query without a wrong answer in the batch is left out.

    Args:
        image_embeds: (B, D), unit length; B is the same on all ranks.
        text_embeds: (B, D), unit length.
        valid: (B,) bool, given on all ranks or on none.
        groups: (B, 2) int64, a number for the text and one for the image of each pair; None where
            all differ. Given on all ranks or on none.

    Returns:
        (2,) float32, the same on all ranks; NaN where no query has a wrong answer.
    """
    with torch.autocast(image_embeds.device.type, enabled=False):
        if groups is None:
            row = torch.arange(len(image_embeds)) + world()[0] * len(image_embeds)
            groups = torch.stack([row, row], dim=1)
        c = prepare("in_batch_accuracy", image_embeds, text_embeds, valid, groups)
        assert c.groups is not None
        own = c.groups[c.first : c.first + len(c.images)]
        # The best right and the best wrong answer of each row and of each column.
        of_rows = c.images.new_full((2, len(c.images)), -torch.inf)
        of_columns = c.images.new_full((2, len(c.all_texts)), -torch.inf)
        for i, j, logits in each_block(c.images, c.all_texts, c.images.new_ones(())):
            right = (own[i, None] == c.groups[None, j]).any(-1)  # (rows, columns)
            for number, others in enumerate((~right, right)):
                left = logits.masked_fill(others, -torch.inf)
                of_rows[number, i] = torch.maximum(of_rows[number, i], left.amax(1))
                of_columns[number, j] = torch.maximum(of_columns[number, j], left.amax(0))
        if world()[1] > 1:
            dist.all_reduce(of_columns, dist.ReduceOp.MAX)
        mine = of_columns[:, c.first : c.first + len(own)]
        counts = torch.stack([_count(of_rows), _count(mine)])  # (2, 2): right, asked
        if world()[1] > 1:
            dist.all_reduce(counts)
        return counts[:, 0] / counts[:, 1]


def _count(best: Tensor) -> Tensor:
    """(2,) float32: how many queries are right, and how many have a wrong answer.

    Args:
        best: (2, Q), the best right and the best wrong answer.
    """
    right, wrong = best
    asked = wrong > -torch.inf
    return torch.stack([(asked & (right > wrong + _TIE)).sum(), asked.sum()]).float()

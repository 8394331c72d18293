"""One rank's images, and the texts of all ranks: what every loss is computed from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipkit.losses.gather import gather_rows, world


class Columns(NamedTuple):
    """This rank's valid images (B, D) and all ranks' valid texts (N, D), float32; image i and
    text first + i are a pair. groups (N, 2) int64, or None."""

    images: Tensor
    all_texts: Tensor
    first: int
    groups: Tensor | None


def prepare(
    name: str,
    image_embeds: Tensor,
    text_embeds: Tensor,
    valid: Tensor | None,
    groups: Tensor | None,
) -> Columns:
    """Gathers the texts and leaves out what is not valid.

    Raises:
        ValueError: the inputs differ in shape; ``name`` says whose.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"{name}: image_embeds {tuple(image_embeds.shape)} and text_embeds "
            f"{tuple(text_embeds.shape)} differ in shape; row i of both must be one pair"
        )
    count, rank = len(image_embeds), world()[0]
    for what, tensor, shape in (("valid", valid, (count,)), ("groups", groups, (count, 2))):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: {what} {tuple(tensor.shape)} must be {shape}")
    images = image_embeds.float()
    all_texts = gather_rows(text_embeds.float())  # (N, D)
    first = rank * count
    if groups is not None:
        groups = gather_rows(groups.to(images.device))  # (N, 2)
    if valid is not None:
        kept = gather_rows(valid.to(images.device, torch.uint8)).bool()  # (N,)
        images, all_texts = images[kept[first : first + count]], all_texts[kept]
        groups = None if groups is None else groups[kept]
        first = int(kept[:first].sum())
    return Columns(images, all_texts, first, groups)


def sum_over_positives(groups: Tensor, values: Tensor) -> Tensor:
    """The sum of ``values`` over all rows that share the first group, the second, or both.

    Sums over groups stand in for the (N, N) matrix of who shares what, so memory stays linear.

    Args:
        groups: (N, 2) int64.
        values: (N, K).

    Returns:
        (N, K); a row's own value is part of its sum.
    """
    total = torch.zeros_like(values)
    # Who shares both is in the first two sums, so once too often.
    for columns, sign in ((groups[:, :1], 1), (groups[:, 1:], 1), (groups, -1)):
        unique, kind = torch.unique(columns, dim=0, return_inverse=True)
        sums = values.new_zeros(len(unique), values.shape[1]).index_add(0, kind, values)
        total = total + sign * sums[kind]
    return total

"""(B, L) padded captions → their tokens end to end, so that texts cost the tokens they have."""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor


class PackedTexts(NamedTuple):
    """B captions without padding, the shortest first; T tokens in all.

    Attributes:
        input_ids: (T,) int64, up to and with each caption's end token.
        positions: (T,) int64, within the caption.
        ends: (B,) int64, where each caption's end token is.
        padded: (T,) int64, where each token would be in a (B, longest) batch of these.
        restore: (B,) int64; of what is computed a caption, ``x[restore]`` is in the order given.
        groups: (captions, tokens of each) for each length that occurs, in the order of tokens.
    """

    input_ids: Tensor
    positions: Tensor
    ends: Tensor
    padded: Tensor
    restore: Tensor
    groups: tuple[tuple[int, int], ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest caption."""
        return self.groups[-1][1] if self.groups else 0

    def to(self, device: torch.device) -> PackedTexts:
        """The same on a device."""
        ids, positions, ends, padded, restore = (x.to(device, non_blocking=True) for x in self[:-1])
        return PackedTexts(ids, positions, ends, padded, restore, self.groups)


def pack_texts(input_ids: Tensor, end: int) -> PackedTexts:
    """Leaves out what comes after each caption's end token.

    Attention is causal and the end token is pooled, so nothing that is left out is ever seen.
    A caption is whole where it has no end token: CLIP pools its first token then.

    Args:
        input_ids: (B, L) int64; on a GPU it is waited for.
        end: the id of the end token; 2 stands for the greatest id of each caption, which is what
            OpenAI's checkpoints mean by it.
    """
    ids = input_ids.cpu()
    found = ids.argmax(1) if end == 2 else (ids == end).int().argmax(1)
    lengths = found + 1  # (B,)
    lengths, order = lengths.sort(stable=True)
    columns = torch.arange(ids.shape[1])
    real = columns < lengths[:, None]  # (B, L)
    longest = int(lengths[-1]) if len(lengths) else 0
    padded = (torch.arange(len(ids))[:, None] * longest + columns)[real]
    groups = tuple((len(list(same)), length) for length, same in groupby(lengths.tolist()))
    return PackedTexts(
        ids[order][real],
        columns.expand_as(ids)[real],
        lengths.cumsum(0) - 1,
        padded,
        order.argsort(),
        groups,
    )

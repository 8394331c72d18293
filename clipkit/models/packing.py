"""(B, L) padded captions → their tokens end to end, so that texts cost the tokens they have."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A matrix product in bf16 is compiled for each new shape, which takes longer than to compute it.
# Few shapes occur where numbers of tokens are rounded to these.
_LENGTHS, _CAPTIONS, _TOKENS = 8, 16, 8


class PackedTexts(NamedTuple):
    """B captions without padding, the shortest first; T tokens, some of them filling at the end.

    For attention, captions of about one length stand in a group, each padded to the length of the
    group; P tokens in all.

    Attributes:
        input_ids: (T,) int64, up to and with each caption's end token.
        positions: (T,) int64, within the caption.
        ends: (B,) int64, where each caption's end token is.
        padded: (tokens of captions,) int64, where each is among the P.
        unpadded: (P,) int64, which of the T each is; the last, which is filling, for padding.
        restore: (B,) int64; of what is computed a caption, ``x[restore]`` is in the order given.
        groups: (captions, tokens of each) of each group, in the order of tokens.
    """

    input_ids: Tensor
    positions: Tensor
    ends: Tensor
    padded: Tensor
    unpadded: Tensor
    restore: Tensor
    groups: tuple[tuple[int, int], ...]

    def to(self, device: torch.device) -> PackedTexts:
        """The same on a device."""
        moved: dict[str, Any] = {
            name: x.to(device, non_blocking=True)
            for name, x in self._asdict().items()
            if isinstance(x, Tensor)
        }
        return self._replace(**moved)


def pack_texts(input_ids: Tensor, end: int, *, one_group: bool = False) -> PackedTexts:
    """Leaves out what comes after each caption's end token.

    Attention is causal and the end token is pooled, so nothing that is left out is ever seen.
    A caption is whole where it has no end token: CLIP pools its first token then.

    Args:
        input_ids: (B, L) int64; on a GPU it is waited for.
        end: the id of the end token; 2 stands for the greatest id of each caption, which is what
            OpenAI's checkpoints mean by it.
        one_group: pad all captions to the longest, which is faster on a GPU, or compiled.
    """
    ids = input_ids.cpu()
    found = ids.argmax(1) if end == 2 else (ids == end).int().argmax(1)
    lengths, order = (found + 1).sort(stable=True)  # (B,)
    ends = lengths.cumsum(0) - 1
    tokens = int(lengths.sum())
    columns = torch.arange(ids.shape[1])
    real = columns < lengths[:, None]  # (B, L)
    groups = _groups(lengths.tolist(), one_group)
    counts, widths = torch.tensor(groups, dtype=torch.int64).view(-1, 2).unbind(1)
    widths = widths.repeat_interleave(counts)  # (B,), of each caption's group
    begin = widths.cumsum(0) - widths
    padded = (begin[:, None] + columns)[real]
    filling = -(tokens + 1) % _multiple(tokens) + 1
    unpadded = torch.full((int(widths.sum()),), tokens + filling - 1)
    unpadded[padded] = torch.arange(tokens)
    blank = torch.zeros(filling, dtype=torch.int64)
    return PackedTexts(
        torch.cat([ids[order][real], blank]),
        torch.cat([columns.expand_as(ids)[real], blank]),
        ends,
        padded,
        unpadded,
        order.argsort(),
        groups,
    )


def _multiple(tokens: int) -> int:
    """What a number of tokens is rounded up to a multiple of: a sixteenth of it or less."""
    return max(_TOKENS, 1 << max(0, tokens.bit_length() - 5))


def _groups(lengths: Sequence[int], one_group: bool) -> tuple[tuple[int, int], ...]:
    """Ascending lengths → groups, the shortest first. All but the first hold a multiple of
    ``_CAPTIONS``, some of them shorter than the others."""
    if one_group and lengths:
        return ((len(lengths), lengths[-1]),)
    groups = []
    last = len(lengths)
    while last:
        length = -(-lengths[last - 1] // _LENGTHS) * _LENGTHS
        first = bisect_right(lengths, length - _LENGTHS, hi=last)
        first = max(0, last - -(-(last - first) // _CAPTIONS) * _CAPTIONS)
        groups.append((last - first, length))
        last = first
    return tuple(reversed(groups))

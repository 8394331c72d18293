"""Embeddings → how they lie on the sphere: how near pairs are, how spread out the rest is.

All in blocks, exact, and in float64 where sums are long.
"""

from __future__ import annotations

import numpy as np
import torch

_BLOCK = 2048  # rows of one block of pairs: 32 MiB of float64


def alignment(image_embeds: np.ndarray, text_embeds: np.ndarray) -> np.ndarray:
    """(P,) the squared distance of the image and the text of each pair. Their mean is the
    alignment; 0 is best.

    Args:
        image_embeds, text_embeds: (P, D) unit length, row i of both one pair.

    Reference: Wang and Isola, https://arxiv.org/abs/2005.10242, section 4.1, α = 2.
    """
    distances = np.empty(len(image_embeds))
    for at in range(0, len(image_embeds), _BLOCK):
        part = slice(at, at + _BLOCK)
        difference = _wide(image_embeds[part]) - _wide(text_embeds[part])
        distances[part] = (difference**2).sum(axis=1)
    return distances


def uniformity(embeds: np.ndarray, *, t: float = 2.0) -> float:
    """The logarithm of the mean, over all pairs of different rows, of exp(-t · distance²): 0
    where all rows are one vector, the lower the more evenly they are spread.

    Args:
        embeds: (N, D) unit length.
        t: how near counts as near.

    Returns:
        NaN of fewer than two rows. Takes N² · D multiplications and memory for 2048² numbers.

    Reference: Wang and Isola, https://arxiv.org/abs/2005.10242, section 4.1, t = 2.
    """
    count = len(embeds)
    if count < 2:
        return float("nan")
    total = 0.0
    for i in range(0, count, _BLOCK):
        rows = torch.from_numpy(_wide(embeds[i : i + _BLOCK]))
        for j in range(i, count, _BLOCK):
            others = rows if i == j else torch.from_numpy(_wide(embeds[j : j + _BLOCK]))
            near = torch.exp(2 * t * ((rows @ others.T).clamp_(max=1) - 1))  # (i, j)
            if i == j:
                total += (float(near.sum()) - float(near.diagonal().sum())) / 2
            else:
                total += float(near.sum())
    return float(np.log(total / (count * (count - 1) / 2)))


def modality_gap(image_embeds: np.ndarray, text_embeds: np.ndarray) -> float:
    """The distance between the mean of the images and the mean of the texts, from 0 to 2.

    Args:
        image_embeds: (N, D) unit length.
        text_embeds: (M, D) unit length.

    Reference: Liang et al., https://arxiv.org/abs/2203.02053, section 2.
    """
    if not len(image_embeds) or not len(text_embeds):
        return float("nan")
    means = [each.mean(axis=0, dtype=np.float64) for each in (image_embeds, text_embeds)]
    return float(np.linalg.norm(means[0] - means[1]))


def effective_rank(embeds: np.ndarray) -> float:
    """How many directions the rows fill: the exponential of the entropy of the singular values,
    from 1 (all on one line) to the smaller of N and D (all directions alike).

    The rows are taken as they are, not centred. Of a distributed job each rank's share has its
    own: a share can fill at most as many directions as it has rows.

    Args:
        embeds: (N, D).

    Returns:
        NaN of no rows, of nothing but zeros, or where a number is not finite.

    Reference: Roy and Vetterli, The effective rank, EUSIPCO 2007, definition 1.
    """
    # The R of a QR decomposition has the singular values of the whole, whatever N is; D × D of
    # the rows' products would have their squares, and lose the small ones.
    rest = torch.zeros((0, embeds.shape[1]), dtype=torch.float64)
    for at in range(0, len(embeds), _BLOCK):
        block = torch.from_numpy(_wide(embeds[at : at + _BLOCK]))
        if not block.isfinite().all():
            return float("nan")
        rest = torch.linalg.qr(torch.cat([rest, block]), mode="r").R
    values = torch.linalg.svdvals(rest).numpy()
    if not values.sum() > 0:
        return float("nan")
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _wide(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, dtype=np.float64)

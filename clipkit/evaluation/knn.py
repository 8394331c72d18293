"""Labelled embeddings → the classes of others, by the vote of their nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch

_QUERIES, _TRAIN = 1024, 16384  # rows of one block of cosines: 64 MiB of float32


def knn_scores(
    train_embeds: np.ndarray,
    train_targets: np.ndarray,
    embeds: np.ndarray,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | str = "cpu",
) -> np.ndarray:
    """(N, C) the vote for each class: its share of the weights exp(cosine / temperature) of the
    k nearest training rows.

    Args:
        train_embeds: (M, D) unit length.
        train_targets: (M,) their classes.
        embeds: (N, D) unit length.
        num_classes: C.
        k: neighbours; of fewer training rows all.
        temperature: how much more a nearer one says.
        device: where to multiply.

    Reference: Wu et al., https://arxiv.org/abs/1805.01978, section 3.4; k and temperature as in
    DINO, https://arxiv.org/abs/2104.14294, appendix F.
    """
    if not len(train_embeds):
        raise ValueError("train_embeds: there are no rows to be near to")
    k = min(k, len(train_embeds))
    train, queries = (
        torch.from_numpy(np.ascontiguousarray(each, dtype=np.float32)).to(device)
        for each in (train_embeds, embeds)
    )
    targets = torch.from_numpy(np.asarray(train_targets, dtype=np.int64)).to(device)
    scores = np.zeros((len(queries), num_classes), dtype=np.float32)
    for q in range(0, len(queries), _QUERIES):
        block = queries[q : q + _QUERIES]
        near = torch.zeros(len(block), 0, device=block.device)
        rows = torch.zeros(len(block), 0, dtype=torch.int64, device=block.device)
        for m in range(0, len(train), _TRAIN):
            cosines = block @ train[m : m + _TRAIN].T  # (q, m)
            best = cosines.topk(min(k, cosines.shape[1]), dim=1)
            near, order = torch.cat([near, best.values], dim=1).sort(
                dim=1, descending=True, stable=True
            )
            rows = torch.cat([rows, best.indices + m], dim=1).gather(1, order)
            near, rows = near[:, :k], rows[:, :k]  # (q, k)
        weights = ((near - near[:, :1]) / temperature).softmax(dim=1)  # however small that is
        votes = torch.zeros(len(block), num_classes, device=block.device)
        scores[q : q + _QUERIES] = votes.scatter_add_(1, targets[rows], weights).cpu().numpy()
    return scores

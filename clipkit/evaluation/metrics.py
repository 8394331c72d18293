"""(image_embeds, text_embeds, which belong together) → recall and rank, in both directions.

Ties count against the model: a query's rank is 1 + the number of wrong answers that score as
high as its best right one, or higher. A collapsed model, which gives everything one vector,
so gets what it deserves and not a perfect score. Scores that differ by less than float32's
rounding are ties, and a NaN counts against the model too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clipkit.errors import ClipkitError

# Dot products of equal unit vectors differ by some 1e-7 with their place in a matrix product.
_TIE = 1e-6
# Queries × gallery rows of one block of scores: 64 MiB of float32.
_QUERIES, _GALLERY = 1024, 16384


def retrieval_metrics(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    matches: np.ndarray | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Recall at k and median rank, text → image and image → text.

    A query with several right answers is a hit if any of them is among the top k. Images and
    texts that have no match are answers to choose from, not queries.

    Args:
        image_embeds: (N, D), unit length.
        text_embeds: (M, D), unit length.
        matches: (M,), the image of each text; or (P, 2), the image and the text of each pair
            that belongs together; none: row i of both belongs together.
        ks: cut-offs.
        device: where to multiply.

    Returns:
        ``text_to_image_R@1`` … and ``image_to_text_R@1`` … from 0 to 1,
        ``text_to_image_median_rank`` and ``image_to_text_median_rank`` from 1,
        ``num_images`` and ``num_texts``.

    Raises:
        ClipkitError: shapes that do not fit together, or nothing that matches.
    """
    text_ranks, image_ranks = retrieval_ranks(image_embeds, text_embeds, matches, device=device)
    metrics: dict[str, float] = {}
    for name, ranks in (("text_to_image", text_ranks), ("image_to_text", image_ranks)):
        ranks = ranks[ranks > 0]
        for k in ks:
            metrics[f"{name}_R@{k}"] = float((ranks <= k).mean())
        metrics[f"{name}_median_rank"] = float(np.median(ranks))
    metrics["num_images"] = len(image_embeds)
    metrics["num_texts"] = len(text_embeds)
    return metrics


def retrieval_ranks(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    matches: np.ndarray | None = None,
    *,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The rank of the best right answer for each text, (M,), and for each image, (N,); from 1,
    and 0 where a row has no match. See ``retrieval_metrics``."""
    pairs = _as_pairs(image_embeds, text_embeds, matches)
    images, texts = (
        torch.from_numpy(np.ascontiguousarray(e, dtype=np.float32)).to(device)
        for e in (image_embeds, text_embeds)
    )
    return _ranks(texts, images, pairs[:, ::-1]), _ranks(images, texts, pairs)


def _as_pairs(
    image_embeds: np.ndarray, text_embeds: np.ndarray, matches: np.ndarray | None
) -> np.ndarray:
    """(P, 2) int64: the image and the text of each pair, each pair once."""
    shapes = f"image_embeds {image_embeds.shape}, text_embeds {text_embeds.shape}"
    if image_embeds.ndim != 2 or text_embeds.ndim != 2:
        raise ClipkitError(f"{shapes}: both must be (rows, D)")
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise ClipkitError(f"{shapes}: D differs")
    num_images, num_texts = len(image_embeds), len(text_embeds)
    if matches is None:
        if num_images != num_texts:
            raise ClipkitError(f"{shapes}: the numbers of rows differ; say what matches")
        matches = np.arange(num_texts)
    matches = np.asarray(matches)
    if matches.shape == (num_texts,):
        matches = np.stack([matches, np.arange(num_texts)], axis=1)
    if matches.ndim != 2 or matches.shape[1] != 2 or matches.dtype.kind not in "iu":
        raise ClipkitError(
            f"matches: {matches.dtype} {matches.shape}; give whole numbers, ({num_texts},) or "
            "(P, 2)"
        )
    if not len(matches):
        raise ClipkitError("matches: no text belongs to an image, so nothing can be measured")
    if matches.min() < 0 or (matches.max(axis=0) >= (num_images, num_texts)).any():
        raise ClipkitError(f"matches: it names rows that are not there ({shapes})")
    return np.unique(matches.astype(np.int64), axis=0)


def _ranks(queries: Tensor, gallery: Tensor, pairs: np.ndarray) -> np.ndarray:
    """(Q,) ranks from 1; 0 for queries without a pair. ``pairs`` (P, 2): query, gallery row."""
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    best = _best_right_scores(queries, gallery, pairs)  # (A,)
    asked, first = np.unique(pairs[:, 0], return_index=True)  # (A,), their pairs' beginnings
    first = np.append(first, len(pairs))
    counts = torch.zeros(len(asked), dtype=torch.int64)
    for q in range(0, len(asked), _QUERIES):
        chunk = slice(q, min(q + _QUERIES, len(asked)))
        vectors = queries[torch.from_numpy(asked[chunk]).to(queries.device)]  # (q, D)
        least = best[chunk, None] - _TIE  # (q, 1)
        own = pairs[first[chunk.start] : first[chunk.stop]]  # this chunk's pairs
        own_query = np.searchsorted(asked[chunk], own[:, 0])
        for g in range(0, len(gallery), _GALLERY):
            scores = vectors @ gallery[g : g + _GALLERY].T  # (q, g)
            here = (own[:, 1] >= g) & (own[:, 1] < g + _GALLERY)
            place = torch.from_numpy(np.stack([own_query[here], own[here, 1] - g]))
            scores[tuple(place.to(scores.device))] = -torch.inf  # right answers do not compete
            # Not "greater or equal", which would be false for NaN.
            counts[chunk] += (~(scores < least)).sum(dim=1).cpu()
    ranks = np.zeros(len(queries), dtype=np.int64)
    ranks[asked] = counts.numpy() + 1
    return ranks


def _best_right_scores(queries: Tensor, gallery: Tensor, pairs: np.ndarray) -> Tensor:
    """The highest score of a right answer, for each query that has one, in their order."""
    scores = np.empty(len(pairs), dtype=np.float32)
    for p in range(0, len(pairs), _GALLERY):
        rows = torch.from_numpy(np.ascontiguousarray(pairs[p : p + _GALLERY])).to(queries.device)
        products = queries[rows[:, 0]] * gallery[rows[:, 1]]
        scores[p : p + _GALLERY] = products.sum(dim=1).cpu().numpy()
    _, first = np.unique(pairs[:, 0], return_index=True)
    return torch.from_numpy(np.maximum.reduceat(scores, first)).to(queries.device)

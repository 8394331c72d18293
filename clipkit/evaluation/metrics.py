"""(image_embeds, text_embeds, which belong together) → recall, precision and rank, in both
directions.

Ties count against the model: a query's rank is 1 + the number of wrong answers that score as
high as its best right one, or higher. A collapsed model, which gives everything one vector,
so gets what it deserves and not a perfect score. Scores that differ by less than float32's
rounding are ties, and a NaN counts against the model too.

A recall that no model could miss is no measurement and is left out: R@5 among 4 texts, or R@1
where every answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipkit.errors import ClipkitError

DIRECTIONS = ("text_to_image", "image_to_text")
# Dot products of equal unit vectors differ by some 1e-7 with their place in a matrix product.
_TIE = 1e-6
# Queries × gallery rows of a block of scores: 64 MiB of float32, or 8 that stay in a CPU's caches.
_QUERIES, _GALLERY, _GALLERY_ON_CPU = 1024, 16384, 2048
_PAIRS = 16384  # whose products are there at once


def retrieval_metrics(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    matches: np.ndarray | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Recall at k, mean average precision and median rank, text → image and image → text.

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
        ``text_to_image_R@1`` … and ``text_to_image_mAP`` from 0 to 1, ``text_to_image_median_rank``
        from 1, and ``text_to_image_chance``, the R@1 of a random order; ``image_to_text_``
        likewise; ``num_images`` and ``num_texts``. An R@k is left out where each query has fewer
        than k wrong answers, and all of a direction where it has none.

    Raises:
        ClipkitError: shapes that do not fit together, or nothing that matches.
    """
    rankings = retrieval_rankings(image_embeds, text_embeds, matches, device=device)
    return metrics_of(rankings, ks=ks)


class Ranking(NamedTuple):
    """How well each of Q queries finds its right answers.

    Attributes:
        ranks: (Q,) of its best right answer, from 1; 0 where a query has no match.
        average_precision: (Q,) the mean, over its right answers from the best on, of the share of
            right ones among all up to there; NaN where a query has no match.
        num_right: (Q,) how many of the answers are right.
    """

    ranks: np.ndarray
    average_precision: np.ndarray
    num_right: np.ndarray


def metrics_of(rankings: tuple[Ranking, Ranking], *, ks: Sequence[int]) -> dict[str, float]:
    """The metrics of what ``retrieval_rankings`` gives; see ``retrieval_metrics``."""
    metrics: dict[str, float] = {}
    for name, ranking, answers in zip(DIRECTIONS, rankings, reversed(rankings), strict=True):
        ranks, precision, num_right = ranking
        asked = ranks > 0
        num_answers = len(answers.ranks)
        most_wrong = int((num_answers - num_right[asked]).max())
        if not most_wrong:
            continue
        for k in ks:
            if k <= most_wrong:
                metrics[f"{name}_R@{k}"] = float((ranks[asked] <= k).mean())
        metrics[f"{name}_mAP"] = float(precision[asked].mean())
        metrics[f"{name}_median_rank"] = float(np.median(ranks[asked]))
        metrics[f"{name}_chance"] = float(num_right[asked].mean() / num_answers)
    metrics["num_images"] = len(rankings[1].ranks)
    metrics["num_texts"] = len(rankings[0].ranks)
    return metrics


def retrieval_rankings(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    matches: np.ndarray | None = None,
    *,
    device: torch.device | str = "cpu",
) -> tuple[Ranking, Ranking]:
    """How well each text finds its images, and each image its texts; see ``retrieval_metrics``.

    Beyond the embeddings themselves it takes some hundred MB, however many there are.
    """
    pairs = _as_pairs(image_embeds, text_embeds, matches)
    images, texts = (
        torch.from_numpy(np.ascontiguousarray(e, dtype=np.float32)).to(device)
        for e in (image_embeds, text_embeds)
    )
    return _rank(texts, images, pairs[:, ::-1]), _rank(images, texts, pairs)


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


def _rank(queries: Tensor, gallery: Tensor, pairs: np.ndarray) -> Ranking:
    """``pairs`` (P, 2): query, gallery row."""
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    scores = _right_scores(queries, gallery, pairs)  # (P,)
    # Of each query's right answers the best is first; a NaN is the worst.
    order = np.lexsort((-np.nan_to_num(scores, nan=-np.inf), pairs[:, 0]))
    pairs, scores = pairs[order], scores[order]
    asked, first = np.unique(pairs[:, 0], return_index=True)  # (A,), their pairs' beginnings
    ends = np.append(first[1:], len(pairs))
    wrong = _count_wrong(queries, gallery, pairs, scores, asked, np.append(first, len(pairs)))
    ranks = np.zeros(len(queries), dtype=np.int64)
    ranks[asked] = wrong[first] + 1
    place = np.arange(len(pairs)) - np.repeat(first, ends - first) + 1  # among the right answers
    precision = np.full(len(queries), np.nan)
    precision[asked] = np.add.reduceat(place / (place + wrong), first) / (ends - first)
    num_right = np.bincount(pairs[:, 0], minlength=len(queries))
    return Ranking(ranks, precision, num_right)


def _count_wrong(
    queries: Tensor,
    gallery: Tensor,
    pairs: np.ndarray,
    scores: np.ndarray,
    asked: np.ndarray,
    first: np.ndarray,
) -> np.ndarray:
    """(P,) the number of wrong answers that score as high as each right one, or higher.

    Args:
        queries, gallery: (Q, D) and (G, D).
        pairs: (P, 2), sorted by query.
        scores: (P,), of the pairs.
        asked: (A,) the queries that have pairs.
        first: (A + 1,) where their pairs begin.
    """
    least = torch.from_numpy(scores - np.float32(_TIE)).to(queries.device)
    counts = np.zeros(len(pairs), dtype=np.int64)
    step = _GALLERY_ON_CPU if queries.device.type == "cpu" else _GALLERY
    for q in range(0, len(asked), _QUERIES):
        chunk = slice(q, min(q + _QUERIES, len(asked)))
        vectors = queries[torch.from_numpy(asked[chunk]).to(queries.device)]  # (q, D)
        own = range(first[chunk.start], first[chunk.stop])  # this chunk's pairs
        row = np.searchsorted(asked[chunk], pairs[own.start : own.stop, 0])
        answer = pairs[own.start : own.stop, 1]
        for g in range(0, len(gallery), step):
            block = vectors @ gallery[g : g + step].T  # (q, g)
            here = (answer >= g) & (answer < g + step)
            place = torch.from_numpy(np.stack([row[here], answer[here] - g]))
            block[tuple(place.to(block.device))] = -torch.inf  # right answers do not compete
            for p in range(0, len(own), _QUERIES):
                part = slice(own.start + p, min(own.start + p + _QUERIES, own.stop))
                rows = torch.from_numpy(row[p : p + _QUERIES]).to(block.device)
                # Not "greater or equal", which would be false for NaN.
                lower = block[rows] < least[part, None]  # (p, g)
                counts[part] += lower.shape[1] - lower.sum(dim=1, dtype=torch.int32).cpu().numpy()
    return counts


def _right_scores(queries: Tensor, gallery: Tensor, pairs: np.ndarray) -> np.ndarray:
    """(P,) the score of each pair."""
    scores = np.empty(len(pairs), dtype=np.float32)
    for p in range(0, len(pairs), _PAIRS):
        rows = torch.from_numpy(np.ascontiguousarray(pairs[p : p + _PAIRS])).to(queries.device)
        products = queries[rows[:, 0]] * gallery[rows[:, 1]]
        scores[p : p + _PAIRS] = products.sum(dim=1).cpu().numpy()
    return scores

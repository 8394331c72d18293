"""Scores of captions that differ by a word, or by its place → whether the model can tell.

Ties count against the model: a right caption must score above a wrong one by more than ``TIE``.
"""

from __future__ import annotations

import numpy as np

from clipkit.evaluation.classification import TIE


def hard_negative_hits(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the image's own caption scores above each hard negative.

    Args:
        right: (N,) cosines of images and their captions.
        wrong: (N,) or (N, K) cosines of the images and their negative captions.

    Reference: SugarCrepe, https://arxiv.org/abs/2306.14610, section 2.
    """
    wrong = wrong.reshape(len(right), -1)
    hits: np.ndarray = np.all(right[:, None] > wrong + TIE, axis=1)
    return hits


def winoground_hits(scores: np.ndarray) -> dict[str, np.ndarray]:
    """``text``, ``image`` and ``group``, (N,) bool each, of two captions of two images.

    ``text``: of each image its own caption scores higher; ``image``: of each caption its own
    image does; ``group``: both. Chance is 1/4, 1/4 and 1/6.

    Args:
        scores: (N, 2, 2), of sample n caption c and image i; caption 0 belongs to image 0.

    Reference: Winoground, https://arxiv.org/abs/2204.03162, equations 1 to 3.
    """
    own = np.stack([scores[:, 0, 0], scores[:, 1, 1]], axis=1)  # (N, image or caption)
    other_caption = np.stack([scores[:, 1, 0], scores[:, 0, 1]], axis=1)
    other_image = np.stack([scores[:, 0, 1], scores[:, 1, 0]], axis=1)
    text: np.ndarray = np.all(own > other_caption + TIE, axis=1)
    image: np.ndarray = np.all(own > other_image + TIE, axis=1)
    return {"text": text, "image": image, "group": text & image}

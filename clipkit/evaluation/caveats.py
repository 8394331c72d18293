"""Metrics of retrieval → sentences on what they cannot say, for log, card and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.evaluation.metrics import DIRECTIONS

KS = (1, 5, 10)  # the recalls that are asked for everywhere
IN_TRAINING = "num_in_training"
_ARROWS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def caveats(metrics: Mapping[str, Any], *, ks: Sequence[int] = KS) -> list[str]:
    """Sentences on recalls that are left out, texts that are shared, and images trained on.

    Args:
        metrics: what ``evaluate_retrieval`` gave, or a record of it.
        ks: the cut-offs that were asked for.

    Returns:
        Each sentence without a full stop; none where nothing need be said.
    """
    images, texts = (int(metrics.get(name) or 0) for name in ("num_images", "num_texts"))
    told = []
    if is_measured(metrics):
        for way, answers in zip(
            DIRECTIONS, (f"{images:,} images", f"{texts:,} texts"), strict=True
        ):
            missing = [f"R@{k}" for k in ks if f"{way}_R@{k}" not in metrics]
            if len(missing) == len(ks):
                told.append(f"{_ARROWS[way]}: every answer is right, so no recall can be wrong")
            elif missing:
                told.append(f"{' and '.join(missing)} of {answers} cannot be wrong: left out")
    else:
        told.append(_why_not(images, texts))
    if shared := metrics.get("num_shared"):
        told.append(
            f"{shared:,} of {texts:,} texts belong to several images each, any of which is right"
        )
    if indistinct := metrics.get("num_indistinct"):
        told.append(
            f"{indistinct:,} of {texts:,} texts have the same tokens as another one (equal but for "
            "case, or cut), and count as wrong where the other one is"
        )
    if in_training := metrics.get(IN_TRAINING):
        told.append(
            f"{in_training:,} of {images:,} images are in the training data: of these the recall "
            "shows what was learned by heart"
        )
    return told


def is_measured(metrics: Mapping[str, Any]) -> bool:
    """Whether any recall can be wrong, so that there is one."""
    return any(f"{way}_mAP" in metrics for way in DIRECTIONS)


def _why_not(images: int, texts: int) -> str:
    if images == 1:
        why = "there is one image alone"
    elif texts == 1:
        why = f"all {images:,} images have one and the same text"
    else:
        why = f"each of the {texts:,} texts belongs to each of the {images:,} images"
    return f"no recall: {why}, so that no answer can be wrong"

"""What tasks of classes share: (scores, right classes) → metrics and columns; the classifier."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clipkit.data.tokenize import encode
from clipkit.display.console import shorten
from clipkit.encoder import Encoder
from clipkit.evaluation.classification import (
    class_ranks,
    mean_per_class_recall,
    predicted_classes,
)
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.labelled import LabelledData
from clipkit.evaluation.zero_shot import ZeroShotClassifier


def judge(
    scores: np.ndarray, targets: np.ndarray, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, Any]]:
    """``top1``, ``top5`` of more than five classes, and ``mean_per_class_recall``; and the columns
    ``label``, ``predicted``, ``top1`` and ``top5``.

    Args:
        scores: (N, C); cosines, logits or votes.
        targets: (N,) int64, the right classes.
        names: C labels.
    """
    ranks = class_ranks(scores, targets)
    right = (ranks == 1).astype(np.float64)
    metrics = {"top1": float(right.mean())}
    columns: dict[str, Any] = {
        "label": [names[c] for c in targets],
        "predicted": [names[c] for c in predicted_classes(scores, targets)],
        "top1": right,
    }
    if len(names) > 5:
        columns["top5"] = (ranks <= 5).astype(np.float64)
        metrics["top5"] = float(columns["top5"].mean())
    metrics["mean_per_class_recall"] = mean_per_class_recall(right, targets)
    return metrics, columns


def build_classifier(
    job: Job, data: LabelledData, templates: Sequence[str]
) -> tuple[ZeroShotClassifier, list[str]]:
    """The classifier of the classes of some data, and what it warns of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        classifier = ZeroShotClassifier(job.encoder, data.classes, templates)
    notes = [str(each.message) for each in said if each.category is UserWarning]
    if alike := _alike(job.encoder, data.classes, templates):
        notes.append(
            f"{len(alike):,} of {len(data.classes):,} classes have the same tokens as another "
            "(equal but for case, or cut), so that none of their images is right: "
            f"{shorten(', '.join(alike), 60)}"
        )
    return classifier, notes


def _alike(
    encoder: Encoder, classes: Mapping[str, Sequence[str]], templates: Sequence[str]
) -> list[str]:
    """Classes whose names differ from another's, and whose tokens do not."""
    alike = list(classes)
    for template in templates:  # mostly after the first there are none
        groups: dict[tuple[tuple[int, ...], ...], list[str]] = {}
        for label in alike:
            texts = [template.replace("{}", name) for name in classes[label]]
            encoded = encode(
                encoder.tokenizer, texts, context_length=encoder.preprocess.context_length
            )
            groups.setdefault(tuple(tuple(each.ids) for each in encoded), []).append(label)
        alike = [
            label
            for group in groups.values()
            if len({tuple(classes[each]) for each in group}) > 1
            for label in group
        ]
    return alike

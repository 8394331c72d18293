"""Labels in words + images → which label each image is, with no training.

Reference: CLIP, https://arxiv.org/abs/2103.00020, sections 3.1.2 and 3.1.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipkit.display.console import escape_control
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.evaluation.prompts import resolve_templates
from clipkit.inputs import ImageInput


@dataclass(repr=False)
class ZeroShotResult:
    """What each image shows, in the order of the images.

    Attributes:
        labels: C labels.
        scores: (N, C) float32, the probability of each label; rows sum to 1.
        names: N names of the images, for showing.
    """

    labels: list[str]
    scores: np.ndarray
    names: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.scores)

    def top(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """For each image its k likeliest labels with their probabilities, the likeliest first."""
        order = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        return [
            [(self.labels[c], float(row[c])) for c in best]
            for row, best in zip(self.scores, order, strict=True)
        ]

    def __repr__(self) -> str:
        if not len(self):
            return f"ZeroShotResult: no images, {len(self.labels)} labels"
        return format_result(self, k=3, most=20)


class ZeroShotClassifier:
    """Sorts images into classes that are named in words.

    A class is the direction of the mean of its prompts' unit vectors; an image's probabilities
    are the softmax of its cosines with the classes, times the model's scale.

    Example:
        >>> model = clipkit.load("runs/emoji")
        >>> clipkit.ZeroShotClassifier(model, ["cat", "dog", "teacup"])("picture.png").top(1)
        [[('cat', 0.93)]]

    Args:
        encoder: the model.
        labels: the classes; or for each class its names in words, as many as one likes.
        templates: what stands around a name: see ``resolve_templates``.

    Raises:
        ConfigError: no labels, an empty one, or the same one twice.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4 (prompt ensembling).
    """

    def __init__(
        self,
        encoder: Encoder,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: str | Sequence[str] | None = None,
    ) -> None:
        self.encoder = encoder
        names = _names_of(labels)
        self.labels = list(names)
        wordings = resolve_templates(templates)
        prompts = [
            [wording.replace("{}", name) for name in names[label] for wording in wordings]
            for label in self.labels
        ]
        embeds = encoder.encode_text([prompt for each in prompts for prompt in each])
        ends = np.cumsum([len(each) for each in prompts])
        means = np.stack([part.mean(axis=0) for part in np.split(embeds, ends[:-1])])
        # (C, D), unit length
        self.class_embeds = means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)

    def __call__(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        batch_size: int = 64,
        progress: bool = False,
    ) -> ZeroShotResult:
        """Classifies one image or several; see ``Encoder.encode_image`` for what an image is."""
        names = _image_names(images)
        embeds = self.encoder.encode_image(images, batch_size=batch_size, progress=progress)
        embeds = embeds.reshape(-1, self.encoder.embed_dim)  # (N, D), also for a single image
        names = names or [f"image {i}" for i in range(len(embeds))]
        return ZeroShotResult(self.labels, self.probabilities(embeds), names)

    def probabilities(self, image_embeds: np.ndarray) -> np.ndarray:
        """(N, D) image embeddings → (N, C) probabilities."""
        logits = self.encoder.scale * (image_embeds @ self.class_embeds.T)
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        scores: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
        return scores.astype(np.float32)


def format_result(result: ZeroShotResult, *, k: int, most: int | None = None) -> str:
    """A table: one image a line, its k likeliest labels with probabilities.

    Args:
        result: what to show.
        k: labels an image.
        most: lines at most; what is left out is counted.
    """
    names = map(escape_control, result.names)
    rows = list(zip(names, result.top(k), strict=True))
    shown = rows if most is None else rows[:most]
    width = max(len(name) for name, _ in shown)
    label_width = max(len(label) for _, best in shown for label, _ in best)
    lines = [
        f"{name:<{width}}  " + "  ".join(f"{label:<{label_width}} {p:6.1%}" for label, p in best)
        for name, best in shown
    ]
    if len(shown) < len(rows):
        lines.append(f"… and {len(rows) - len(shown):,} more images")
    return "\n".join(line.rstrip() for line in lines)


def _names_of(labels: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Label → its names in words."""
    if isinstance(labels, str):
        raise ConfigError(f"labels: one text, {labels!r}; give a list of texts")
    if not isinstance(labels, Sequence | Mapping):
        raise ConfigError(
            f"labels: a {type(labels).__name__}; give a list of texts, or a dict from each label "
            "to its names"
        )
    for label in labels:
        if not isinstance(label, str):
            raise ConfigError(f"labels: {label!r} is a {type(label).__name__}; give a text (str)")
    if isinstance(labels, Mapping):
        odd = [each for each in labels.values() if not isinstance(each, Sequence)]
        if odd:
            raise ConfigError(f"labels: names as a {type(odd[0]).__name__}; give a list of texts")
        names = {
            label: [each] if isinstance(each, str) else list(each) for label, each in labels.items()
        }
    else:
        twice = [label for i, label in enumerate(labels) if label in labels[:i]]
        if twice:
            raise ConfigError(f"labels: {twice[0]!r} stands there twice; leave one out")
        names = {label: [label] for label in labels}
    if not names:
        raise ConfigError("labels: there are none; give at least two")
    for label, each in names.items():
        if not each or not all(isinstance(name, str) and name.strip() for name in each):
            raise ConfigError(f"labels: {label!r} has no name, or an empty one")
    return names


def _image_names(images: object) -> list[str]:
    """Names of images that have one: paths. A stream of images is not looked into."""
    if isinstance(images, str | Path):
        return [str(images)]
    if isinstance(images, list | tuple):
        return [
            str(item) if isinstance(item, str | Path) else f"image {i}"
            for i, item in enumerate(images)
        ]
    return []

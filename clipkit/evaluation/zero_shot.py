"""Labels in words + images → which label each image is, with no training.

Reference: CLIP, https://arxiv.org/abs/2103.00020, sections 3.1.2 and 3.1.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.evaluation.images import check_faults, embed_images
from clipkit.evaluation.prompts import resolve_templates
from clipkit.evaluation.zero_shot_result import ZeroShotResult
from clipkit.inputs import ImageInput

_THUMBNAILS = 200  # are kept of a call, some 3 KB each, for a notebook to show


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
        if not isinstance(encoder, Encoder):
            raise ConfigError(
                f"model: a {type(encoder).__name__}; give what clipkit.load returns for it"
            )
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
        urls: bool = False,
        progress: bool = True,
    ) -> ZeroShotResult:
        """Classifies one image or many, in the memory of a batch however many they are.

        An image that cannot be read keeps its row: its scores are NaN, its ``fault`` says why,
        and a warning tells how many there are.

        Args:
            images: a PIL image, a path, the bytes of an image file, an (H, W, 3) uint8 array or
                a (3, H, W) uint8 tensor, RGB; several of them in a list, a generator or any
                iterable, or in an array or tensor with one dimension more; a folder, for all
                images below it; a column of a ``datasets`` table.
            batch_size: images at a time.
            urls: whether a ``str`` may be a URL, which is then fetched.
            progress: whether to show a progress bar where it takes longer.

        Raises:
            DataError: not one image can be read; a folder without images.
            ConfigError: ``batch_size`` is below 1; a ``datasets`` table without its column.
        """
        parts = list(
            self.stream(
                images, batch_size=batch_size, urls=urls, progress=progress, thumbnails=_THUMBNAILS
            )
        )
        result = ZeroShotResult(
            self.labels,
            np.concatenate(
                [np.zeros((0, len(self.labels)), np.float32), *(p.scores for p in parts)]
            ),
            [name for part in parts for name in part.names],
            [fault for part in parts for fault in part.faults],
            [small for part in parts for small in part.thumbnails],
        )
        check_faults(result.faults)
        return result

    def stream(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        batch_size: int = 64,
        urls: bool = False,
        progress: bool = False,
        thumbnails: int = 0,
    ) -> Iterator[ZeroShotResult]:
        """A result a batch, as soon as it is there: for more images than one wants to keep the
        results of. Images that cannot be read are told by the results alone.

        Args:
            images: see ``__call__``, as for the other arguments.
            batch_size: images at a time.
            urls: whether URLs are fetched.
            progress: whether to show a progress bar.
            thumbnails: for the first so many images a small picture is kept.
        """
        for batch in embed_images(
            self.encoder,
            images,
            batch_size=batch_size,
            urls=urls,
            progress=progress,
            thumbnails=thumbnails,
        ):
            scores = self.probabilities(batch.embeds)
            yield ZeroShotResult(self.labels, scores, batch.names, batch.faults, batch.thumbnails)

    def probabilities(self, image_embeds: np.ndarray) -> np.ndarray:
        """(N, D) image embeddings → (N, C) probabilities."""
        logits = self.encoder.scale * (image_embeds @ self.class_embeds.T)
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        scores: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
        return scores.astype(np.float32)


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

"""Labels in words + images → which label each image is, with no training.

Reference: CLIP, https://arxiv.org/abs/2103.00020, sections 3.1.2 and 3.1.4.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Literal, SupportsFloat

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.data.tokenize import tokenize
from clipkit.display.console import shorten
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.evaluation.explain import draw_relevance, patch_relevance
from clipkit.evaluation.few_shot import best_scale, class_means, linear_probe, unit_rows
from clipkit.evaluation.images import check_faults, embed_images
from clipkit.evaluation.labels import check_other, names_of, targets_of
from clipkit.evaluation.prompts import class_embeds, resolve_templates
from clipkit.evaluation.zero_shot_result import ZeroShotResult
from clipkit.inputs import ImageInput, is_one_image, open_image

if TYPE_CHECKING:
    from typing import Self

_THUMBNAILS = 200  # are kept of a call, some 3 KB each, for a notebook to show


class ZeroShotClassifier:
    """Sorts images into classes that are named in words.

    A class is the direction of the mean of its prompts' unit vectors; an image's probabilities
    are the softmax of its cosines with the classes, times the model's scale. A model with a bias of
    the logits (SigLIP) answers yes or no to each label by itself: its probabilities are sigmoids,
    and do not sum to 1, until ``fit`` or ``calibrate`` has learned which of the labels it is.

    Example:
        >>> model = clipkit.load("runs/emoji")
        >>> clipkit.ZeroShotClassifier(model, ["cat", "dog", "teacup"])("picture.png").top(1)
        [[('cat', 0.93)]]

    Args:
        encoder: the model.
        labels: the classes; or for each class its names in words, as many as one likes.
        templates: what stands around a name: see ``resolve_templates``.
        other: below this probability of its likeliest label an image is ``other``.

    Attributes:
        labels: C labels.
        class_embeds: (C, D) unit vectors, of the prompts alone.
        weights, bias, scale: (C, D), (C,) and a number: the logits of image embeddings x, (N, D),
            are ``scale * (x @ weights.T + bias)``. Until ``fit`` and ``calibrate`` change them:
            ``class_embeds``, 0, and the model's scale.

    Raises:
        ConfigError: no labels, an empty one, or the same one twice; ``other`` is no probability,
            or so low that it never wins.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4 (prompt ensembling).
    """

    def __init__(
        self,
        encoder: Encoder,
        labels: Sequence[str] | Mapping[str, Sequence[str]],
        templates: str | Sequence[str] | None = None,
        *,
        other: float | None = None,
    ) -> None:
        if not isinstance(encoder, Encoder):
            raise ConfigError(
                f"model: a {type(encoder).__name__}; give what clipkit.load returns for it"
            )
        self.encoder = encoder
        names = names_of(labels)
        self.labels, self.other = list(names), other
        if other is not None:
            check_other(other, self.labels, share_one=encoder.bias is None)
        wordings = resolve_templates(templates)
        prompts = [
            [wording.replace("{}", name) for name in names[label] for wording in wordings]
            for label in self.labels
        ]
        self._warn_of_cut(prompts)
        self.class_embeds = class_embeds(encoder, prompts)
        self.weights, self.bias = self.class_embeds, np.zeros(len(names), dtype=np.float32)
        self.scale = encoder.scale
        self._yes_or_no = encoder.bias  # None: the labels share one softmax

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
            self.other,
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
            yield ZeroShotResult(
                self.labels, scores, batch.names, batch.faults, batch.thumbnails, self.other
            )

    def probabilities(self, image_embeds: np.ndarray) -> np.ndarray:
        """(N, D) image embeddings → (N, C) probabilities."""
        logits = self.scale * self._logits(image_embeds)
        if self._yes_or_no is not None:
            answers = torch.from_numpy(logits + self._yes_or_no).sigmoid()
            return answers.numpy().astype(np.float32)
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        scores: np.ndarray = exponentials / exponentials.sum(axis=1, keepdims=True)
        return scores.astype(np.float32)

    def fit(
        self,
        images: ImageInput | Iterable[ImageInput],
        labels: Iterable[str],
        *,
        method: Literal["mean", "probe"] = "mean",
        text_weight: float = 0.5,
        l2: float = 0.1,
        batch_size: int = 64,
        urls: bool = False,
        progress: bool = True,
    ) -> Self:
        """Learns from labelled images, some of each class, in a moment: the towers stay as they
        are. What was fitted before is forgotten.

        ``mean``: a class is the direction of ``text_weight`` times its prompts' vector plus the
        rest times the mean of its images.
        ``probe``: a logistic regression with bias; its weights are drawn to ``text_weight``
        times those of the zero-shot classifier.

        Args:
            images: see ``__call__``; those that cannot be read are left out, with a warning.
            labels: of each image, in the same order; each of the classifier's at least once.
            method: ``mean`` or ``probe``.
            text_weight: how much the prompts say; 0: nothing, so that only the images do.
            l2: of the probe, how strongly its weights are drawn; see ``linear_probe``.
            batch_size: images at a time.
            urls: whether URLs are fetched.
            progress: whether to show a progress bar.

        Raises:
            ConfigError: a label that the classifier has not; one without an image; not as many
                labels as images; a method or number that cannot be.
            DataError: not one image can be read.

        Reference: nearest class mean, https://arxiv.org/abs/1703.05175, section 2.2; linear probe,
        CLIP, https://arxiv.org/abs/2103.00020, section 3.2.
        """
        if method not in ("mean", "probe"):
            raise ConfigError(f"method: {method!r}; give mean or probe")
        if not (isinstance(text_weight, SupportsFloat) and 0 <= text_weight <= 1):
            raise ConfigError(f"text_weight: {text_weight!r}; give a number from 0 to 1")
        if not (isinstance(l2, SupportsFloat) and 0 < l2 < float("inf")):
            raise ConfigError(f"l2: {l2!r}; give a number above 0")
        embeds, targets = self._labelled(images, labels, batch_size, urls, progress)
        missing = np.setdiff1d(np.arange(len(self.labels)), targets)
        if len(missing):
            raise ConfigError(
                f"labels: {len(missing)} of {len(self.labels)} have no image, "
                f"{self.labels[missing[0]]!r} for one; give one or more of each"
            )
        bias = np.zeros_like(self.bias)
        if method == "mean":
            means = class_means(embeds, targets, len(self.labels))
            mixed = text_weight * self.class_embeds + (1 - text_weight) * means
            self.weights, self.bias, self.scale = unit_rows(mixed), bias, self.encoder.scale
        else:
            start = text_weight * self.encoder.scale * self.class_embeds
            self.weights, self.bias = linear_probe(embeds, targets, start, l2=l2)
            self.scale = 1.0
        self._yes_or_no = None
        return self

    def calibrate(
        self,
        images: ImageInput | Iterable[ImageInput],
        labels: Iterable[str],
        *,
        batch_size: int = 64,
        urls: bool = False,
        progress: bool = True,
    ) -> Self:
        """Fits the temperature, so that of the images with a probability of 0.8 about 80% are
        right. Which label is the likeliest does not change.

        Images that ``fit`` has seen will not do: it is surer of them than of others. Where no
        temperature is best, because every image is right, or no better than chance, it stays
        as it is, with a warning.

        Args:
            images: labelled ones, some dozens, wrong ones among them; see ``__call__``.
            labels: of each image, in the same order.
            batch_size: images at a time.
            urls: whether URLs are fetched.
            progress: whether to show a progress bar.

        Raises:
            ConfigError: a label that the classifier has not; not as many labels as images.
            DataError: not one image can be read.

        Reference: temperature scaling, https://arxiv.org/abs/1706.04599, section 4.2.
        """
        embeds, targets = self._labelled(images, labels, batch_size, urls, progress)
        logits = self._logits(embeds)
        scale = best_scale(logits, targets)
        if scale is None:
            right = int((logits.argmax(axis=1) == targets).sum())
            warnings.warn(
                f"calibrate: {right} of {len(targets)} images are right, and no temperature is "
                "best for them; it stays as it was; give more images, or harder ones",
                stacklevel=2,
            )
        else:
            self.scale, self._yes_or_no = scale, None
        return self

    def explain(self, image: ImageInput, label: str | None = None) -> Image.Image:
        """The image under a heat map of the patches that speak for a label, and against the
        others: see ``relevance``. A notebook shows it.

        Args:
            image: of any kind that ``__call__`` takes.
            label: one of the classifier's; none: the likeliest.

        Raises:
            ConfigError: the classifier has no such label.
            DataError: the image cannot be read.
        """
        picture = open_image(image, where="image")
        heat = self.relevance(picture, label)
        return draw_relevance(picture, heat, resize=self.encoder.preprocess.resize)

    def relevance(self, image: ImageInput, label: str | None = None) -> np.ndarray:
        """(rows, columns) float32 from 0 to 1: how much each patch of what the model sees of an
        image speaks for the odds of a label; see ``patch_relevance``, ``explain``."""
        picture = open_image(image, where="image")
        if label is None:
            embed = self.encoder.encode_image(picture)
            c = int(self._logits(embed[None])[0].argmax())
        else:
            c = int(targets_of([label], self.labels)[0])
        weights, bias = (
            torch.from_numpy(x).to(self.encoder.device) for x in (self.weights, self.bias)
        )
        others = [i for i in range(len(self.labels)) if i != c]

        def log_odds(embeds: Tensor) -> Tensor:
            logits = (embeds @ weights.T + bias)[0] * self.scale  # (C,)
            # Not the probability: where that is 1, its gradient is 0.
            return logits[c] - logits[others].logsumexp(0) if others else logits[c]

        return patch_relevance(self.encoder, picture, log_odds)

    def _warn_of_cut(self, prompts: list[list[str]]) -> None:
        """Names a label of which the model does not read all."""
        length = self.encoder.preprocess.context_length
        cut = []
        for label, each in zip(self.labels, prompts, strict=True):
            # A token is a byte at least, so that most need no second look.
            long = [
                prompt for prompt in each if len(prompt.encode("utf-8", "replace")) + 2 > length
            ]
            if long and tokenize(self.encoder.tokenizer, long, context_length=length)[1]:
                cut.append(label)
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(prompts)} labels are longer than the model's {length} tokens "
                f"and were cut, {shorten(cut[0][:200], 60)!r} for one",
                stacklevel=3,
            )

    def _logits(self, image_embeds: np.ndarray) -> np.ndarray:
        """(N, D) → (N, C), before the scale."""
        logits: np.ndarray = image_embeds @ self.weights.T + self.bias
        return logits

    def _labelled(
        self,
        images: ImageInput | Iterable[ImageInput],
        labels: Iterable[str],
        batch_size: int,
        urls: bool,
        progress: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, D) embeddings of the images that can be read, and (N,) their classes."""
        targets = targets_of(labels, self.labels)
        if isinstance(images, Sized) and not is_one_image(images) and len(images) != len(targets):
            raise ConfigError(f"labels: {len(targets)} for {len(images)} images; give one each")
        batches = list(
            embed_images(self.encoder, images, batch_size=batch_size, urls=urls, progress=progress)
        )
        faults = [fault for batch in batches for fault in batch.faults]
        if len(faults) != len(targets):
            raise ConfigError(f"labels: {len(targets)} for {len(faults)} images; give one each")
        if not faults:
            raise ConfigError("images: there are none; give some of each label")
        check_faults(faults)
        read = np.array([fault is None for fault in faults])
        return np.concatenate([batch.embeds for batch in batches])[read], targets[read]

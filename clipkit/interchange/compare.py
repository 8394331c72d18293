"""The same images and texts through a model and through what was written of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError

TOLERANCE = 1e-5  # of a number of a unit vector; float32 in another order is off by some 1e-7

TEXTS = (
    "a photo of a cat",
    "two dogs, one of them asleep",
    "3 red apples on a table",
    "x",
    "the house by the river in winter, seen from the other side of the bridge",
)


@dataclass(frozen=True)
class Comparison:
    """How far an export is from the model; differences are the largest of unit vectors.

    Attributes:
        library: what ran the export, with its version.
        images: of images that need no resizing.
        texts: of texts.
        resized: of images of other sizes; None where the export does not resize.
        why: what a difference of these comes from; empty: they must be as near as the others.
        missing: the library it was made for, where that is not installed.
    """

    library: str
    images: float
    texts: float
    resized: float | None = None
    why: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Loaded:
    """An export as its library runs it: images, texts → (B, D) of unit length.

    Attributes: see ``Comparison``.
    """

    library: str
    embed_images: Callable[[Sequence[Image.Image]], np.ndarray]
    embed_texts: Callable[[Sequence[str]], np.ndarray]
    resizes: bool = True
    why: str = ""
    missing: str = ""


def compare(encoder: Encoder, loaded: Loaded) -> Comparison:
    """Runs both.

    Raises:
        CheckpointError: they differ by more than ``TOLERANCE``, or are not finite.
    """
    size = encoder.preprocess.image_size
    square = [_picture(seed, size, size) for seed in range(4)]
    other = [
        _picture(seed, *edges)
        for seed, edges in enumerate(((size + 3, size * 2 + 5), (3 * size, 2 * size), (97, 61)))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a short context cuts these texts; both do
        texts = _difference(encoder.encode_text(TEXTS), loaded.embed_texts(TEXTS))
    found = Comparison(
        library=loaded.library,
        images=_difference(encoder.encode_image(square), loaded.embed_images(square)),
        texts=texts,
        resized=_difference(encoder.encode_image(other), loaded.embed_images(other))
        if loaded.resizes
        else None,
        why=loaded.why,
        missing=loaded.missing,
    )
    exact = [("image", found.images), ("text", found.texts)]
    if found.resized is not None and not found.why:
        exact.append(("image", found.resized))
    for what, difference in exact:
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"{encoder.name}: {loaded.library} gives other {what} embeddings than clipkit, by "
                f"{difference:.1e} where {TOLERANCE:.0e} is let through; nothing was exported."
            )
    return found


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest; infinite where they cannot be compared."""
    if ours.shape != theirs.shape or not np.isfinite(ours).all() or not np.isfinite(theirs).all():
        return float("inf")
    return float(np.abs(ours - theirs).max())


def _picture(seed: int, width: int, height: int) -> Image.Image:
    """A colour gradient with some noise: smooth parts and sharp ones, as photos have."""
    random = np.random.default_rng(seed)
    down, across = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    corners = random.uniform(0, 255, (4, 3))
    top = corners[0] * (1 - across) + corners[1] * across
    bottom = corners[2] * (1 - across) + corners[3] * across
    pixels = top * (1 - down) + bottom * down + random.normal(0, 20, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

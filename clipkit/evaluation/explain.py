"""An image and what is said of it → which of its patches speak for that, drawn over it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.data import eval_transform
from clipkit.errors import ConfigError
from clipkit.models import DualEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clipkit.encoder import Encoder

_SMALLEST, _LARGEST = 336, 1024  # pixels of a drawn map's longest edge
# From what says nothing to what says most: red, green, blue, opacity.
_COLOURS = np.array(
    [[70, 60, 160, 90], [200, 50, 110, 130], [245, 130, 50, 160], [255, 230, 90, 190]], dtype=float
)


def patch_relevance(
    encoder: Encoder, image: Image.Image, score: Callable[[Tensor], Tensor]
) -> np.ndarray:
    """How much each patch of an image speaks for a score, by the attention it gets.

    From layer to layer relevance is passed on along the attention whose gradient is positive,
    averaged over heads: R ← R + mean(max(∇A ⊙ A, 0)) R, with R the identity at first; a patch has
    what the pooled token has of it at the end. It tells where the model looks for what it finds,
    not what would change if that were not there, and says nothing of what speaks against; nor
    does it find what a label is known by where that is the absence of something.

    Args:
        encoder: the model; its image tower is a ViT with a class token.
        image: RGB.
        score: of a (1, D) embedding of unit length, ().

    Returns:
        (rows, columns) float32 from 0 to 1, of the square that the model sees; all 0 where no
        patch speaks for it.

    Raises:
        ConfigError: the model is of another kind.

    Reference: Generic Attention-model Explainability, https://arxiv.org/abs/2103.15679,
    sections 3.1 and 3.2, equations 5 and 6.
    """
    model = encoder.model
    if not isinstance(model, DualEncoder):
        raise ConfigError(
            f"explain: {encoder.name} is no CLIP model; heat maps are of image towers with a class "
            "token that clipkit runs itself"
        )
    pixels = eval_transform(image, encoder.preprocess)[None].to(encoder.device)
    # Gradients flow although the weights may be frozen.
    pixels = ((pixels.float() / 255 - model.mean) / model.std).requires_grad_()
    with _evaluating(encoder), torch.enable_grad():
        embeds, shares = model.attend_images(pixels)
        slopes = torch.autograd.grad(score(embeds), shares)
    passed = [
        (a * slope).clamp(min=0)[0].mean(dim=0) for a, slope in zip(shares, slopes, strict=True)
    ]
    # What the pooled token has of each token, from the last layer back to the first: a row of R.
    row = torch.zeros(shares[0].shape[-1], device=encoder.device)
    row[0] = 1
    for layer in reversed(passed):
        step = layer.detach().float()
        row = row + (row[: len(step)] @ step)
    side = pixels.shape[-1] // model.patch_size
    found: np.ndarray = row[1:].view(side, side).cpu().numpy()
    low, high = float(found.min()), float(found.max())
    return (found - low) / (high - low) if high > low else np.zeros_like(found)


def draw_relevance(image: Image.Image, relevance: np.ndarray, *, resize: str) -> Image.Image:
    """A picture with a heat map over it, from violet for nothing to yellow for most; what the
    model does not see of it is grey.

    Args:
        image: RGB.
        relevance: (rows, columns), from 0 to 1.
        resize: ``crop`` or ``squash``, how the model gets its square.
    """
    longest = max(image.size)
    factor = min(max(longest, _SMALLEST), _LARGEST) / longest
    width, height = (max(1, round(edge * factor)) for edge in image.size)
    picture = image.resize((width, height), Image.Resampling.BICUBIC)
    short = min(width, height)
    seen_size = (short, short) if resize == "crop" else (width, height)
    left, top = (width - seen_size[0]) // 2, (height - seen_size[1]) // 2
    seen = picture.crop((left, top, left + seen_size[0], top + seen_size[1]))
    heat = Image.fromarray(relevance.astype(np.float32)).resize(seen_size, Image.Resampling.BICUBIC)
    place = np.asarray(heat).clip(0, 1) * (len(_COLOURS) - 1)
    colours = np.stack(
        [np.interp(place, range(len(_COLOURS)), channel) for channel in _COLOURS.T], axis=-1
    )
    layer = Image.fromarray(colours.round().astype(np.uint8))  # RGBA
    drawn = Image.alpha_composite(seen.convert("RGBA"), layer).convert("RGB")
    result = picture.convert("L").convert("RGB")
    result.paste(drawn, (left, top))
    return result


@contextmanager
def _evaluating(encoder: Encoder) -> Iterator[None]:
    training = encoder.model.training
    encoder.model.eval()
    try:
        yield
    finally:
        encoder.model.train(training)

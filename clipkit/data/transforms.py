"""RGB image → the model's (3, H, W) uint8 pixels; normalising happens on the device.

Evaluation equals transformers' ``CLIPImageProcessor``; training crops at random, by draws
that are a function of (seed, position).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.transforms.v2.functional import InterpolationMode

from clipkit.config.schema import AugmentConfig, ForeignPreprocess, PreprocessConfig
from clipkit.data.rng import Purpose, uniforms

# Beyond this ratio of the edges only the middle is resized: a 1 × 64,000,000 image would
# otherwise be blown up to terabytes before its centre is cut out.
_MAX_ASPECT = 32
# A JPEG is decoded at a reduced size only where this many of its pixels remain for one of the
# result's, in each direction; from there on the eye and the mean difference see nothing.
_DRAFT_MARGIN = 2.0


def eval_transform(image: Image.Image | NDArray[np.uint8], preprocess: PreprocessConfig) -> Tensor:
    """The pixels a model is evaluated and served with, within rounding of what transformers'
    ``CLIPImageProcessor`` makes of the same image before it normalises; for a model of
    open_clip, exactly what its transform makes.

    Args:
        image: RGB, as an image or as (H, W, 3).
        preprocess: its ``image_size`` S and ``resize`` are used, and how a ``ForeignPreprocess``
            interpolates.

    Returns:
        (3, S, S) uint8.
    """
    size = preprocess.image_size
    foreign = preprocess if isinstance(preprocess, ForeignPreprocess) else ForeignPreprocess()
    mode = InterpolationMode(foreign.interpolation)
    pillow = foreign.library == "open_clip"
    if preprocess.resize == "squash":
        return _resize_any(image, size, size, mode, pillow)
    width, height = size_of(image)
    longest = _MAX_ASPECT * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = _crop(image, (left, top, width - left, height - top))
        width, height = size_of(image)
    short = min(width, height)
    # The longer edge is floored, and so is the crop's corner, as in the processor.
    height, width = int(size * height / short), int(size * width / short)
    pixels = _resize_any(image, height, width, mode, pillow)
    corner = round if pillow else math.floor
    top, left = corner((height - size) / 2), corner((width - size) / 2)
    return pixels[:, top : top + size, left : left + size].contiguous()


def train_transform(
    image: Image.Image | NDArray[np.uint8],
    preprocess: PreprocessConfig,
    augment: AugmentConfig,
    seed: int,
    position: int,
) -> Tensor:
    """A random crop, resized, perhaps flipped: a function of its arguments.

    The resizing is evaluation's, bicubic with antialiasing: on bytes it costs 0.4 ms for a
    photograph of 500 × 400, of which bilinear would save 0.07.

    Args:
        image: RGB, as an image or as (H, W, 3).
        preprocess: its ``image_size`` S is used.
        augment: the ranges to draw from.
        seed: of the run.
        position: the sample's position in the order.

    Returns:
        (3, S, S) uint8.

    Reference: random resized crops, https://arxiv.org/abs/1409.4842, section 6.
    """
    size = preprocess.image_size
    if _changes_nothing(augment, *size_of(image)):
        return _resize(_to_tensor(image), size, size).contiguous()
    draws = uniforms(seed, Purpose.AUGMENT, position, size=5)
    box = _crop_box(*size_of(image), augment, draws)
    pixels = _resize(_to_tensor(_crop(image, box)), size, size)
    if draws[4] < augment.horizontal_flip:
        pixels = pixels.flip(-1)
    return pixels.contiguous()


def smallest_decoded_edge(preprocess: PreprocessConfig, augment: AugmentConfig) -> int:
    """Pixels both edges of a training image must have, so that its smallest possible crop
    still has ``_DRAFT_MARGIN`` times the result's."""
    low, high = augment.crop_ratio
    smallest = math.sqrt(augment.crop_scale[0] * min(low, 1 / high))
    return math.ceil(_DRAFT_MARGIN * preprocess.image_size / smallest)


def size_of(image: Image.Image | NDArray[np.uint8]) -> tuple[int, int]:
    """(width, height)."""
    if isinstance(image, Image.Image):
        return image.size
    height, width = image.shape[:2]
    return width, height


def _crop(
    image: Image.Image | NDArray[np.uint8], box: tuple[int, int, int, int]
) -> Image.Image | NDArray[np.uint8]:
    left, top, right, bottom = box
    if not isinstance(image, Image.Image):
        return image[top:bottom, left:right]
    return image if box == (0, 0, *image.size) else image.crop(box)


def _changes_nothing(augment: AugmentConfig, width: int, height: int) -> bool:
    """Whether every crop is the whole image, and none is flipped."""
    low, high = augment.crop_ratio
    whole = augment.crop_scale[0] == 1 and low <= width / height <= high
    return whole and augment.horizontal_flip == 0


def _crop_box(
    width: int, height: int, augment: AugmentConfig, draws: np.ndarray
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop with a uniform area and, among the ratios that fit
    into the image at this area, a log-uniform ratio.

    The usual way draws area and ratio until they fit and gives up after ten times; this takes
    one draw, and its areas are uniform also where few ratios fit.
    """
    low, high = augment.crop_ratio
    scale = augment.crop_scale[0] + draws[0] * (augment.crop_scale[1] - augment.crop_scale[0])
    aspect = width / height
    # width × height of the crop is scale × that of the image, so ratios in this range fit.
    fits_low, fits_high = max(low, scale * aspect), min(high, aspect / scale)
    if fits_low <= fits_high:
        ratio = fits_low * (fits_high / fits_low) ** draws[1]
        area = scale * width * height
        crop_width, crop_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
    else:  # too long an image: the largest crop of the nearest ratio
        ratio = min(max(aspect, low), high)
        crop_width, crop_height = min(width, height * ratio), min(height, width / ratio)
    w = min(width, max(1, round(crop_width)))
    h = min(height, max(1, round(crop_height)))
    left, top = int(draws[2] * (width - w + 1)), int(draws[3] * (height - h + 1))
    return left, top, left + w, top + h


def _to_tensor(image: Image.Image | NDArray[np.uint8]) -> Tensor:
    """RGB image → (3, H, W) uint8, channels last in memory, as resizing likes it."""
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image).permute(2, 0, 1)
    assert image.mode == "RGB", f"{image.mode}: make it RGB by to_rgb first"
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _resize_any(
    image: Image.Image | NDArray[np.uint8],
    height: int,
    width: int,
    mode: InterpolationMode,
    pillow: bool,
) -> Tensor:
    """RGB image → (3, height, width) uint8, by Pillow or by torchvision."""
    if pillow:
        image = image if isinstance(image, Image.Image) else Image.fromarray(image)
        return _to_tensor(F.resize(image, [height, width], interpolation=mode))
    return _resize(_to_tensor(image), height, width, mode)


def _resize(
    pixels: Tensor, height: int, width: int, mode: InterpolationMode = InterpolationMode.BICUBIC
) -> Tensor:
    """(3, H, W) uint8 → (3, height, width) uint8, with antialiasing."""
    if tuple(pixels.shape[1:]) == (height, width):
        return pixels
    resized: Tensor = F.resize(pixels, [height, width], interpolation=mode, antialias=True)
    return resized

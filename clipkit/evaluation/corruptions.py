"""A picture → the same picture spoilt in a stated way, five degrees of it.

The kinds are among those of Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261, section
3; the code and the numbers are ours, lengths in fractions of the picture's edge. Results are to be
compared with others of this list, not with published ImageNet-C figures.

A corruption draws by (seed, sample's key) alone: the same key gets the same noise in every run,
whatever else is in the set and however it is shared among ranks. (NumPy draws it, and another
version of NumPy may draw otherwise.)
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

Random = np.random.Generator


def corrupt(
    image: Image.Image, kind: str, severity: int, *, key: str = "", seed: int = 0
) -> Image.Image:
    """The picture after one corruption; of the same size.

    Args:
        image: RGB.
        kind: one of ``CORRUPTIONS``.
        severity: 1 to 5.
        key: what the sample is called.
        seed: of the draws.

    Raises:
        ValueError: there is no such kind or severity.
    """
    if kind not in CORRUPTIONS:
        raise ValueError(f"corruption: {kind!r}; there are {', '.join(CORRUPTIONS)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"severity: {severity!r}; give 1 to 5")
    function, degrees = CORRUPTIONS[kind]
    # A file's name may hold half of a surrogate pair.
    name = f"{seed}\0{kind}\0{key}".encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(name, digest_size=16).digest()
    random = np.random.default_rng(int.from_bytes(digest, "little"))
    return function(image, degrees[severity - 1], random)


def corrupt_pixels(pixels: Tensor, key: str, *, kind: str, severity: int, seed: int = 0) -> Tensor:
    """``corrupt`` of (3, H, W) uint8 RGB."""
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    spoilt = corrupt(image, kind, severity, key=key, seed=seed)
    return torch.from_numpy(np.array(spoilt)).permute(2, 0, 1)


def _gaussian_noise(image: Image.Image, deviation: float, random: Random) -> Image.Image:
    pixels = _floats(image)
    noise = random.standard_normal(pixels.shape, dtype=np.float32)
    return _image(pixels + deviation * noise)


def _shot_noise(image: Image.Image, photons: float, random: Random) -> Image.Image:
    return _image(random.poisson(_floats(image) * photons) / photons)


def _impulse_noise(image: Image.Image, share: float, random: Random) -> Image.Image:
    pixels = _floats(image)
    draws = random.random(pixels.shape, dtype=np.float32)
    pixels[draws < share / 2] = 0
    pixels[draws > 1 - share / 2] = 1
    return _image(pixels)


def _gaussian_blur(image: Image.Image, share: float, random: Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def _motion_blur(image: Image.Image, share: float, random: Random) -> Image.Image:
    """The mean of the picture moved along a line, in a direction by chance."""
    reach, angle = share * min(image.size), random.uniform(0, np.pi)
    pixels = _floats(image)
    steps = max(2, round(reach) + 1)
    total = np.zeros_like(pixels)
    height, width = pixels.shape[:2]
    for along in np.linspace(-reach / 2, reach / 2, steps):
        down, right = round(along * np.sin(angle)), round(along * np.cos(angle))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        total += pixels[rows][:, columns]
    return _image(total / steps)


def _pixelate(image: Image.Image, share: float, random: Random) -> Image.Image:
    small = [max(1, round(edge * share)) for edge in image.size]
    return image.resize((small[0], small[1]), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.NEAREST
    )


def _jpeg(image: Image.Image, quality: float, random: Random) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(quality))
    return Image.open(buffer).convert("RGB")


def _contrast(image: Image.Image, factor: float, random: Random) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(factor)


def _brightness(image: Image.Image, more: float, random: Random) -> Image.Image:
    return _image(_floats(image) + more)


def _darkness(image: Image.Image, factor: float, random: Random) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(factor)


def _greyscale(image: Image.Image, share: float, random: Random) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 - share)


def _rotation(image: Image.Image, degrees: float, random: Random) -> Image.Image:
    """To the left or to the right, by chance; corners are filled with the mean colour."""
    sign = 1 if random.random() < 0.5 else -1
    mean = tuple(int(each) for each in np.asarray(image).reshape(-1, 3).mean(axis=0).round())
    return image.rotate(sign * degrees, Image.Resampling.BICUBIC, fillcolor=mean)


def _occlusion(image: Image.Image, share: float, random: Random) -> Image.Image:
    """A grey rectangle of the picture's shape and this share of its area, at a place by chance."""
    width, height = (max(1, round(edge * share**0.5)) for edge in image.size)
    left = int(random.integers(0, image.size[0] - width + 1))
    top = int(random.integers(0, image.size[1] - height + 1))
    spoilt = image.copy()
    spoilt.paste((128, 128, 128), (left, top, left + width, top + height))
    return spoilt


# What each does, and its number at severity 1 to 5.
CORRUPTIONS: dict[
    str, tuple[Callable[[Image.Image, float, Random], Image.Image], tuple[float, ...]]
] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.08, 0.14, 0.22, 0.35)),  # deviation of 1
    "shot_noise": (_shot_noise, (200, 60, 25, 10, 4)),  # photons of full white
    "impulse_noise": (_impulse_noise, (0.01, 0.03, 0.07, 0.15, 0.3)),  # share of the values
    "gaussian_blur": (_gaussian_blur, (0.004, 0.008, 0.014, 0.022, 0.035)),  # of the short edge
    "motion_blur": (_motion_blur, (0.02, 0.04, 0.07, 0.1, 0.15)),  # of the short edge
    "pixelate": (_pixelate, (0.5, 0.35, 0.25, 0.17, 0.1)),  # of the edges that remain
    "jpeg": (_jpeg, (40, 25, 15, 8, 4)),  # Pillow's quality
    "contrast": (_contrast, (0.7, 0.5, 0.35, 0.2, 0.1)),  # of it that remains
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),  # added, 1 is white
    "darkness": (_darkness, (0.7, 0.5, 0.35, 0.2, 0.1)),  # of the brightness that remains
    "greyscale": (_greyscale, (0.3, 0.5, 0.7, 0.85, 1.0)),  # of the colour that is gone
    "rotation": (_rotation, (5, 10, 20, 30, 45)),  # degrees
    "occlusion": (_occlusion, (0.05, 0.1, 0.2, 0.3, 0.45)),  # of the area
}


def _floats(image: Image.Image) -> np.ndarray:
    """(H, W, 3) float32 from 0 to 1."""
    return np.asarray(image, dtype=np.float32) / np.float32(255)


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray((pixels * 255).round().clip(0, 255).astype(np.uint8))

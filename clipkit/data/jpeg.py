"""JPEG bytes → RGB pixels by libjpeg-turbo itself, where the package simplejpeg is installed.

It spares what Pillow does around the same library (pixels of four bytes, two copies on the way
to NumPy). The pixels are Pillow's, bit for bit: the same transform and upsampling, and of the
scales N/8 only 1/2, 1/4 and 1/8, which are also the ones with fast code. Whatever it is not
sure to do as Pillow does, it leaves to Pillow.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import numpy as np
from numpy.typing import NDArray

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_FACTORS = (8, 4, 2)


def decoder_name() -> str:
    """What decodes JPEGs here, with its version: ``simplejpeg 1.9.0``."""
    package = "pillow" if simplejpeg is None else "simplejpeg"
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # a build of it under another name, such as pillow-simd
        return package


def decode_jpeg(
    data: bytes, size: tuple[int, int], at_least: int | None
) -> NDArray[np.uint8] | None:
    """The pixels as stored, not turned upright, perhaps at 1/2, 1/4 or 1/8 of the size.

    Args:
        data: a JPEG file whose header has been checked: ``size`` pixels may be decoded.
        size: (width, height) by that header.
        at_least: both edges keep this many pixels, where they have them; none: all.

    Returns:
        (H, W, 3) RGB; None where this is Pillow's to decode or to refuse: simplejpeg is not
        installed, other colours than YCbCr or grey, or the least damage.
    """
    if simplejpeg is None:
        return None
    width, height = size
    factor = 1
    if at_least is not None:
        factor = next((f for f in _FACTORS if min(width, height) // at_least >= f), 1)
    scaled_height, scaled_width = -(-height // factor), -(-width // factor)
    try:
        found_height, found_width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if (found_width, found_height) != size or colours not in ("YCbCr", "Gray"):
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, min_height=scaled_height, min_width=scaled_width
        )
    except Exception:  # strict: it also raises where libjpeg would warn and go on
        return None
    return pixels if pixels.shape == (scaled_height, scaled_width, 3) else None

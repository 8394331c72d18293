"""Image bytes → RGB pixels, by one policy for training, evaluation and serving.

A hostile or broken file costs at most the pixel cap: its header is checked before anything
is decoded, only the formats below are ever tried (Pillow would start Ghostscript for EPS),
and whatever Pillow raises becomes an ``ImageError`` with a reason to count by.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.data.jpeg import decode_jpeg
from clipkit.data.reader import SampleError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same of (H, W, 3) arrays.
_TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


class ImageError(SampleError):
    """An image cannot be decoded, or may not be."""


def decode_image(data: bytes, *, max_pixels: int, at_least: int | None = None) -> Image.Image:
    """The image in RGB, upright, decoded only if its header allows it.

    Args:
        data: an encoded image file: JPEG, PNG, WebP, GIF, BMP or TIFF.
        max_pixels: width × height above which it is refused before decoding.
        at_least: where given, a JPEG may come smaller, decoded in the cheap way, as long as
            both edges keep this many pixels. For training; evaluation decodes in full.

    Raises:
        ImageError: it cannot be decoded; the text says why in a few words.
    """
    # warnings: of bombs (the cap is ours), of broken EXIF and palettes (the policy is ours).
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _load(_open(data, max_pixels), at_least)


def decode_for_training(
    data: bytes, *, max_pixels: int, at_least: int
) -> Image.Image | NDArray[np.uint8]:
    """The pixels of ``decode_image``, by the fastest decoder that is installed.

    Returns:
        (H, W, 3) uint8 where libjpeg-turbo decoded it, else Pillow's image; the same pixels.

    Raises:
        ImageError: as ``decode_image`` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open(data, max_pixels)
        if image.format == "JPEG":  # and not MPO, which is several
            pixels = decode_jpeg(data, image.size, at_least)
            if pixels is not None:
                turn = _TURNS.get(_orientation(image) or 1)
                return pixels if turn is None else np.ascontiguousarray(turn(pixels))
        return _load(image, at_least)


def to_rgb(image: Image.Image) -> Image.Image:
    """An open image in RGB by the one policy: EXIF rotation applied, 16 bits scaled to 8,
    CMYK, grey and palette converted, transparency laid on white, the first frame only.

    Raises:
        ImageError: its pixels cannot be read, or have no meaning as colours.
    """
    try:
        # First of all: pixels loaded later could turn a TIFF by themselves.
        image.load()
        orientation = _orientation(image)
        rgb = _convert(image)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(_reason_not_loaded(error)) from error
    if orientation not in _ORIENTATIONS:
        return rgb
    upright = rgb.transpose(_ORIENTATIONS[orientation])
    upright.info = {}  # it carries the EXIF data on, and would be turned again next time
    return upright


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Its header read and found harmless; no pixel decoded."""
    if not data:
        raise ImageError("empty file")
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageError("too many pixels") from None
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise ImageError(_reason_not_opened(data)) from error
    if image.width * image.height > max_pixels:
        raise ImageError("too many pixels")
    return image


def _load(image: Image.Image, at_least: int | None) -> Image.Image:
    if at_least is not None:
        image.draft(None, (at_least, at_least))
    try:
        image.load()
    except Exception as error:
        raise ImageError(_reason_not_loaded(error)) from error
    return to_rgb(image)


def _convert(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode.startswith("I"):
        image = _scale_16_bit(image)
    elif mode == "F":
        raise ImageError("floating-point pixels")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        if image.mode in ("1", "La"):
            image = image.convert("LA" if image.mode == "La" else "L")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode != "RGB":
        return image.convert("RGB")
    # A plain image, so that nothing of the file stays open or is transformed twice.
    return image.copy() if type(image) is not Image.Image else image


def _scale_16_bit(image: Image.Image) -> Image.Image:
    # Pillow clips at 255 instead, which turns a 16-bit photograph white.
    pixels = np.asarray(image).astype(np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise ImageError("32-bit pixels")
    return Image.fromarray(((pixels * 255 + 32767) // 65535).astype(np.uint8))


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken EXIF says nothing about the pixels
        return None
    return value if isinstance(value, int) else None


def _reason_not_opened(data: bytes) -> str:
    if data.startswith(_MAGIC):
        return "damaged image header"
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in start:
        return "SVG, not pixels"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<body")):
        return "HTML, not an image"
    return "not an image of a known format"


def _reason_not_loaded(error: Exception) -> str:
    text = str(error).lower()
    if "truncated" in text or isinstance(error, EOFError):
        return "truncated image"
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels"
    if "conversion from" in text:
        return "unsupported colour mode"
    return "corrupt image"

"""Image bytes → RGB pixels, by one policy for training, evaluation and serving.

A hostile or broken file costs at most the pixel cap, 22 bytes for each of its pixels: its header
is checked before anything is decoded, only the formats in formats.py are ever tried (Pillow would
start Ghostscript for EPS), and whatever Pillow raises becomes an ``ImageError`` with a reason to
count by.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from clipkit.data.depth import DepthError, depth_of, to_8_bits
from clipkit.data.formats import format_of, jpeg_xl_size, pillow_formats
from clipkit.data.jpeg import decode_jpeg
from clipkit.data.reader import MAX_IMAGE_BYTES, SampleError

DEPTH = "bits of the file's pixels"
_JPEG = b"\xff\xd8\xff"
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # of a TIFF
# A scan of some ten bytes takes as long as all of the pixels do, and a file has room for
# millions of them. What cameras and mozjpeg write has about ten; libtiff draws this same line.
_MAX_SCANS = 100
_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")  # but those that stand inside of data
_BAND = 2**22  # pixels that are converted at once, where that takes more than the result does
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
        data: an encoded image file of a format in formats.py.
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


def decode_pixels(
    data: bytes, *, max_pixels: int, at_least: int | None = None
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


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height as stored, from the header alone.

    Raises:
        ImageError: it is not an image of a known format.
    """
    if (size := _jpeg_xl_size(data)) is not None:
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(BytesIO(data), formats=pillow_formats()) as image:
                return image.size
        except Exception as error:  # Pillow raises almost anything on hostile bytes
            raise ImageError(_reason_not_opened(data)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An open image in RGB by the one policy: EXIF rotation applied, 10 to 16 bits scaled to 8
    (see depth.py), CMYK, grey and palette converted, transparency laid on white, the first frame
    only. ``info[DEPTH]`` has the bits, where these were more than 8.

    Raises:
        ImageError: its pixels cannot be read, or have no meaning as colours.
    """
    bits = None
    try:
        depth = depth_of(image)
        # First of all: pixels loaded later could turn a TIFF by themselves.
        image.load()
        orientation = _orientation(image)
        if depth is not None:
            image, bits = to_8_bits(image, depth)
        rgb = _convert(image)
    except DepthError as error:
        raise ImageError(str(error)) from None
    except Exception as error:
        raise ImageError(_reason_not_loaded(error)) from error
    if orientation in _ORIENTATIONS:
        rgb = rgb.transpose(_ORIENTATIONS[orientation])
        rgb.info = {}  # it carries the EXIF data on, and would be turned again next time
    if bits is not None:
        rgb.info[DEPTH] = bits
    return rgb


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """Its header read and found harmless; no pixel decoded."""
    if not data:
        raise ImageError("empty file")
    if len(data) > MAX_IMAGE_BYTES:
        raise ImageError("image file too large")
    if (size := _jpeg_xl_size(data)) is not None and size[0] * size[1] > max_pixels:
        raise ImageError("too many pixels")
    try:
        image = Image.open(BytesIO(data), formats=pillow_formats())
    except Image.DecompressionBombError:
        raise ImageError("too many pixels") from None
    except Exception as error:  # Pillow raises almost anything on hostile bytes
        raise ImageError(_reason_not_opened(data)) from error
    if image.width * image.height > max_pixels or _tile_pixels(image) > max_pixels:
        raise ImageError("too many pixels")
    if data.count(_SCAN) > _MAX_SCANS and _has_too_many_scans(data):
        raise ImageError("too many scans")
    return image


def _jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """The size of a JPEG XL, whose plug-in decodes while it opens; None of other formats."""
    known = format_of(data)
    if known is None or known.pillow != "JXL":
        return None
    size = jpeg_xl_size(data)
    if size is None:
        raise ImageError("damaged image header")
    return size


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of one tile of a TIFF, which is decoded whole, however small the image is."""
    if not isinstance(image, TiffImageFile):
        return 0
    width, length = (image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH))
    return width * length if isinstance(width, int) and isinstance(length, int) else 0


def _has_too_many_scans(data: bytes) -> bool:
    """Of a JPEG; what follows its end, such as a phone's video, does not count."""
    at = scans = 0
    while data.startswith(_JPEG) and (marker := _MARKER.search(data, at)):
        at = marker.end()
        if marker[0] == b"\xff\xd9":
            break
        scans += marker[0] == _SCAN
        if scans > _MAX_SCANS:
            return True
        at += int.from_bytes(data[at : at + 2], "big")
    return False


def _load(image: Image.Image, at_least: int | None) -> Image.Image:
    if at_least is not None and image.format in ("JPEG", "MPO"):  # others may hold a thumbnail
        image.draft(None, (at_least, at_least))
    return to_rgb(image)


def _convert(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _by_bands(image, _on_white)
    if image.mode != "RGB":
        return image.convert("RGB")
    # A plain image, so that nothing of the file stays open or is transformed twice.
    return image.copy() if type(image) is not Image.Image else image


def _by_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """``convert`` of an image, some rows at a time: it may take a multiple of the result."""
    width, height = image.size
    rows = max(1, _BAND // max(1, width))
    if height <= rows:
        return convert(image)
    whole = convert(image.crop((0, 0, width, rows))).crop((0, 0, width, height))
    for top in range(rows, height, rows):
        whole.paste(convert(image.crop((0, top, width, min(height, top + rows)))), (0, top))
    return whole


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "La"):
        image = image.convert("LA" if image.mode == "La" else "L")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _orientation(image: Image.Image) -> int | None:
    try:
        value = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken EXIF says nothing about the pixels
        return None
    return value if isinstance(value, int) else None


def _reason_not_opened(data: bytes) -> str:
    known = format_of(data)
    if known is not None and not known.is_readable():
        return f"{known.name} image (install {known.package})"
    if known is not None:
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

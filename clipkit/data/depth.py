"""Pixels of more than 8 bits → 8 bits.

Files of 16 bits often hold fewer: scanners, microscopes and cameras give 10, 12 or 14, which are
black where they are divided by 65,535. What the file states decides: the bits of a TIFF's samples
and its MaxSampleValue, PNG's sBIT; JPEG 2000 and PPM of fewer than 16 are scaled where they are
decoded.
A file that states nothing has the fewest of 8, 10, 12, 14 and 16 bits that hold its largest value.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_DEPTHS = (8, 10, 12, 14, 16)
_BAND = 2**22  # pixels that are converted at once
_BITS, _PHOTOMETRIC, _MAXIMUM, _ANY_MAXIMUM = 258, 262, 281, 341  # tags of a TIFF
_SIZ = b"\xff\x4f\xff\x51"  # begins a JPEG 2000, and 42 bytes on are its bits, less 1
# Pillow keeps the high byte of a 16-bit colour. Read in the other order of bytes, the same file
# gives the low one; two bands of grey and alpha are read as four of bytes.
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


class DepthError(ValueError):
    """Pixels that have no meaning as levels; the text says why in a few words."""


@dataclass(frozen=True, slots=True)
class Depth:
    """Statements of a file about its wide pixels, read before they are decoded.

    Attributes:
        stated: bits of a sample that are used; None where the file does not say.
        inverted: whether 0 is white, and Pillow leaves it so.
        low: the same file, of which the low bytes of each colour are decoded; None for grey.
        grey_alpha: whether ``low`` has the bytes of grey and alpha.
    """

    stated: int | None = None
    inverted: bool = False
    low: Image.Image | None = None
    grey_alpha: bool = False


def depth_of(image: Image.Image) -> Depth | None:
    """The depth of an image that is not decoded yet; None where it has 8 bits or fewer."""
    deep = image.mode == "F" or image.mode.startswith("I")
    raw = "" if deep else _raw_mode(image)
    if not deep and ";16" not in raw:
        return None
    inverted = False
    stated = 16 if _is_scaled(image) else None
    if isinstance(image, TiffImageFile):
        inverted = deep and image.tag_v2.get(_PHOTOMETRIC) == 0
        stated = _tiff_bits(image)
    elif image.format == "PNG":
        stated = _png_bits(image)
    low = None if deep else _low_bytes(image, raw)
    return Depth(stated, inverted, low, grey_alpha=raw.startswith("LA"))


def to_8_bits(image: Image.Image, depth: Depth) -> tuple[Image.Image, int]:
    """A decoded image in L, LA, RGB or RGBA, and how many bits of its pixels were used.

    Raises:
        DepthError: values below 0 or above 16 bits, or floating-point ones not from 0 to 1.
    """
    if image.mode == "F":
        return _of_floats(image, inverted=depth.inverted), 32
    if image.mode.startswith("I"):
        return _of_grey(image, depth)
    return _of_colours(image, depth)


def _of_floats(image: Image.Image, *, inverted: bool) -> Image.Image:
    out = np.empty((image.height, image.width), dtype=np.uint8)
    for rows, pixels in _bands(image):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
            raise DepthError("floating-point pixels not from 0 to 1")
        out[rows] = np.rint((1 - pixels if inverted else pixels) * 255)
    return Image.fromarray(out)


def _of_grey(image: Image.Image, depth: Depth) -> tuple[Image.Image, int]:
    extremes = [(int(pixels.min()), int(pixels.max())) for _, pixels in _bands(image)]
    maximum = max(high for _, high in extremes)
    if min(low for low, _ in extremes) < 0:
        raise DepthError("pixels below 0")
    if maximum > 65535:
        raise DepthError("32-bit pixels")
    bits = _bits(maximum, depth.stated)
    transparent = image.info.get("transparency")
    out = np.empty((image.height, image.width, 2), dtype=np.uint8)
    for rows, pixels in _bands(image):
        levels = _scaled(pixels, bits)
        out[rows, :, 0] = 255 - levels if depth.inverted else levels
        out[rows, :, 1] = np.where(pixels == transparent, 0, 255)
    return Image.fromarray(out if isinstance(transparent, int) else out[:, :, 0].copy()), bits


def _of_colours(image: Image.Image, depth: Depth) -> tuple[Image.Image, int]:
    """Colours of 16 bits, of which Pillow has the high bytes."""
    transparent = image.info.get("transparency")
    highest = max(int(pixels[..., :3].max()) for _, pixels in _bands(image))
    if depth.low is None or (highest >= 2 ** (14 - 8) and transparent is None):
        return image, 16
    depth.low.load()
    alpha_from = 1 if depth.grey_alpha else 3
    largest = np.zeros(4, dtype=np.int64)
    channels = 0
    for _, pixels in _joined(image, depth):
        channels = pixels.shape[2]
        largest[:channels] = np.maximum(largest[:channels], pixels.max(axis=(0, 1)))
    bits = _bits(int(largest[:alpha_from].max()), depth.stated)
    opaque = next(b for b in (bits, *_DEPTHS) if b >= bits and largest[alpha_from:].max() < 2**b)
    has_alpha = channels > alpha_from or isinstance(transparent, tuple)
    out = np.empty((image.height, image.width, alpha_from + has_alpha), dtype=np.uint8)
    for rows, pixels in _joined(image, depth):
        out[rows, :, :alpha_from] = _scaled(pixels[..., :alpha_from], bits)
        if channels > alpha_from:
            out[rows, :, alpha_from] = _scaled(pixels[..., alpha_from], opaque)
        elif has_alpha:
            out[rows, :, alpha_from] = np.where((pixels == transparent).all(axis=2), 0, 255)
    return Image.fromarray(out), bits


def _joined(image: Image.Image, depth: Depth) -> Iterator[tuple[slice, NDArray[np.uint16]]]:
    """(h, W, C) of high and low bytes, some rows at a time."""
    assert depth.low is not None
    for (rows, high), (_, low) in zip(_bands(image), _bands(depth.low), strict=True):
        if depth.grey_alpha:
            high, low = low[..., 0::2], low[..., 1::2]
        yield rows, high.astype(np.uint16) << 8 | low


def _bits(maximum: int, stated: int | None) -> int:
    """The fewest bits that hold the largest value; a statement that is too small is none."""
    allowed = _DEPTHS if stated is None else (stated, 16)
    return next(bits for bits in allowed if maximum < 2**bits)


def _scaled(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    full = 2**bits - 1
    scaled: NDArray[np.uint8] = ((pixels.astype(np.uint32) * 255 + full // 2) // full).astype(
        np.uint8
    )
    return scaled


def _bands(image: Image.Image) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Some rows at a time, as arrays: a whole image would take a multiple of its pixels."""
    step = max(1, _BAND // max(1, image.width))
    for top in range(0, image.height, step):
        end = min(top + step, image.height)
        yield slice(top, end), np.asarray(image.crop((0, top, image.width, end)))


def _is_scaled(image: Image.Image) -> bool:
    """Whether Pillow scales the levels of a JPEG 2000 or PPM to 16 bits, as its header states
    fewer."""
    if image.format == "PPM":
        return bool(getattr(image, "tile", None)) and image.tile[0][0] != "raw"  # type: ignore[attr-defined]
    file: IO[bytes] | None = getattr(image, "fp", None)
    if image.format != "JPEG2000" or file is None:
        return False
    at = file.tell()
    file.seek(0)
    start = file.read(65536)
    file.seek(at)
    found = start.find(_SIZ)
    return found < 0 or len(start) <= found + 42 or (start[found + 42] & 127) + 1 < 16


def _raw_mode(image: Image.Image) -> str:
    """How the file's bytes are laid out, in Pillow's words; empty of an image in memory."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0][3]
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _low_bytes(image: Image.Image, raw: str) -> Image.Image | None:
    """The file once more, for the low bytes; None where that is not to be had."""
    name, order = raw.rsplit(";16", 1)
    file = getattr(image, "fp", None)
    if name not in ("RGB", "RGBA", "RGBX", "LA") or order not in _OTHER_BYTE or file is None:
        return None
    if getattr(image, "tell", lambda: 0)() != 0:
        return None
    at = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(at)
    assert image.format is not None
    low: Any = Image.open(BytesIO(data), formats=[image.format])
    other = "RGBA" if name == "LA" else f"{name};16{_OTHER_BYTE[order]}"
    for number, tile in enumerate(low.tile):
        args = (other, *tile[3][1:]) if isinstance(tile[3], tuple) else other
        low.tile[number] = tile._replace(args=args)
    found: Image.Image = low
    return found


def _tiff_bits(image: TiffImageFile) -> int | None:
    bits = _largest(image.tag_v2.get(_BITS, 16))
    if 8 < bits < 16:
        return bits
    maximum = _largest(image.tag_v2.get(_MAXIMUM, image.tag_v2.get(_ANY_MAXIMUM, 0)))
    if maximum <= 0:
        return None
    return next((depth for depth in _DEPTHS if maximum < 2**depth), 16)


def _largest(value: Any) -> int:
    values = value if isinstance(value, tuple) else (value,)
    return max((int(each) for each in values if isinstance(each, int | float)), default=0)


def _png_bits(image: Image.Image) -> int | None:
    """The bits that the sBIT chunk states. Writers scale their values to 16 bits as the standard
    asks, or leave them as they are; the largest value tells which."""
    file: Any = getattr(image, "fp", None)
    if file is None:
        return None
    at = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            size = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT":
                bits = max(file.read(min(size, 4)), default=0)
                return bits if 0 < bits <= 16 else None
            file.seek(size + 4, 1)
        return None
    finally:
        file.seek(at)

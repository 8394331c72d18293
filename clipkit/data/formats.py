"""The image formats that are read: their file extensions, first bytes, and Pillow plug-ins.

One list for folders, tars, packing and decoding, so that what one of them finds the others read.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """A format that Pillow decodes, by itself or by a plug-in.

    Attributes:
        name: in messages.
        pillow: Pillow's name for it.
        extensions: of its files, the usual one first.
        magic: (offset, bytes) of which one is in every file.
        module: the plug-in to import; empty where Pillow decodes it by itself.
        package: what to install for that plug-in.
    """

    name: str
    pillow: str
    extensions: tuple[str, ...]
    magic: tuple[tuple[int, bytes], ...]
    module: str = ""
    package: str = ""

    def is_readable(self) -> bool:
        """Whether its plug-in is installed, where it needs one."""
        return not self.module or _is_installed(self.module)

    def matches(self, data: bytes) -> bool:
        """Whether these bytes begin as its files do."""
        return any(data.startswith(magic, offset) for offset, magic in self.magic)


def _brands(*names: bytes) -> tuple[tuple[int, bytes], ...]:
    """First bytes of an ISO media file: the ``ftyp`` box with one of these major brands."""
    return tuple((4, b"ftyp" + name) for name in names)


_JPEG_2000 = b"\0\0\0\x0cjP  \r\n\x87\n"
_JPEG_XL = b"\0\0\0\x0cJXL \r\n\x87\n"
# In a tar the first extension that a sample has is its image.
FORMATS = (
    ImageFormat("JPEG", "JPEG", ("jpg", "jpeg", "jpe", "jfif"), ((0, b"\xff\xd8\xff"),)),
    ImageFormat("PNG", "PNG", ("png",), ((0, b"\x89PNG\r\n\x1a\n"),)),
    ImageFormat("WebP", "WEBP", ("webp",), ((0, b"RIFF"),)),
    ImageFormat("GIF", "GIF", ("gif",), ((0, b"GIF8"),)),
    ImageFormat("BMP", "BMP", ("bmp",), ((0, b"BM"),)),
    ImageFormat(
        "TIFF",
        "TIFF",
        ("tif", "tiff"),
        ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
    ),
    ImageFormat("AVIF", "AVIF", ("avif",), _brands(b"avif", b"avis")),
    ImageFormat(
        *("JPEG 2000", "JPEG2000", ("jp2", "j2k", "jpx")),
        ((0, _JPEG_2000), (0, b"\xff\x4f\xff\x51")),
    ),
    ImageFormat(
        *("PPM", "PPM", ("ppm", "pgm", "pbm", "pnm")),
        tuple((0, b"P%d%s" % (n, space)) for n in range(1, 7) for space in (b"\n", b" ", b"\r")),
    ),
    ImageFormat(
        *("HEIC", "HEIF", ("heic", "heif", "hif")),
        _brands(b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
        *("pillow_heif", "pillow-heif"),
    ),
    ImageFormat(
        *("JPEG XL", "JXL", ("jxl",)),
        ((0, b"\xff\x0a"), (0, _JPEG_XL)),
        *("pillow_jxl", "pillow-jxl-plugin"),
    ),
)


@cache
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


# The extensions of images that can be decoded here.
IMAGE_EXTENSIONS = tuple(e for each in FORMATS if each.is_readable() for e in each.extensions)


def missing_package(extension: str) -> str | None:
    """The package to install for images with this extension; None where none is missing."""
    for each in FORMATS:
        if extension in each.extensions and not each.is_readable():
            return each.package
    return None


def format_of(data: bytes) -> ImageFormat | None:
    """The format of an image file by its first bytes."""
    return next((each for each in FORMATS if each.matches(data)), None)


@cache
def pillow_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be decoded here, their plug-ins registered."""
    for each in FORMATS:
        if each.module and each.is_readable():
            plugin = importlib.import_module(each.module)
            if hasattr(plugin, "register_heif_opener"):
                plugin.register_heif_opener()
    return tuple(each.pillow for each in FORMATS if each.is_readable())


def jpeg_xl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a JPEG XL file; None where it has no valid header.

    The plug-in decodes a file while it opens it, so that the size must be known before.

    Reference: ISO/IEC 18181-1, SizeHeader; ISO/IEC 18181-2, boxes.
    """
    start = _jpeg_xl_codestream(data)
    if data[start : start + 2] != b"\xff\x0a":
        return None
    bits, at = int.from_bytes(data[start + 2 : start + 18], "little"), 0

    def take(count: int) -> int:
        nonlocal at
        value = bits >> at & (1 << count) - 1
        at += count
        return value

    small = take(1)

    def take_edge() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = take_edge()
    ratio = take(3)
    if ratio == 0:
        return take_edge(), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under, height


def _jpeg_xl_codestream(data: bytes) -> int:
    """Where the pixels' stream begins: at once, or in the first ``jxlc`` or ``jxlp`` box."""
    if not data.startswith(_JPEG_XL):
        return 0
    at = 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 16 if size == 1 else 8
        if kind in (b"jxlc", b"jxlp"):
            return at + head + (4 if kind == b"jxlp" else 0)
        size = int.from_bytes(data[at + 8 : at + 16], "big") if size == 1 else size
        if size < head:  # 0: up to the end of the file
            break
        at += size
    return len(data)

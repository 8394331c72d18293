"""Hostile and odd image files and captions, made here from nothing, and what must become of them.

A picture that can be used is ``QUARTERS`` (or says what else), however it is stored; one that
cannot has the reason it is skipped for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from PIL import Image
from sample_files import encoded, photo

RED, GREEN, BLUE, YELLOW = (200, 30, 30), (30, 160, 60), (30, 60, 200), (240, 220, 60)
# How each orientation of EXIF stores a picture that is upright.
_STORED = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}


def quarters(width: int = 48, height: int = 32) -> Image.Image:
    """Four colours, by which every turn of it shows."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


@dataclass(frozen=True)
class Case:
    """A file, and what must become of it.

    Attributes:
        name: the name it comes under.
        data: the file.
        picture: what it shows, upright and in RGB; None where it must be skipped.
        reason: why it is skipped; None where it is used.
        tolerance: by how much a level may be off, in the middles of the quarters; 0: nowhere,
            since the format loses nothing.
        scaled: a JPEG so large that training decodes it at a part of its size.
    """

    name: str
    data: bytes = field(repr=False)
    picture: Image.Image | None = field(default=None, repr=False)
    reason: str | None = None
    tolerance: int = 0
    scaled: bool = False


@cache
def corpus() -> list[Case]:
    """All of them; no two have a name."""
    cases = [*_stored_in_every_way(), *_turned(), *_odd(), *_refused(), *bombs()]
    assert len({case.name for case in cases}) == len(cases) > 100
    return cases


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: np.ndarray, colour_type: int, bits: int = 16, extra: bytes = b"") -> bytes:
    """A PNG of (H, W) or (H, W, C) values, by hand: Pillow writes few of 16 bits."""
    height, width = pixels.shape[:2]
    values = pixels.astype(">u2" if bits == 16 else np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    return png_file(width, height, colour_type, bits, zlib.compress(rows), extra)


def png_file(
    width: int, height: int, colour_type: int, bits: int, data: bytes, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff(tags: dict[int, list[int]], data: bytes) -> bytes:
    """A TIFF with these tags, of 32-bit numbers, whose strip or tile is ``data``."""
    tags = {279 if 322 not in tags else 325: [len(data)], **tags}
    place = 273 if 322 not in tags else 324
    begin = 8 + 2 + 12 * (len(tags) + 1) + 4
    lists = b""
    entries = []
    long = sum(4 * len(values) for values in tags.values() if len(values) > 1)
    for tag, values in sorted({**tags, place: [begin + long]}.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            packed, lists = struct.pack("<I", begin + len(lists)), lists + packed
        entries.append(struct.pack("<HHI", tag, 4, len(values)) + packed)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + lists + data


_TIFF_RGB = {258: [8, 8, 8], 259: [8], 262: [2], 277: [3]}  # deflated


def bombs() -> list[Case]:
    """Small files that claim, or take, far more than they are."""
    claims = {
        "bomb.png": png_file(30_000, 30_000, 2, 8, zlib.compress(bytes(10**6))),
        "bomb.jpg": _patched("JPEG", b"\xff\xc0", 5, struct.pack(">HH", 60_000, 60_000)),
        "bomb-progressive.jpg": _patched(
            "JPEG", b"\xff\xc2", 5, struct.pack(">HH", 60_000, 60_000), progressive=True
        ),
        "bomb.gif": _patched("GIF", b"GIF8", 6, struct.pack("<HH", 65_535, 65_535)),
        "bomb-frame.gif": _patched("GIF", b"\x2c\0\0\0\0", 5, struct.pack("<HH", 65_535, 65_535)),
        "bomb.webp": _patched(
            "WEBP", b"VP8X", 12, struct.pack("<I", 16_382)[:3] * 2,
            save_all=True, append_images=[photo(seed=1)],
        ),
        "bomb.bmp": _patched("BMP", b"BM", 18, struct.pack("<ii", 60_000, 60_000)),
        "bomb.tif": tiff({256: [60_000], 257: [60_000], 278: [60_000], **_TIFF_RGB}, b""),
        "bomb-tile.tif": tiff(
            {256: [64], 257: [64], 322: [20_000], 323: [20_000], **_TIFF_RGB},
            _deflated_zeros(20_000 * 20_000 * 3),
        ),
        "just-above.png": png_file(8_001, 8_000, 0, 8, _deflated_zeros(8_002 * 8_000)),
    }  # fmt: skip
    cases = [Case(name, data, reason="too many pixels") for name, data in claims.items()]
    return [*cases, Case("bomb-scans.jpg", _many_scans(), reason="too many scans")]


def _stored_in_every_way() -> Iterator[Case]:
    whole = quarters()
    yield Case("plain.png", encoded(whole, "PNG"), whole)
    yield Case("plain.jpg", encoded(whole, quality=95), whole, tolerance=8)
    yield Case("progressive.jpg", encoded(whole, quality=95, progressive=True), whole, tolerance=8)
    yield Case("plain.webp", encoded(whole, "WEBP", lossless=True), whole)
    yield Case("lossy.webp", encoded(whole, "WEBP", quality=95), whole, tolerance=12)
    yield Case("plain.bmp", encoded(whole, "BMP"), whole)
    yield Case("plain.tif", encoded(whole, "TIFF"), whole)
    yield Case("lzw.tif", encoded(whole, "TIFF", compression="tiff_lzw"), whole)
    yield Case("plain.gif", encoded(whole.quantize(4), "GIF"), whole)
    yield Case("palette.png", encoded(whole.quantize(4), "PNG"), whole)
    grey = whole.convert("L")
    yield Case("grey.png", encoded(grey, "PNG"), grey.convert("RGB"))
    yield Case("grey.jpg", encoded(grey, quality=95), grey.convert("RGB"), tolerance=4)
    bilevel = Image.fromarray(np.asarray(grey) > 100)
    yield Case("bilevel.png", encoded(bilevel, "PNG"), bilevel.convert("RGB"))
    yield from _of_16_bits(grey)
    yield from _transparent()
    yield from _cmyk()


def _of_16_bits(grey: Image.Image) -> Iterator[Case]:
    """Each level times 257, which is that level of 16 bits."""
    whole = quarters()
    deep, colours = np.asarray(grey).astype(int) * 257, np.asarray(whole).astype(int) * 257
    yield Case("16-bit-grey.png", png(deep, 0), grey.convert("RGB"))
    yield Case("16-bit.png", png(colours, 2), whole)
    # 16 bits between two levels are rounded: 32,768 is 127.5 of 255.
    block = np.ones((16, 24), dtype=int)
    ramp = np.kron([[0, 257], [32_768, 65_535]], block)
    levels = np.kron([[0, 1], [128, 255]], block).astype(np.uint8)
    yield Case("16-bit-ramp.png", png(ramp, 0), Image.fromarray(levels).convert("RGB"))
    yield Case(
        "16-bit-grey.tif",
        encoded(Image.fromarray(deep.astype(np.uint16)), "TIFF"),
        grey.convert("RGB"),
    )
    alpha = np.full((32, 48, 1), 65_535)
    alpha[:16, :24] = 0
    on_white = whole.copy()
    on_white.paste("white", (0, 0, 24, 16))
    yield Case("16-bit-alpha.png", png(np.concatenate([colours, alpha], axis=2), 6), on_white)
    clear = chunk(b"tRNS", struct.pack(">H", int(deep[0, 0])))
    grey_on_white = grey.convert("RGB")
    grey_on_white.paste("white", (0, 0, 24, 16))
    yield Case("16-bit-transparent-grey.png", png(deep, 0, extra=clear), grey_on_white)


def _transparent() -> Iterator[Case]:
    """The first quarter is clear, and so becomes white."""
    whole = quarters()
    on_white = whole.copy()
    on_white.paste("white", (0, 0, 24, 16))
    alpha = Image.new("L", whole.size, 255)
    alpha.paste(0, (0, 0, 24, 16))
    image = whole.copy()
    image.putalpha(alpha)
    yield Case("alpha.png", encoded(image, "PNG"), on_white)
    yield Case("alpha.webp", encoded(image, "WEBP", lossless=True), on_white)
    yield Case("alpha.tif", encoded(image, "TIFF"), on_white)
    grey_on_white = on_white.convert("L").convert("RGB")
    yield Case("grey-alpha.png", encoded(image.convert("LA"), "PNG"), grey_on_white)
    palette = whole.quantize(4)
    clear = palette.getpixel((0, 0))
    yield Case("palette-transparent.png", encoded(palette, "PNG", transparency=clear), on_white)
    yield Case("palette-transparent.gif", encoded(palette, "GIF", transparency=clear), on_white)
    yield Case("transparent-colour.png", encoded(whole, "PNG", transparency=RED), on_white)
    grey = whole.convert("L")
    clear_level = encoded(grey, "PNG", transparency=grey.getpixel((0, 0)))
    yield Case("transparent-grey.png", clear_level, grey_on_white)
    half = Image.new("RGBA", (16, 16), (0, 100, 200, 128))
    yield Case("half-clear.png", encoded(half, "PNG"), Image.new("RGB", (16, 16), (127, 177, 227)))


def _cmyk() -> Iterator[Case]:
    inks = Image.new("CMYK", (48, 32), (0, 255, 255, 0))
    inks.paste((255, 0, 0, 0), (24, 0, 48, 32))
    colours = Image.new("RGB", (48, 32), (255, 0, 0))
    colours.paste((0, 255, 255), (24, 0, 48, 32))
    # Photoshop and Pillow mark the file "Adobe" and store the inks inverted.
    inverted = encoded(inks, quality=100, subsampling=0)
    assert b"Adobe" in inverted
    yield Case("cmyk-adobe.jpg", inverted, colours, tolerance=4)
    yield Case("cmyk.tif", encoded(inks, "TIFF"), colours)


def _turned() -> Iterator[Case]:
    whole = quarters()
    kinds = [("JPEG", "jpg", 8), ("PNG", "png", 0), ("WEBP", "webp", 0), ("TIFF", "tif", 0)]
    for format, extension, tolerance in kinds:
        options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(format, {})
        for orientation, way in _STORED.items():
            stored = whole if way is None else whole.transpose(Image.Transpose(way))
            data = encoded(stored, format, exif=_exif(orientation), **options)
            name = f"exif-{orientation}.{extension}"
            yield Case(name, data, whole, tolerance=tolerance)
    yield Case("exif-9.jpg", encoded(whole, quality=95, exif=_exif(9)), whole, tolerance=8)
    broken = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20)
    yield Case("exif-broken.jpg", encoded(whole, quality=95, exif=broken), whole, tolerance=8)
    large = quarters(960, 640)
    yield Case("large.jpg", encoded(large, quality=95), large, tolerance=8, scaled=True)
    stored = large.transpose(Image.Transpose.ROTATE_90)
    data = encoded(stored, quality=95, exif=_exif(6))
    yield Case("large-exif-6.jpg", data, large, tolerance=8, scaled=True)


def _odd() -> Iterator[Case]:
    whole = quarters()
    frames = [Image.new("RGB", whole.size, colour) for colour in (BLUE, GREEN)]
    moving = {"save_all": True, "append_images": frames, "duration": 10}
    yield Case("animated.gif", encoded(whole.quantize(4), "GIF", **moving), whole)
    yield Case("animated.webp", encoded(whole, "WEBP", lossless=True, **moving), whole)
    yield Case("animated.png", encoded(whole, "PNG", **moving), whole)
    stack = encoded(whole, "TIFF", save_all=True, append_images=frames)
    yield Case("pages.tif", stack, whole)
    several = encoded(whole, "MPO", quality=95, save_all=True, append_images=frames)
    yield Case("several.jpg", several, whole, tolerance=8)
    one = Image.new("RGB", (1, 1), BLUE)
    yield Case("one-pixel.png", encoded(one, "PNG"), one)
    tall, wide = Image.new("RGB", (1, 10_000), BLUE), Image.new("RGB", (10_000, 1), BLUE)
    yield Case("tall.png", encoded(tall, "PNG"), tall)
    yield Case("wide.png", encoded(wide, "PNG"), wide)
    yield Case("tall.jpg", encoded(tall, quality=95), tall, tolerance=8)
    yield Case("a-png-called.jpg", encoded(whole, "PNG"), whole)
    yield Case("a-jpeg-called.png", encoded(whole, quality=95), whole, tolerance=8)
    yield Case("a-webp-called.gif", encoded(whole, "WEBP", lossless=True), whole)
    yield Case("a-tiff-called.bmp", encoded(whole, "TIFF"), whole)
    # A phone's photograph with a video behind it, in which many scans seem to begin.
    video = encoded(whole, quality=95) + b"\0\2" + b"\xff\xda\0\2" * 5_000
    yield Case("with-a-video.jpg", video, whole, tolerance=8)


def _refused() -> Iterator[Case]:
    said = {
        "empty file": {"empty.jpg": b""},
        "truncated image": {
            "half.jpg": _half("JPEG"),
            "half-progressive.jpg": _half("JPEG", progressive=True),
            "half.png": _half("PNG"),
            "half.gif": _half("GIF"),
            "half.bmp": _half("BMP"),
            "half.tif": _half("TIFF"),
            "no-end.jpg": encoded()[:-2],
        },
        "damaged image header": {
            "half.webp": _half("WEBP"),
            "start-only.jpg": encoded()[:20],
            "start-and-zeros.jpg": b"\xff\xd8\xff" + bytes(200),
            "start-only.png": encoded(photo(), "PNG")[:12],
            "no-pixels.png": png_file(0, 5, 0, 8, zlib.compress(b"")),
        },
        "corrupt image": {
            "garbage.png": png_file(48, 32, 2, 8, b"garbage" * 50),
        },
        "HTML, not an image": {
            "page.jpg": b"<!DOCTYPE html><html>404</html>",
            "page-after-blanks.png": b"\xef\xbb\xbf\r\n  <HTML><body>not found",
            "answer.jpg": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        },
        "SVG, not pixels": {
            "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
            "drawing.jpg": b'<?xml version="1.0"?>\n<!-- -->\n<svg width="9"/>',
        },
        "not an image of a known format": {
            "zeros.jpg": bytes(1000),
            "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            "document.jpg": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
            "paintbrush.png": encoded(photo(), "PCX"),
            "icon.png": encoded(photo(), "ICO"),
            "packed.jpg": b"\x1f\x8b\x08\0" + bytes(100),
            "pickle.png": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x02os\x94",
            "answer.png": b'{"error": "rate limit exceeded"}',
        },
        "floating-point pixels not from 0 to 1": {
            "metres.tif": encoded(Image.fromarray(np.full((8, 8), 3.5, dtype=np.float32)), "TIFF"),
        },
        "32-bit pixels": {
            "labels.tif": encoded(Image.fromarray(np.full((8, 8), 70_000, dtype=np.int32)), "TIFF"),
        },
    }
    for reason, files in said.items():
        for name, data in files.items():
            yield Case(name, data, reason=reason)


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def _half(format: str, **options: object) -> bytes:
    data = encoded(photo(200, 200), format, **options)
    return data[: len(data) // 2]


def _patched(format: str, mark: bytes, distance: int, new: bytes, **options: object) -> bytes:
    """A file with other bytes at a distance from the first ``mark``."""
    data = encoded(photo(), format, **options)
    at = data.index(mark) + distance
    return data[:at] + new + data[at + len(new) :]


def _deflated_zeros(size: int) -> bytes:
    compress = zlib.compressobj(9)
    parts = [compress.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return b"".join([*parts, compress.compress(bytes(size % 2**20)), compress.flush()])


def _many_scans() -> bytes:
    """The last scan of a progressive JPEG again and again: each costs all of the pixels."""
    data = encoded(photo(64, 64).convert("L"), progressive=True)
    begin, end = data.rindex(b"\xff\xc4", 0, data.rindex(b"\xff\xda")), data.rindex(b"\xff\xd9")
    return data[:end] + data[begin:end] * 100 + data[end:]


# What a caption's bytes are trained as, or None where the sample is skipped.
CAPTIONS: dict[str, tuple[bytes, str | None]] = {
    "plain": (b"two dogs", "two dogs"),
    "empty": (b"", None),
    "blanks": (b" \r\n\t ", None),
    "wide blanks": ("\u3000\u00a0\u2003".encode(), None),
    "NUL alone": (b"\0\0\0", None),
    "byte order mark alone": (b"\xef\xbb\xbf", None),
    "byte order mark": (b"\xef\xbb\xbftwo dogs", "two dogs"),
    "NUL inside": (b"two\0 do\0gs", "two dogs"),
    "lines": (b"two\r\n\r\n dogs\n", "two dogs"),
    "Latin-1": (b"caf\xe9 au lait", "café au lait"),
    "UTF-16": (b"\xff\xfed\0o\0g\0", "dog"),
    "half a surrogate": (b"\xed\xa0\xbd dog", "\ufffd\ufffd\ufffd dog"),
    "cut inside a character": ("dogs 狗".encode()[:-1], "dogs \ufffd"),
    "decomposed": ("cafe\u0301".encode(), "café"),
    "Hangul letters": ("\u1112\u1161\u11ab".encode(), "한"),
    "right to left": ("مرحبا بالعالم \u202eabc".encode(), "مرحبا بالعالم \u202eabc"),
    "emoji": ("👩🏽‍🚀 🏴󠁧󠁢󠁷󠁬󠁳󠁿 ❤️‍🔥".encode(), "👩🏽‍🚀 🏴󠁧󠁢󠁷󠁬󠁳󠁿 ❤️‍🔥"),
    "end token": (b"a <|endoftext|> b", "a <|endoftext|> b"),
    "start token": (b"<|startoftext|>", "<|startoftext|>"),
    "escapes": (b"\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
    "nan": (b"nan", "nan"),
    "markup": (b"<b>dogs</b> &amp; cats", "<b>dogs</b> &amp; cats"),
    "a megabyte of words": (b"dogs " * 200_000, "dogs " * 1_999 + "dogs"),
    "a megabyte of one word": (b"x" * 2**20, "x" * 10_000),
    "a megabyte of blanks": (b" " * 1_000_000 + b"dogs", None),
    # In this order they are sorted by normalising, which takes the square of their number.
    "a megabyte of accents": (
        b"a" + "\u0301\u0316".encode() * 250_000,
        "á" + "\u0316" * 4_999 + "\u0301" * 4_999,
    ),
}

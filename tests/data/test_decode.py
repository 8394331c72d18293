"""One policy from bytes to RGB, and a reason for whatever cannot be decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sample_files import encoded, photo

from clipkit.data import ImageError, decode_image, jpeg, to_rgb
from clipkit.data.decode import decode_for_training

CAP = 1_000_000


def decode(data: bytes) -> np.ndarray:
    image = decode_image(data, max_pixels=CAP)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_known_formats_decode_to_rgb(format):
    options = {"quality": 95} if format in ("JPEG", "WEBP") else {}
    pixels = decode(encoded(photo(30, 20), format, **options))
    assert pixels.shape == (20, 30, 3)
    # GIF has 256 colours; the others are close to the original or equal to it.
    assert np.abs(pixels - np.asarray(photo(30, 20)).astype(int)).mean() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(orientation, format):
    upright = Image.new("RGB", (32, 16), "red")
    upright.paste("blue", (16, 0, 32, 8))  # one corner: every orientation looks different
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if inverse is None else upright.transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if format == "JPEG" else {}
    pixels = decode(encoded(stored, format, exif=exif.tobytes(), **options))
    assert pixels.shape == (16, 32, 3)
    assert np.abs(pixels - np.asarray(upright).astype(int)).mean() < 12


def png_16_bit(values: np.ndarray) -> bytes:
    """A 16-bit grey PNG of (H, W) values, written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_16_bit_pixels_are_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert decode(png_16_bit(values))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_16_bit_tiff_is_scaled_not_clipped():
    values = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert decode(encoded(Image.fromarray(values), "TIFF"))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (4, 1))
    for x, alpha in enumerate([0, 64, 128, 255]):
        image.putpixel((x, 0), (0, 100, 200, alpha))
    expected = [[255, 255, 255], [191, 216, 241], [127, 177, 227], [0, 100, 200]]
    assert np.abs(decode(encoded(image, "PNG"))[0] - expected).max() <= 1
    assert np.abs(decode(encoded(image.convert("LA"), "PNG"))[0, 0] - 255).max() == 0


def test_palette_and_grey_and_bilevel_transparency_is_laid_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert decode(encoded(palette, "PNG", transparency=0))[0].tolist() == [[255] * 3, [40, 50, 60]]
    grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
    assert decode(encoded(grey, "PNG", transparency=7))[0].tolist() == [[255] * 3, [9] * 3]
    assert decode(encoded(grey.convert("1"), "PNG"))[0].tolist() == [[0] * 3, [0] * 3]


def test_cmyk_becomes_rgb():
    pixels = decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(pixels.mean(axis=(0, 1)) - [255, 0, 0]).max() < 6


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(format):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green")]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=10)
    assert np.abs(decode(data).mean(axis=(0, 1)) - [255, 0, 0]).max() < 6


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def bomb() -> bytes:
    """A PNG header of 30000 × 30000 pixels and no pixels."""
    data = bytearray(encoded(photo(), "PNG"))
    data[16:24] = struct.pack(">II", 30_000, 30_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (half(encoded(photo(200, 200))), "truncated image"),
        (half(encoded(photo(200, 200), "PNG")), "truncated image"),
        (encoded()[:20], "damaged image header"),
        (b"\xff\xd8\xff" + bytes(200), "damaged image header"),
        (b"<!DOCTYPE html><html>404</html>", "HTML, not an image"),
        (b'<?xml version="1.0"?>\n<svg width="9"/>', "SVG, not pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (encoded(photo(), "PPM"), "not an image of a known format"),
        (bytes(1000), "not an image of a known format"),
        (bomb(), "too many pixels"),
        (encoded(photo(1200, 1000), "PNG"), "too many pixels"),
    ],
)
def test_what_cannot_be_decoded_says_why(data, reason, recwarn):
    with pytest.raises(ImageError) as caught:
        decode_image(data, max_pixels=CAP)
    assert str(caught.value) == reason
    assert not recwarn.list


def test_the_cap_counts_pixels_exactly():
    data = encoded(photo(100, 50), "PNG")
    assert decode_image(data, max_pixels=5000).size == (100, 50)
    with pytest.raises(ImageError):
        decode_image(data, max_pixels=4999)


def test_floating_and_32_bit_pixels_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        to_rgb(Image.fromarray(np.zeros((2, 2), dtype=np.float32)))
    with pytest.raises(ImageError, match="32-bit"):
        to_rgb(Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)))


def test_an_open_image_follows_the_same_policy():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(30, 20), "JPEG", exif=exif.tobytes())
    by_hand = to_rgb(Image.open(io.BytesIO(data)))
    assert by_hand.size == (20, 30)
    assert np.array_equal(np.asarray(by_hand), decode(data))
    assert to_rgb(by_hand).size == (20, 30)  # and not turned again


def test_a_jpeg_may_come_smaller_but_not_below_what_is_asked():
    data = encoded(photo(1600, 1000))
    small = decode_image(data, max_pixels=10**7, at_least=240)
    assert small.size == (400, 250)
    assert decode_image(data, max_pixels=10**7, at_least=600).size == (1600, 1000)
    png = decode_image(encoded(photo(800, 800), "PNG"), max_pixels=10**7, at_least=100)
    assert png.size == (800, 800)


def test_random_damage_never_escapes_as_another_error():
    rng = np.random.default_rng(0)
    originals = [encoded(photo(64, 64), f) for f in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
    outcomes = set()
    for i in range(600):
        data = bytearray(originals[i % len(originals)])
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(len(data))] = rng.integers(256)
        cut = int(rng.integers(len(data))) if i % 3 == 0 else len(data)
        try:
            outcomes.add(decode_image(bytes(data[:cut]), max_pixels=CAP).mode)
        except ImageError as error:
            outcomes.add(str(error))
    assert {"RGB", "truncated image"} <= outcomes


@pytest.fixture
def fast_decoder():
    pytest.importorskip("simplejpeg", reason="simplejpeg (the extra fast) is not installed")


def outcome(decode, data: bytes, at_least: int = 50):
    """Pixels, or the reason why there are none."""
    try:
        return np.asarray(decode(data, max_pixels=CAP, at_least=at_least)).tolist()
    except ImageError as error:
        return str(error)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("size", [(1, 1), (53, 40), (100, 107), (203, 205), (401, 523), (900, 903)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_decoder_gives_the_pixels_of_pillow(size, mode, options, fast_decoder):
    data = encoded(photo(*size).convert(mode), quality=91, **options)
    for at_least in (25, 50, 51, 400):
        fast = decode_for_training(data, max_pixels=CAP, at_least=at_least)
        assert isinstance(fast, np.ndarray)  # and so it was not Pillow
        exact = decode_image(data, max_pixels=CAP, at_least=at_least)
        assert np.array_equal(fast, np.asarray(exact))


@pytest.mark.parametrize("orientation", range(10))
def test_the_fast_decoder_turns_pixels_as_pillow_does(orientation, fast_decoder):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(90, 61), exif=exif.tobytes())
    fast = decode_for_training(data, max_pixels=CAP, at_least=50)
    assert isinstance(fast, np.ndarray)
    assert np.array_equal(fast, np.asarray(decode_image(data, max_pixels=CAP)))


@pytest.mark.parametrize(
    "data",
    [
        encoded(photo(60, 50).convert("CMYK")),
        encoded(photo(60, 50), keep_rgb=True),
        encoded(photo(60, 50), "MPO", save_all=True, append_images=[photo(60, 50, 1)]),
        encoded(photo(60, 50), "PNG"),
    ],
    ids=["CMYK", "RGB inside", "MPO", "PNG"],
)
def test_what_the_fast_decoder_leaves_alone_is_pillows(data, fast_decoder):
    image = decode_for_training(data, max_pixels=CAP, at_least=50)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), np.asarray(decode_image(data, max_pixels=CAP)))


def test_training_refuses_what_evaluation_refuses():
    for data in (b"", bomb(), encoded()[:-2], half(encoded()), encoded(photo(1200, 1000))):
        assert outcome(decode_for_training, data) == outcome(decode_image, data)
        assert isinstance(outcome(decode_for_training, data), str)


def test_random_damage_has_one_outcome_whichever_decoder_is_installed(fast_decoder):
    rng = np.random.default_rng(0)
    originals = [
        encoded(photo(120, 110)),
        encoded(photo(130, 64).convert("L")),
        encoded(photo(64, 64), progressive=True, restart_marker_blocks=4),
    ]
    outcomes = []
    for i in range(900):
        data = bytearray(originals[i % len(originals)])
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        cut = int(rng.integers(len(data))) if i % 4 == 0 else len(data)
        fast = outcome(decode_for_training, bytes(data[:cut]))
        assert fast == outcome(decode_image, bytes(data[:cut])), i
        outcomes.append(fast if isinstance(fast, str) else "pixels")
    assert {"pixels", "truncated image"} <= set(outcomes)


def test_without_the_fast_decoder_pillow_decodes(monkeypatch):
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert jpeg.decoder_name().startswith("pillow")
    assert isinstance(decode_for_training(encoded(), max_pixels=CAP, at_least=9), Image.Image)


def test_the_fast_decoder_is_named_with_its_version(fast_decoder):
    assert jpeg.decoder_name().startswith("simplejpeg 1.")

"""Pixels of more than 8 bits, against levels that NumPy computes of the values in the file."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hostile import chunk, png, tiff
from PIL import Image
from sample_files import encoded

from clipkit.cli import main
from clipkit.data import ImageError, decode_image, to_rgb
from clipkit.data.decode import decode_pixels

SIZE = (24, 32)


def values(bits: int, channels: int = 1) -> np.ndarray:
    """(H, W, channels) of all levels that so many bits have, the largest among them."""
    drawn = np.random.default_rng(bits).integers(0, 2**bits, (*SIZE, channels))
    drawn[0, 0] = 2**bits - 1
    return drawn


def levels(pixels: np.ndarray, bits: int) -> np.ndarray:
    """(H, W, 3) uint8, each value as a share of the largest that so many bits have."""
    scaled = np.rint(pixels / (2**bits - 1) * 255).astype(np.uint8)
    return np.broadcast_to(scaled, (*SIZE, 3))


def tiff_of(pixels: np.ndarray, *, deflated: bool = False, **tags: list[int]) -> bytes:
    channels = pixels.shape[2]
    data = pixels.astype("<u2").tobytes()
    named = {"max_sample_value": 281, "photometric": 262, "extra": 338}
    return tiff(
        {
            256: [SIZE[1]],
            257: [SIZE[0]],
            258: [16] * channels,
            259: [8 if deflated else 1],
            262: [2 if channels > 2 else 1],
            277: [channels],
            278: [SIZE[0]],
            **{named[name]: value for name, value in tags.items()},
        },
        zlib.compress(data) if deflated else data,
    )


def shown(data: bytes) -> np.ndarray:
    """What every path makes of a file: bytes for evaluation and training, an opened image."""
    exact = np.asarray(decode_image(data, max_pixels=10**6))
    assert np.array_equal(np.asarray(decode_pixels(data, max_pixels=10**6, at_least=8)), exact)
    assert np.array_equal(np.asarray(to_rgb(Image.open(io.BytesIO(data)))), exact)
    return exact


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_values_of_fewer_bits_in_a_file_of_16_are_scaled_by_the_fewest_that_hold_them(
    bits: int, channels: int
) -> None:
    pixels = values(bits, channels)
    expected = levels(pixels, bits)
    files = {
        "png": png(pixels, 0 if channels == 1 else 2),
        "tiff": tiff_of(pixels),
        "deflated tiff": tiff_of(pixels, deflated=True),
    }
    for name, data in files.items():
        # Of colours that use all 16 bits Pillow's high byte is taken: one level off at most.
        most = 1 if channels == 3 and bits == 16 else 0
        difference = np.abs(shown(data).astype(int) - expected)
        assert difference.max() <= most, name


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_jpeg_2000_and_ppm_that_state_16_bits_may_hold_fewer(bits: int) -> None:
    pixels = values(bits).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0]).save(buffer, "JPEG2000")  # without loss
    whole = b"P5\n%d %d\n65535\n" % SIZE[::-1] + pixels.astype(">u2").tobytes()
    for data in (buffer.getvalue(), whole):
        assert np.array_equal(shown(data), levels(pixels, bits))
    # Of a header that states the bits, a dark picture stays dark.
    dark = (pixels // 4).astype(">u2")
    stated = b"P5\n%d %d\n%d\n" % (*SIZE[::-1], 2**bits - 1) + dark.tobytes()
    wanted = np.rint(dark / (2**bits - 1) * 255)
    if bits < 16:
        assert abs(shown(stated) - wanted).max() <= 1


def test_what_the_file_states_stands_above_its_largest_value() -> None:
    dark = values(8) // 2  # at most 127: a nearly black picture of 12 or 16 bits
    assert np.array_equal(shown(png(dark, 0, extra=chunk(b"sBIT", b"\x0c"))), levels(dark, 12))
    assert np.array_equal(shown(tiff_of(dark, max_sample_value=[4095])), levels(dark, 12))
    assert np.array_equal(shown(tiff_of(dark, max_sample_value=[65535])), levels(dark, 16))
    # A writer that follows the standard scales its 12 bits to 16 beside that statement.
    scaled = values(12) * 16
    assert np.array_equal(shown(png(scaled, 0, extra=chunk(b"sBIT", b"\x0c"))), levels(scaled, 16))
    graymap = b"P5\n32 24\n4095\n" + dark.astype(">u2").tobytes()
    assert np.abs(shown(graymap).astype(int) - levels(dark, 12)).max() <= 1


def test_a_tiff_whose_samples_have_12_bits_is_scaled_from_these() -> None:
    pixels = values(12)[..., 0]
    bits = ((pixels[..., None] >> np.arange(11, -1, -1)) & 1).astype(np.uint8)
    data = np.packbits(bits.reshape(SIZE[0], -1), axis=1).tobytes()
    tags = {256: [32], 257: [24], 258: [12], 259: [1], 262: [1], 277: [1], 278: [24]}
    assert np.array_equal(shown(tiff(tags, data)), levels(pixels[..., None], 12))


def test_alpha_of_16_bits_is_laid_on_white() -> None:
    for bits, alpha_bits in ((12, 12), (12, 16), (16, 16)):
        for channels, kind in ((1, 4), (3, 6)):
            alpha = np.full((*SIZE, 1), 2**alpha_bits - 1)
            alpha[:12] = 0
            pixels = values(bits, channels)
            expected = levels(pixels, bits).copy()
            expected[:12] = 255
            data = png(np.concatenate([pixels, alpha], axis=2), kind)
            assert np.abs(shown(data).astype(int) - expected).max() <= (bits == 16), (bits, kind)


def test_a_transparent_colour_of_16_bits_is_white() -> None:
    pixels = values(16, 3)
    clear = chunk(b"tRNS", pixels[5, 5].astype(">u2").tobytes())
    expected = levels(pixels, 16).copy()
    expected[(pixels == pixels[5, 5]).all(axis=2)] = 255
    assert np.array_equal(shown(png(pixels, 2, extra=clear)), expected)
    assert tuple(expected[5, 5]) == (255, 255, 255)


def test_a_tiff_in_which_0_is_white_is_no_negative() -> None:
    pixels = values(12)
    assert np.array_equal(shown(tiff_of(pixels, photometric=[0])), 255 - levels(pixels, 12))


def test_floating_point_pixels_from_0_to_1_are_shares_of_white() -> None:
    pixels = np.random.default_rng(0).random((*SIZE, 1), dtype=np.float32)
    data = encoded(Image.fromarray(pixels[..., 0]), "TIFF")
    assert np.array_equal(shown(data), levels(pixels, 1))
    for wrong in (-0.5, 1.5, np.nan):
        pixels[3, 3] = wrong
        with pytest.raises(ImageError, match="floating-point pixels not from 0 to 1"):
            shown(encoded(Image.fromarray(pixels[..., 0]), "TIFF"))


def test_pixels_below_0_are_refused() -> None:
    signed = np.full(SIZE, -1000, dtype=np.int32)
    with pytest.raises(ImageError, match="pixels below 0"):
        to_rgb(Image.fromarray(signed))


def test_other_kinds_of_pixels_have_the_colours_they_show() -> None:
    grey = values(8)[..., 0].astype(np.uint8)
    bilevel = grey > 127
    expected = np.broadcast_to(np.where(bilevel, 255, 0)[..., None], (*SIZE, 3))
    assert np.array_equal(shown(encoded(Image.fromarray(bilevel), "PNG")), expected)
    cmyk = np.stack([grey, 255 - grey, grey // 2, grey // 4], axis=2)
    on_paper = (255 - cmyk[..., :3].astype(int)) * (255 - cmyk[..., 3:].astype(int)) / 255
    data = encoded(Image.fromarray(cmyk, "CMYK"), "TIFF")
    assert np.abs(shown(data) - on_paper).max() <= 1
    palette = Image.fromarray(grey % 2, "P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    data = encoded(palette, "PNG", transparency=1)
    colours = np.array([[10, 20, 30], [255, 255, 255]])
    assert np.array_equal(shown(data), colours[grey % 2])


def test_data_check_counts_pictures_of_fewer_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, bits in enumerate((12, 12, 16)):
        (tmp_path / f"{number}.png").write_bytes(png(values(bits), 0))
        (tmp_path / f"{number}.txt").write_text(f"scan {number}")
    assert main(["data", "check", str(tmp_path), "--workers", "0"]) == 0
    assert "2 PNG (12 of 16 bits), 1 PNG" in capsys.readouterr().out

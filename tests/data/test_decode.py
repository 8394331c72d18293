"""From bytes to RGB: the cap, opened images, and the fast decoder beside Pillow.

The policy itself is held by the corpus of ``hostile.py``, and damage by ``test_mutations.py``.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sample_files import encoded, photo

from clipkit.data import ImageError, decode_image, jpeg, to_rgb
from clipkit.data.decode import decode_pixels

CAP = 1_000_000


def test_the_cap_counts_pixels_exactly():
    data = encoded(photo(100, 50), "PNG")
    assert decode_image(data, max_pixels=5000).size == (100, 50)
    with pytest.raises(ImageError):
        decode_image(data, max_pixels=4999)


def test_floating_pixels_beyond_1_and_32_bit_pixels_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        to_rgb(Image.fromarray(np.full((2, 2), 1.5, dtype=np.float32)))
    with pytest.raises(ImageError, match="32-bit"):
        to_rgb(Image.fromarray(np.full((2, 2), 70_000, dtype=np.int32)))


def test_an_open_image_follows_the_same_policy():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(30, 20), "JPEG", exif=exif.tobytes())
    by_hand = to_rgb(Image.open(io.BytesIO(data)))
    assert by_hand.size == (20, 30)
    assert np.array_equal(np.asarray(by_hand), np.asarray(decode_image(data, max_pixels=CAP)))
    assert to_rgb(by_hand).size == (20, 30)  # and not turned again


def test_a_jpeg_may_come_smaller_but_not_below_what_is_asked():
    data = encoded(photo(1600, 1000))
    small = decode_image(data, max_pixels=10**7, at_least=240)
    assert small.size == (400, 250)
    assert decode_image(data, max_pixels=10**7, at_least=600).size == (1600, 1000)
    png = decode_image(encoded(photo(800, 800), "PNG"), max_pixels=10**7, at_least=100)
    assert png.size == (800, 800)


@pytest.fixture
def fast_decoder():
    pytest.importorskip("simplejpeg", reason="simplejpeg (the extra fast) is not installed")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("size", [(1, 1), (53, 40), (100, 107), (203, 205), (401, 523), (900, 903)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_fast_decoder_gives_the_pixels_of_pillow(size, mode, options, fast_decoder):
    data = encoded(photo(*size).convert(mode), quality=91, **options)
    for at_least in (25, 50, 51, 400, None):
        fast = decode_pixels(data, max_pixels=CAP, at_least=at_least)
        assert isinstance(fast, np.ndarray)  # and so it was not Pillow
        exact = decode_image(data, max_pixels=CAP, at_least=at_least)
        assert np.array_equal(fast, np.asarray(exact))


@pytest.mark.parametrize("orientation", range(10))
def test_the_fast_decoder_turns_pixels_as_pillow_does(orientation, fast_decoder):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(90, 61), exif=exif.tobytes())
    fast = decode_pixels(data, max_pixels=CAP, at_least=50)
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
    image = decode_pixels(data, max_pixels=CAP, at_least=50)
    assert isinstance(image, Image.Image)
    assert np.array_equal(np.asarray(image), np.asarray(decode_image(data, max_pixels=CAP)))


def test_without_the_fast_decoder_pillow_decodes(monkeypatch):
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert jpeg.decoder_name().startswith("pillow")
    assert isinstance(decode_pixels(encoded(), max_pixels=CAP, at_least=9), Image.Image)


def test_the_fast_decoder_is_named_with_its_version(fast_decoder):
    assert jpeg.decoder_name().startswith("simplejpeg 1.")

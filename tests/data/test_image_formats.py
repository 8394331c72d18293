"""Every image format that Pillow decodes is found, decoded and packed; others are named."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from sample_files import encoded, photo, write_tar

from clipkit.data import open_source
from clipkit.data.check import image_kind
from clipkit.data.decode import ImageError, decode_image, image_size
from clipkit.data.formats import IMAGE_EXTENSIONS, jpeg_xl_size
from clipkit.evaluation.images import folder_images

# extension → Pillow's name, and how far lossy pixels may be from the original
WRITTEN = {
    **dict.fromkeys(("jpg", "jpeg", "jpe", "jfif", "JPG", "JFIF"), ("JPEG", 12)),
    **dict.fromkeys(("ppm", "pgm"), ("PPM", 0)),
    **dict.fromkeys(("tif", "tiff"), ("TIFF", 0)),
    **dict.fromkeys(("jp2", "j2k"), ("JPEG2000", 0)),
    "avif": ("AVIF", 12),
    "webp": ("WEBP", 12),
    "gif": ("GIF", 40),
    "bmp": ("BMP", 0),
    "png": ("PNG", 0),
}
HEIC = b"\0\0\0\x18ftypheic" + bytes(64)


@pytest.mark.parametrize("extension", WRITTEN)
def test_each_format_is_read_from_folders_and_tars(tmp_path, extension):
    format, apart = WRITTEN[extension]
    grey = extension == "pgm"
    original = photo(40, 30).convert("L") if grey else photo(40, 30)
    data = encoded(original, format)
    (tmp_path / "images").mkdir()
    (tmp_path / f"images/a.{extension}").write_bytes(data)
    (tmp_path / "images/a.txt").write_text("a wave")
    tar = write_tar(tmp_path / "a.tar", [(f"a.{extension}", data), ("a.txt", b"a wave")])
    for path in (tmp_path / "images", tar):
        reader = open_source(str(path), progress=False)
        assert (len(reader), reader[0].caption) == (1, "a wave")
        pixels = np.asarray(decode_image(reader[0].image, max_pixels=10**6), dtype=int)
        assert np.abs(pixels - np.asarray(original.convert("RGB"), dtype=int)).mean() <= apart
    assert image_kind(data)[1] in IMAGE_EXTENSIONS  # so that what is packed can be read again
    assert image_size(data) == (40, 30)
    images, others = folder_images(str(tmp_path / "images"))
    assert images == [str(tmp_path / f"images/a.{extension}")]
    assert others == {".txt": 1}


def test_formats_without_their_plug_in_name_the_package():
    with pytest.raises(ImageError, match=r"HEIC image \(install pillow-heif\)"):
        decode_image(HEIC, max_pixels=100)
    with pytest.raises(ImageError, match=r"JPEG XL image \(install pillow-jxl-plugin\)"):
        decode_image(b"\xff\x0a\0\0\0\0\0\0\0\0", max_pixels=100)


@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0\n", b"8BPS\0\1", b"\0\0\1\0"])
def test_formats_that_are_not_on_the_list_are_never_opened(start):
    with pytest.raises(ImageError, match="not an image of a known format"):
        decode_image(start + bytes(200), max_pixels=100)


@pytest.mark.parametrize(
    ("header", "size"),
    [
        # From the bits of the standard's SizeHeader, lowest first.
        (0b1 | 4 << 1 | 1 << 6, (40, 40)),  # in eights, 1 : 1
        (0b1 | 4 << 1 | 0 << 6 | 1 << 9, (16, 40)),
        (0b0 | 0 << 1 | 299 << 3 | 7 << 12, (600, 300)),  # 9 bits, 2 : 1
        (0b0 | 3 << 1 | 99_999 << 3 | 0 << 33 | 3 << 36 | 199_999 << 38, (200_000, 100_000)),
    ],
)
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(header, size):
    stream = b"\xff\x0a" + header.to_bytes(16, "little")
    assert jpeg_xl_size(stream) == size
    signature = b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0\0\0\x14ftypjxl \0\0\0\0jxl "
    assert jpeg_xl_size(signature + b"\0\0\0\0jxlc" + stream) == size
    assert jpeg_xl_size(signature + b"\0\0\0\x20jxlp\0\0\0\0" + stream) == size
    assert jpeg_xl_size(signature) is None


def test_an_installed_plug_in_opens_its_format_below_the_cap_on_pixels(tmp_path):
    """A stand-in for pillow-heif: its images are one red pixel for each byte."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image, ImageFile\n"
        "class Heif(ImageFile.ImageFile):\n"
        "    format = 'HEIF'\n"
        "    def _open(self):\n"
        "        self._size, self._mode = (len(self.fp.read()), 1), 'RGB'\n"
        "    def load(self):\n"
        "        self.im = Image.new('RGB', self.size, 'red').im\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', Heif, lambda start: start[4:12] == b'ftypheic')\n"
    )
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.HEIC").write_bytes(HEIC)
    (tmp_path / "images/a.txt").write_text("red")
    program = (
        "from clipkit.data import open_source\n"
        "from clipkit.data.decode import decode_image, ImageError\n"
        f"data = open_source({str(tmp_path / 'images')!r}, progress=False)[0].image\n"
        "print(decode_image(data, max_pixels=100).getpixel((0, 0)))\n"
        "try: decode_image(data, max_pixels=50)\n"
        "except ImageError as error: print(error)\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(255, 0, 0)\ntoo many pixels\n", done.stderr

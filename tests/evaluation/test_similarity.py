"""Images × texts as numbers and as a figure: on a page, as SVG, as PNG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import noise_image

import clipkit
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError, ConfigError

SVG = "{http://www.w3.org/2000/svg}"


def test_scores_are_cosines_and_the_figure_has_a_cell_for_each(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    images, texts = [noise_image(i) for i in range(3)], ["red", "<b>cat</b>", "一只猫", "a & b"]
    matrix = clipkit.similarity_matrix(tiny_encoder, images, texts)
    expected = tiny_encoder.encode_image(images) @ tiny_encoder.encode_text(texts).T
    np.testing.assert_allclose(matrix.scores, expected, atol=1e-6)
    assert list(matrix.to_pandas().columns) == texts
    assert "image 2" in repr(matrix)
    matrix.save(tmp_path / "m.svg")
    figure = ElementTree.parse(tmp_path / "m.svg").getroot()
    said = [each.text for each in figure.iter(f"{SVG}title")]
    assert len(said) == 12
    assert said[1] == f"image 0 × <b>cat</b>: {expected[0, 1]:z.2f}"
    assert len(list(figure.iter(f"{SVG}image"))) == 3
    assert "<b>" not in matrix._repr_html_()
    matrix.save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as drawn:
        assert drawn.size == (2 * int(figure.get("width")), 2 * int(figure.get("height")))
        assert len(drawn.getcolors(100_000)) > 50  # there is something on it


def test_the_darkest_cell_is_the_nearest_pair(tiny_encoder: Encoder) -> None:
    matrix = clipkit.similarity_matrix(tiny_encoder, [noise_image(i) for i in range(4)], ["a", "b"])
    figure = ElementTree.fromstring(matrix._figure().svg())
    cells = [each for each in figure.iter(f"{SVG}rect") if each.find(f"{SVG}title") is not None]
    light = [int(str(each.get("fill"))[1:3], 16) for each in cells]
    assert np.argmin(light) == matrix.scores.ravel().argmax()
    assert np.argmax(light) == matrix.scores.ravel().argmin()


def test_of_many_it_says_how_many_are_shown_and_of_none_too(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    images = [noise_image(i) for i in range(45)]
    page = clipkit.similarity_matrix(tiny_encoder, images, ["a", "b"])._repr_html_()
    assert "40 of 45 rows, 2 of 2 columns" in page
    assert page.count("<title>") == 80
    empty = clipkit.similarity_matrix(tiny_encoder, [], ["a"])
    assert empty.scores.shape == (0, 1)
    empty.save(tmp_path / "m.png")
    with pytest.warns(UserWarning, match="1 of 2 images cannot be read; the first is row 1"):
        broken = clipkit.similarity_matrix(tiny_encoder, [images[0], b"<html>"], ["a", "b"])
    assert broken._repr_html_().count("#dddddd") == 2
    with pytest.raises(ConfigError, match=r"m.jpg: give a name that ends in .svg or .png"):
        broken.save(tmp_path / "m.jpg")
    with pytest.raises(ClipkitError, match="an empty text"):
        clipkit.similarity_matrix(tiny_encoder, images, ["a", " "])

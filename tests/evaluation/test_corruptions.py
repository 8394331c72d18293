"""Corruptions: stated, graded, and the same in every run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from clipkit.evaluation.corruptions import CORRUPTIONS, corrupt


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """A smooth picture with edges and colours, not square."""
    y, x = np.mgrid[0:90, 0:120] / 120
    pixels = np.stack([x, y, 0.5 + 0.4 * np.sin(20 * x * y)], axis=2)
    pixels[30:60, 40:80] = [0.9, 0.2, 0.1]
    return Image.fromarray((pixels * 255).clip(0, 255).astype(np.uint8))


def _distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).mean())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_step_spoils_more_and_keeps_the_size(kind: str, photo: Image.Image) -> None:
    before = photo.tobytes()
    steps = [corrupt(photo, kind, severity, key="a") for severity in range(1, 6)]
    distances = [_distance(photo, each) for each in steps]
    assert distances == sorted(distances)
    assert distances[0] > 0
    assert {(each.size, each.mode) for each in steps} == {(photo.size, "RGB")}
    assert photo.tobytes() == before


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_draw_is_by_seed_and_key_alone(kind: str, photo: Image.Image) -> None:
    def made(key: str, seed: int) -> bytes:
        return corrupt(photo, kind, 3, key=key, seed=seed).tobytes()

    first = made("a", 0)
    np.random.seed(1)
    assert made("a", 0) == first
    if "noise" in kind or kind in ("motion_blur", "occlusion"):
        assert len({made(key, 0) for key in "abcdef"}) > 1
        assert len({made("a", seed) for seed in range(6)}) > 1


def test_a_picture_of_one_pixel_can_be_spoilt() -> None:
    dot = Image.new("RGB", (1, 1), (10, 20, 30))
    assert {corrupt(dot, kind, 5).size for kind in CORRUPTIONS} == {(1, 1)}


def test_what_is_not_there_is_named(photo: Image.Image) -> None:
    with pytest.raises(ValueError, match="'fog'; there are gaussian_noise, shot_noise"):
        corrupt(photo, "fog", 1)
    with pytest.raises(ValueError, match="severity: 6; give 1 to 5"):
        corrupt(photo, "jpeg", 6)

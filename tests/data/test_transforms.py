"""Evaluation equals CLIPImageProcessor; training is a function of (seed, position)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sample_files import photo
from transformers import CLIPImageProcessor

from clipkit.config.schema import AugmentConfig, PreprocessConfig
from clipkit.data import eval_transform, train_transform
from clipkit.data.transforms import smallest_decoded_edge


def sizes_of(image_size: int) -> list[tuple[int, int]]:
    """Landscape, portrait, tiny, equal, one pixel off, odd; and a hundred at random."""
    s = image_size
    rng = np.random.default_rng(image_size)
    drawn = [tuple(map(int, rng.integers(1, 500, size=2))) for _ in range(100)]
    near = [(s + a, s + b) for a in (-1, 0, 1, 2) for b in (-1, 0, 1, 3)]
    odd = [(1, 1), (1, 20), (2, 3), (7, 5), (640, 480), (481, 641), (333, 500), (s * 2, s * 3 - 1)]
    fits = [(w, h) for w, h in drawn if max(w, h) <= 32 * min(w, h)]
    return [*near, *odd, *fits]


@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("image_size", [64, 97, 224])
def test_eval_transform_equals_clip_image_processor(image_size, resize):
    preprocess = PreprocessConfig(image_size=image_size, resize=resize)
    square = {"height": image_size, "width": image_size}
    processor = CLIPImageProcessor(
        size={"shortest_edge": image_size} if resize == "crop" else square,
        crop_size=square,
        do_center_crop=resize == "crop",
        image_mean=preprocess.mean,
        image_std=preprocess.std,
    )
    mean, std = torch.tensor(preprocess.mean), torch.tensor(preprocess.std)
    sizes = sizes_of(image_size)
    assert len(sizes) > 80
    for i, (width, height) in enumerate(sizes):
        image = photo(width, height, seed=i)
        pixels = eval_transform(image, preprocess)
        assert pixels.dtype == torch.uint8
        ours = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() < 1e-4, (width, height)


@pytest.mark.parametrize("size", [(1, 200_000), (100_000, 2)])
def test_a_very_long_image_costs_no_more_than_its_middle(size):
    preprocess = PreprocessConfig(image_size=32)
    pixels = eval_transform(Image.new("RGB", size, "teal"), preprocess)
    assert pixels.shape == (3, 32, 32)
    assert pixels.float().mean(dim=(1, 2)).tolist() == [0, 128, 128]


def train(image, position=0, seed=0, size=32, **augment):
    preprocess = PreprocessConfig(image_size=size)
    return train_transform(image, preprocess, AugmentConfig(**augment), seed, position)


def test_train_transform_is_a_function_of_seed_and_position():
    image = photo(60, 50)
    options = {"crop_scale": (0.3, 1.0), "horizontal_flip": 0.5}
    first = train(image, 5, 1, **options)
    torch.rand(3)
    np.random.rand()
    assert torch.equal(first, train(image, 5, 1, **options))
    assert not torch.equal(first, train(image, 6, 1, **options))
    assert not torch.equal(first, train(image, 5, 2, **options))
    assert first.shape == (3, 32, 32)
    assert first.dtype == torch.uint8


@pytest.mark.parametrize("size", [(60, 50), (400, 533), (32, 32)])
def test_train_transform_of_an_array_equals_that_of_the_image(size):
    image = photo(*size)
    for position in range(30):
        options = {"crop_scale": (0.3, 1.0), "horizontal_flip": 0.5}
        of_array = train(np.asarray(image).copy(), position, **options)
        assert torch.equal(of_array, train(image, position, **options))


def test_with_nothing_to_crop_the_pixels_are_the_image():
    image = photo(32, 32)
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for position in range(20):
        pixels = train(image, position, crop_scale=(1.0, 1.0))
        assert torch.equal(pixels, whole)
    squashed = eval_transform(photo(40, 36), PreprocessConfig(image_size=32, resize="squash"))
    assert torch.equal(train(photo(40, 36), crop_scale=(1.0, 1.0)), squashed)


@pytest.mark.parametrize(
    ("width", "height"), [(400, 300), (300, 400), (64, 64), (1000, 100), (1, 1)]
)
def test_crops_have_the_areas_and_ratios_asked_for(width, height, monkeypatch):
    boxes = []
    crop = Image.Image.crop
    monkeypatch.setattr(
        Image.Image, "crop", lambda self, box: (boxes.append(box), crop(self, box))[1]
    )
    image = Image.new("RGB", (width, height))
    for position in range(300):
        train(image, position, size=8, crop_scale=(0.5, 1.0))
    shares = []
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shares.append((right - left) * (bottom - top) / (width * height))
        ratio = (right - left) / (bottom - top)
        assert 0.74 < ratio < 1.35
    if width in (400, 300, 64):
        assert 0.49 < min(shares) < 0.53
        assert max(shares) > 0.9
        # Uniform: also near 1, where few ratios fit and rejection would seldom arrive.
        assert 0.72 < np.mean(shares) < 0.78
    if width == 1000:  # no crop of a banner has half its area: the largest square-ish one
        assert {(box[2] - box[0], box[3] - box[1]) for box in boxes} == {(133, 100)}
        assert len({box[0] for box in boxes}) > 100


def test_flips_happen_as_often_as_asked():
    image = Image.new("RGB", (8, 8), "black")
    image.paste("white", (4, 0, 8, 8))
    for probability in (0.0, 0.3, 1.0):
        flips = [
            int(
                train(image, p, size=8, crop_scale=(1.0, 1.0), horizontal_flip=probability)[0, 0, 0]
            )
            for p in range(400)
        ]
        assert abs(np.mean(flips) / 255 - probability) < 0.08


def test_the_smallest_crop_of_a_reduced_jpeg_still_has_twice_the_pixels():
    preprocess = PreprocessConfig(image_size=100)
    assert (
        smallest_decoded_edge(
            preprocess, AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
        )
        == 200
    )
    # A quarter of the area at a ratio of 3:4 leaves 0.433 of the shorter edge.
    assert smallest_decoded_edge(preprocess, AugmentConfig(crop_scale=(0.25, 1.0))) == 462

"""Heat maps: on a model that was taught where to look, the map shows where that is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from clipkit.config.schema import ModelConfig, PreprocessConfig, TowerConfig, VisionConfig
from clipkit.data.tokenize import train_tokenizer
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError, DataError
from clipkit.evaluation.zero_shot import ZeroShotClassifier
from clipkit.models import build_model

COLOURS = ["red", "green", "blue", "yellow", "purple", "cyan"]
RGB = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]]) * 255
SIDE, PATCH = 4, 8  # patches an edge, pixels an edge of one


def spotted(spots: dict[int, int], seed: int) -> np.ndarray:
    """(32, 32, 3): grey noise, and patches (by number) in one of the colours."""
    pixels = np.random.default_rng(seed).integers(90, 160, (32, 32, 3), dtype=np.uint8)
    for patch, colour in spots.items():
        row, column = (PATCH * n for n in divmod(patch, SIDE))
        pixels[row : row + PATCH, column : column + PATCH] = RGB[colour]
    return pixels


@pytest.fixture(scope="module")
def classifier() -> ZeroShotClassifier:
    """Knows the colour of one patch among grey ones, wherever it is: 60 steps on such images.

    With few colours it learns one of them as what the others are not, and then no patch speaks
    for it.
    """
    preprocess = PreprocessConfig(image_size=32, context_length=16)
    tokenizer = train_tokenizer(COLOURS * 9, vocab_size=600, context_length=16)
    sizes = ModelConfig(
        embed_dim=24,
        vision=VisionConfig(width=48, layers=2, heads=2, patch_size=PATCH),
        text=TowerConfig(width=32, layers=1, heads=2),
    )
    model = build_model(sizes, preprocess, tokenizer, init_temperature=0.07, seed=0)
    encoder = Encoder(model, preprocess, tokenizer, "cpu")
    texts = torch.from_numpy(encoder.encode_text(COLOURS))
    model.train()
    optimizer = torch.optim.AdamW(model.backbone.vision_model.parameters(), lr=2e-3)
    draws = np.random.default_rng(1)
    for step in range(60):
        colours = torch.from_numpy(draws.integers(0, len(COLOURS), 64))
        places = draws.integers(0, SIDE * SIDE, 64)
        images = [
            spotted({int(p): int(c)}, 1000 * step + i)
            for i, (p, c) in enumerate(zip(places, colours, strict=True))
        ]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        logits = 14 * model(pixel_values=pixels).image_embeds @ texts.T
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, colours).backward()
        optimizer.step()
    return ZeroShotClassifier(encoder, COLOURS)


def test_the_map_finds_the_patch_and_agrees_with_hiding_patches(
    classifier: ZeroShotClassifier,
) -> None:
    draws = np.random.default_rng(2)
    found, agreement = [], []
    for number in range(24):
        patch, colour = int(draws.integers(SIDE * SIDE)), number % len(COLOURS)
        pixels = spotted({patch: colour}, number)
        odds = np.log(classifier(pixels).scores[0, colour])
        assert odds > np.log(0.5)  # the model knows it, or there is nothing to explain
        heat = classifier.relevance(pixels, COLOURS[colour])
        assert heat.shape == (SIDE, SIDE)
        assert (heat.min(), heat.max()) == (0, 1)
        found.append(heat.argmax() == patch)
        hidden = np.stack([pixels] * SIDE * SIDE)
        for each, image in enumerate(hidden):
            row, column = (PATCH * n for n in divmod(each, SIDE))
            image[row : row + PATCH, column : column + PATCH] = 125
        loss = odds - np.log(classifier(hidden).scores[:, colour])
        agreement.append(np.corrcoef(heat.ravel(), loss)[0, 1])
    assert np.mean(found) > 0.6  # by chance: 1 in 16
    assert np.mean(agreement) > 0.5


def test_the_drawing_has_the_shape_of_the_image_and_grey_where_the_model_is_blind(
    classifier: ZeroShotClassifier,
) -> None:
    wide = Image.new("RGB", (400, 200), (255, 0, 0))
    drawn = classifier.explain(wide, "red")
    assert drawn.size == (400, 200)
    pixels = np.asarray(drawn).astype(int)
    assert np.ptp(pixels[:, :95], axis=2).max() == 0  # beside the square that is seen
    assert np.ptp(pixels[:, 105:295], axis=2).min() > 0
    assert classifier.explain(spotted({5: 1}, 0)).size == (336, 336)  # a small one is enlarged
    assert classifier.explain(wide)._repr_png_().startswith(b"\x89PNG")


def test_explaining_leaves_the_model_as_it_was(classifier: ZeroShotClassifier) -> None:
    model = classifier.encoder.model
    model.zero_grad()
    pixels = spotted({3: 2}, 1)
    before = classifier.relevance(pixels)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.requires_grad_(False)
    np.testing.assert_allclose(classifier.relevance(pixels, "blue"), before, atol=1e-5)
    model.requires_grad_(True)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    embeds, shares = model.eval().attend_images(tensor)
    torch.testing.assert_close(embeds, model(pixel_values=tensor).image_embeds)
    assert [tuple(each.shape) for each in shares] == [(1, 2, 17, 17), (1, 2, 1, 17)]
    for each in shares:
        torch.testing.assert_close(each.sum(dim=-1), torch.ones(each.shape[:-1]))
    model.train()


def test_what_cannot_be_explained_is_refused(classifier: ZeroShotClassifier) -> None:
    with pytest.raises(ConfigError, match="'rot' is no label"):
        classifier.explain(spotted({}, 0), "rot")
    with pytest.raises(DataError, match="image: the image cannot be decoded"):
        classifier.explain(b"<html>")

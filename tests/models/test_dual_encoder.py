"""DualEncoder: what goes in, what comes out, what is trained."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path

import pytest
import torch
from torch import nn

from clipkit.config.schema import ModelConfig
from clipkit.data.tokenize import tokenize, train_tokenizer
from clipkit.models import DualEncoder, build_model

EMOJI = Path(__file__).parents[2] / "data" / "emoji" / "validation-000.tar"
TEXTS = [
    "a photo of two dogs",
    "dogs",
    "一只猫",
    "a red car near the house and a photo of a red car",
]


def random_images(count: int = 3, size: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def test_embeddings_have_unit_length_in_float32(small_model, small_tokenizer):
    ids, _ = tokenize(small_tokenizer, TEXTS, context_length=24)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = small_model(random_images(), ids)
        assert output.image_embeds.shape == (3, 48)
        assert output.text_embeds.shape == (4, 48)
        assert output.scale.shape == ()
        for embeds in output[:2]:
            assert embeds.dtype == torch.float32
            assert (embeds.norm(dim=-1) - 1).abs().max() < 1e-6
        assert output.scale.dtype == torch.float32


def test_one_side_alone_gives_the_same_as_both(small_model, small_tokenizer):
    ids, _ = tokenize(small_tokenizer, TEXTS, context_length=24)
    both = small_model(random_images(), ids)
    images, texts = small_model(pixel_values=random_images()), small_model(input_ids=ids)
    assert images.text_embeds is None
    assert texts.image_embeds is None
    assert images.image_embeds.equal(both.image_embeds)
    assert texts.text_embeds.equal(both.text_embeds)


def test_uint8_pixels_are_normalised_with_the_preprocessing_of_the_model(
    small_model, small_preprocess
):
    pixels = random_images()
    mean = torch.tensor(small_preprocess.mean, dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor(small_preprocess.std, dtype=torch.float64).view(3, 1, 1)
    normalised = ((pixels.double() / 255 - mean) / std).float()
    difference = small_model(pixels).image_embeds - small_model(normalised).image_embeds
    assert difference.abs().max() < 1e-6


def test_a_text_embedding_depends_neither_on_padding_nor_on_the_rest_of_the_batch(
    small_model, small_tokenizer
):
    together = small_model(input_ids=tokenize(small_tokenizer, TEXTS, context_length=24)[0])
    for row, text in enumerate(TEXTS):
        ids, _ = tokenize(small_tokenizer, [text], context_length=24)
        padding = torch.full((1, 24 - ids.shape[1]), small_tokenizer.eos_token_id)
        for alone in (ids, torch.cat([ids, padding], dim=1)):
            embeds = small_model(input_ids=alone).text_embeds[0]
            assert (embeds - together.text_embeds[row]).abs().max() < 1e-5


def test_different_captions_get_different_embeddings(small_model, small_tokenizer):
    colours, things = ["red", "blue", "深红", "أحمر", "🟥"], ["car", "dog", "猫", "سيارة", "🚗"]
    texts = [f"{a} {b} {n}" for a in colours for b in things for n in ("", "1", "11", "?", "the")]
    texts += [f"{b} {a}" for a in colours for b in things] + ["<|endoftext|>", "<|startoftext|>"]
    ids, cut = tokenize(small_tokenizer, texts, context_length=24)
    assert cut == 0
    similarity = (embeds := small_model(input_ids=ids).text_embeds) @ embeds.T
    assert (similarity - 2 * torch.eye(len(texts))).max() < 1 - 1e-4


@pytest.mark.skipif(not EMOJI.exists(), reason="data/emoji is not in this checkout")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_names_of_the_emoji_get_different_embeddings(seed, small_config, small_preprocess):
    with tarfile.open(EMOJI) as tar:
        names = [tar.extractfile(m).read().decode() for m in tar if m.name.endswith(".txt")]
    assert len(names) > 200
    tokenizer = train_tokenizer(names, vocab_size=1024, context_length=24)
    model = build_model(small_config, small_preprocess, tokenizer, init_temperature=0.07, seed=seed)
    ids, cut = tokenize(tokenizer, names, context_length=24)
    assert cut == 0
    similarity = (embeds := model(input_ids=ids).text_embeds) @ embeds.T
    assert (similarity - 2 * torch.eye(len(names))).max() < 1 - 1e-5


def test_the_gradient_reaches_every_parameter_and_the_scale(small_model, small_tokenizer):
    ids, _ = tokenize(small_tokenizer, TEXTS, context_length=24)
    output = small_model(random_images(4), ids)
    logits = output.scale * output.image_embeds @ output.text_embeds.T
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert small_model.logit_scale.grad.abs() > 0
    missing = [name for name, p in small_model.named_parameters() if p.grad is None]
    assert missing == []


def test_the_scale_starts_at_the_temperature_and_is_clamped(small_model):
    assert small_model().scale.item() == pytest.approx(1 / 0.07, rel=1e-6)
    with torch.no_grad():
        small_model.logit_scale.fill_(10)
    small_model.clamp_scale(100)
    assert small_model().scale.item() == pytest.approx(100, rel=1e-6)
    with torch.no_grad():
        small_model.logit_scale.fill_(math.log(50))
    small_model.clamp_scale(100)
    assert small_model().scale.item() == pytest.approx(50, rel=1e-6)


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_frozen_tower_is_not_trained_but_its_projection_is(
    tower, small_config: ModelConfig, small_preprocess, small_tokenizer
):
    small_config.freeze = tower
    getattr(small_config, tower).dropout = 0.5
    model = build_model(
        small_config, small_preprocess, small_tokenizer, init_temperature=0.07, seed=0
    ).train()
    ids, _ = tokenize(small_tokenizer, TEXTS, context_length=24)
    first, second = model(random_images(), ids), model(random_images(), ids)
    side = 0 if tower == "vision" else 1
    assert first[side].equal(second[side])  # no dropout, though the model is in training mode
    (first.image_embeds.sum() + first.text_embeds.sum()).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert not any(name.startswith(f"backbone.{tower}_model.") for name in trained)
    projection = {"vision": "visual_projection", "text": "text_projection"}[tower]
    assert f"backbone.{projection}.weight" in trained


def test_mean_and_std_are_no_weights(small_model):
    assert isinstance(small_model, DualEncoder)
    assert all(name.startswith("backbone.") for name in small_model.state_dict())

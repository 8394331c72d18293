"""FLOPs by formula: those that torch counts, of what is really there."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from clipkit.config.schema import ModelConfig
from clipkit.data.tokenize import tokenize
from clipkit.models import build_model
from clipkit.models.flops import (
    image_flops,
    kept_patches,
    text_flops,
    text_lengths,
    training_factors,
)


def counted(call, *arguments) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(*arguments)
    return counter.get_total_flops()


def test_the_formulas_give_what_torch_counts(small_model, small_tokenizer):
    backbone = small_model.backbone
    backbone.set_attn_implementation("eager")  # torch does not count SDPA on a CPU
    size, patch = small_model.image_size, backbone.config.vision_config.patch_size
    images = counted(backbone.get_image_features, torch.zeros(3, 3, size, size))
    assert images == 3 * image_flops(small_model, (size // patch) ** 2)
    ids, _ = tokenize(small_tokenizer, ["a red car near the house"] * 2, context_length=24)
    texts = counted(backbone.get_text_features, ids)
    assert texts == text_flops(small_model, text_lengths(small_model, ids))


def test_padding_does_not_count(small_model, small_tokenizer):
    texts = ["a red car near the house", "dogs", ""]
    together, _ = tokenize(small_tokenizer, texts, context_length=24)
    apart = [tokenize(small_tokenizer, [text], context_length=24)[0] for text in texts]
    lengths = text_lengths(small_model, together)
    assert lengths.tolist() == [ids.shape[1] for ids in apart]
    alone = sum(text_flops(small_model, text_lengths(small_model, ids)) for ids in apart)
    assert text_flops(small_model, lengths) == alone


def test_a_frozen_tower_has_no_backward_pass(small_preprocess, small_tokenizer):
    sizes = ModelConfig(embed_dim=48, freeze="vision")
    sizes.vision.width = sizes.text.width = 64
    sizes.vision.layers = sizes.text.layers = 1
    sizes.vision.patch_size = 8
    model = build_model(sizes, small_preprocess, small_tokenizer, init_temperature=0.07, seed=0)
    assert training_factors(model) == (1, 3)


def test_patches_that_are_dropped_do_not_count(small_model):
    try:
        small_model.patch_dropout = 0.5
        assert kept_patches(small_model, 32, 32) == 8
    finally:
        small_model.patch_dropout = 0.0
    assert kept_patches(small_model, 32, 16) == 8

"""Our forward pass is transformers', to rounding: values and gradients, however it is computed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from by_transformers import theirs
from torch import Tensor

from clipkit.models import DualEncoder, build_model
from clipkit.models.packing import pack_texts


def gradients(model: DualEncoder, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of a random product with the outputs. That by the keys' bias is 0 but for rounding."""
    generator = torch.Generator().manual_seed(1)
    model.zero_grad()
    sum((x * torch.randn(x.shape, generator=generator)).sum() for x in outputs).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not name.endswith("k_proj.bias")
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_values_and_gradients_are_those_of_transformers(
    small_model, pixels, ids, attention, device
):
    end = small_model.backbone.text_model.eos_token_id
    # On a GPU all captions are padded to the longest for attention.
    packed = pack_texts(ids, end, one_group=device == "gpu")
    small_model.attention = attention
    expected, found = theirs(small_model, pixels, ids), small_model(pixels, packed)[:2]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-6)
    by_them, by_us = gradients(small_model, expected), gradients(small_model, found)
    assert by_them.keys() == by_us.keys()
    for name, gradient in by_them.items():
        # Sums are taken in another order, so that small entries beside large ones round as these.
        rounding = 1e-5 + 2e-6 * float(gradient.abs().max())
        torch.testing.assert_close(by_us[name], gradient, rtol=1e-4, atol=rounding, msg=name)


def test_the_end_token_of_old_checkpoints_is_the_greatest_id(small_model, pixels, ids):
    small_model.backbone.text_model.eos_token_id = 2
    expected = theirs(small_model, pixels, ids)[1]
    torch.testing.assert_close(small_model(input_ids=ids).text_embeds, expected)


def test_captions_are_packed_without_what_follows_their_end():
    end = 9
    ids = torch.tensor([[1, 5, 6, end, 0], [1, end, 0, 0, end], [1, 7, 8, end, 0]])
    packed = pack_texts(ids, end, one_group=True)
    assert packed.input_ids[:10].tolist() == [1, end, 1, 5, 6, end, 1, 7, 8, end]
    assert packed.positions[:10].tolist() == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3]
    assert packed.groups == ((3, 4),)
    assert packed.ends.tolist() == [1, 5, 9]
    assert packed.ends[packed.restore].tolist() == [5, 1, 9]
    assert packed.padded.tolist() == [0, 1, 4, 5, 6, 7, 8, 9, 10, 11]
    assert len(packed.input_ids) == 16
    assert packed.unpadded.tolist() == [0, 1, 15, 15, 2, 3, 4, 5, 6, 7, 8, 9]


def test_batches_of_captions_have_few_shapes():
    """A matrix product in bf16 is compiled for each new one."""
    generator = torch.Generator().manual_seed(0)
    shapes, tokens, padded = set(), set(), []
    for _ in range(200):
        lengths = (2 + 30 * torch.rand(256, generator=generator) ** 3).long()
        ids = torch.ones(256, 33, dtype=torch.int64)
        ids[torch.arange(256), lengths - 1] = 9
        packed = pack_texts(ids, 9)
        shapes.update(packed.groups)
        tokens.add(len(packed.input_ids))
        padded.append(len(packed.unpadded) / int(lengths.sum()))
        assert len(packed.padded) == lengths.sum()
    assert len(shapes) < 30
    assert len(tokens) < 20
    assert max(padded) < 2


def test_bf16_is_near_and_gives_gradients_in_float32(small_model, pixels, ids):
    exact = small_model(pixels, ids)
    expected = gradients(small_model, exact[:2])
    small_model.compute_dtype = torch.bfloat16
    rounded = small_model(pixels, ids)
    for one, other in zip(exact[:2], rounded[:2], strict=True):
        assert other.dtype == torch.float32
        assert 0.999 < (one * other).sum(1).min() < 1 - 1e-7
    found = gradients(small_model, rounded[:2])
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        cosine = F.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0)
        assert cosine > 0.98, name


def test_activation_checkpointing_changes_no_gradient(small_model, pixels, ids):
    expected = gradients(small_model, small_model(pixels, ids)[:2])
    kept = [0, 0]
    for turn in range(2):
        if turn:
            small_model.checkpoint_activations()

        def count(tensor: Tensor, turn: int = turn) -> Tensor:
            kept[turn] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            outputs = small_model(pixels, ids)[:2]
        found = gradients(small_model, outputs)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert kept[1] < kept[0] / 3


def test_patches_are_dropped_in_training_only(small_model, pixels):
    lengths = []
    layer = small_model.backbone.vision_model.encoder.layers[0]
    layer.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[1].length))
    whole = small_model.eval()(pixels).image_embeds
    small_model.patch_dropout = 0.5
    assert torch.equal(small_model(pixels).image_embeds, whole)
    small_model.train()
    torch.manual_seed(0)
    first, second = small_model(pixels).image_embeds, small_model(pixels).image_embeds
    torch.manual_seed(0)
    again = small_model(pixels).image_embeds
    assert lengths == [17, 17, 9, 9, 9]  # of 16 patches and the class token
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    # What stays is where it was: all patches, in another order, are the same image.
    small_model.patch_dropout = 1e-9
    torch.testing.assert_close(small_model(pixels).image_embeds, whole, rtol=0, atol=2e-6)


def test_images_of_another_size_take_interpolated_positions(small_model):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 48, 48, generator=generator)

    def agree(pixels: Tensor) -> None:
        features = small_model.backbone.get_image_features(pixels, interpolate_pos_encoding=True)
        expected = F.normalize(features.pooler_output, dim=-1)
        torch.testing.assert_close(small_model(pixels).image_embeds, expected, rtol=0, atol=2e-6)

    agree(pixels)
    # Smaller ones are smoothed first, as transformers does not; of one value both give the same.
    position = small_model.backbone.vision_model.embeddings.position_embedding.weight
    with torch.no_grad():
        position[1:] = position[1].clone()
    agree(pixels[..., :16, :24])


@pytest.mark.long
def test_compiled_layers_give_the_same(
    small_config, small_preprocess, small_tokenizer, pixels, ids
):
    small_config.text.layers = 1  # each takes a while
    small_model = build_model(
        small_config, small_preprocess, small_tokenizer, init_temperature=0.07, seed=0
    )
    expected = small_model(pixels, ids)[:2]
    by_layers = gradients(small_model, expected)
    small_model.compile_layers()
    found = small_model(pixels, ids)[:2]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=2e-6)
    compiled = gradients(small_model, found)
    for name, gradient in by_layers.items():
        error = (compiled[name] - gradient).abs().max() / gradient.abs().max()
        assert error < 1e-5, name

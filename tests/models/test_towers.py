"""build_model: sizes, ids, seeds, and combinations that are refused."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from clipkit.config.schema import ModelConfig, PreprocessConfig
from clipkit.data.tokenize import train_tokenizer
from clipkit.errors import CheckpointError, ConfigError
from clipkit.models import build_model, resolve_attention, save_model


def build(config, preprocess, tokenizer, *, seed=0, temperature=0.07):
    return build_model(config, preprocess, tokenizer, init_temperature=temperature, seed=seed)


def same_weights(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_sizes_and_token_ids_are_those_of_the_config_and_the_tokenizer(
    small_model, small_tokenizer
):
    config = small_model.backbone.config
    text, vision = config.text_config, config.vision_config
    assert {config.projection_dim, text.projection_dim, vision.projection_dim} == {48}
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (128, 3, 2)
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (64, 2, 1)
    assert text.vocab_size == len(small_tokenizer)
    assert text.max_position_embeddings == small_model.context_length == 24
    assert text.bos_token_id == small_tokenizer.bos_token_id
    assert text.eos_token_id == small_model.backbone.text_model.eos_token_id
    assert text.eos_token_id == small_tokenizer.eos_token_id == len(small_tokenizer) - 1
    assert small_model.image_size == 32
    assert small_model.embed_dim == 48


def test_new_weights_are_a_function_of_the_seed_alone(
    small_config, small_preprocess, small_tokenizer
):
    before = copy.deepcopy(small_config)
    torch.manual_seed(1)
    first = build(small_config, small_preprocess, small_tokenizer)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = build(small_config, small_preprocess, small_tokenizer)
    assert torch.get_rng_state().equal(state)
    assert same_weights(first, second)
    assert not same_weights(first, build(small_config, small_preprocess, small_tokenizer, seed=1))
    assert small_config == before


def test_new_weights_have_the_deviations_of_openai_clip(
    small_config, small_preprocess, small_tokenizer
):
    small_config.text.width, small_config.text.layers = 192, 4
    text = build(small_config, small_preprocess, small_tokenizer).backbone.text_model
    layer = text.encoder.layers[-1]
    expected = {
        text.embeddings.token_embedding: 0.02,
        text.embeddings.position_embedding: 0.01,
        layer.self_attn.q_proj: 192**-0.5,
        layer.self_attn.v_proj: 192**-0.5,
        layer.self_attn.out_proj: (8 * 192) ** -0.5,
        layer.mlp.fc1: (2 * 192) ** -0.5,
        layer.mlp.fc2: (8 * 192) ** -0.5,
    }
    for module, std in expected.items():
        assert module.weight.std().item() == pytest.approx(std, rel=0.05)
    assert all(m.bias.abs().max() == 0 for m in (layer.self_attn.q_proj, layer.mlp.fc1))


def set_heads(config: ModelConfig, preprocess: PreprocessConfig) -> None:
    config.text.heads = 3


def set_width(config: ModelConfig, preprocess: PreprocessConfig) -> None:
    config.vision.width = 100


def set_patch(config: ModelConfig, preprocess: PreprocessConfig) -> None:
    config.vision.patch_size = 12


def set_layers(config: ModelConfig, preprocess: PreprocessConfig) -> None:
    config.text.layers = 0


def set_embed_dim(config: ModelConfig, preprocess: PreprocessConfig) -> None:
    config.embed_dim = 0


def set_context(config: ModelConfig, preprocess: PreprocessConfig) -> None:
    preprocess.context_length = 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (set_heads, "model.text.heads: 3"),
        (set_width, "model.vision.width: 100"),
        (set_patch, "model.vision.patch_size: 12"),
        (set_layers, "model.text.layers: 0"),
        (set_embed_dim, "model.embed_dim: 0"),
        (set_context, "preprocess.context_length: 2"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    change, key, small_config, small_preprocess, small_tokenizer
):
    change(small_config, small_preprocess)
    with pytest.raises(ConfigError) as error:
        build(small_config, small_preprocess, small_tokenizer)
    assert str(error.value).startswith(key)


def test_a_temperature_of_zero_is_refused(small_config, small_preprocess, small_tokenizer):
    with pytest.raises(ConfigError, match=r"loss\.init_temperature"):
        build(small_config, small_preprocess, small_tokenizer, temperature=0.0)


def word_tokenizer(start: str | None, end: str | None, *, end_id: int = 1):
    """Words only, between start and end as far as they are given."""
    words = ["<unk>", "a", "x", "y", "<s>"]
    words.insert(end_id, "</s>")
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    template = [token for token in (start, "$A", end) if token]
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(template),
        special_tokens=[(t, words.index(t)) for t in {start, end} if t],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        (word_tokenizer("<s>", None), "does not end a text"),
        (word_tokenizer("</s>", "</s>"), "does not end a text"),
        (word_tokenizer("<s>", "</s>", end_id=2), "has the id 2"),
    ],
)
def test_a_tokenizer_that_would_give_every_caption_one_vector_is_refused(
    tokenizer, reason, small_config, small_preprocess
):
    with pytest.raises(ConfigError, match=reason):
        build(small_config, small_preprocess, tokenizer)


def test_a_tokenizer_of_another_kind_is_pooled_at_its_own_end_token(small_config, small_preprocess):
    tokenizer = word_tokenizer("<s>", "</s>")
    model = build(small_config, small_preprocess, tokenizer)
    ids = torch.tensor([tokenizer(text)["input_ids"] for text in ("a", "x", "y")])
    similarity = (embeds := model(input_ids=ids).text_embeds) @ embeds.T
    assert (similarity - 2 * torch.eye(3)).max() < 1 - 1e-4


def test_training_goes_on_from_a_folder_with_its_weights_and_scale(
    tmp_path, small_model, small_config, small_preprocess, small_tokenizer
):
    with torch.no_grad():
        small_model.logit_scale.fill_(3.25)
    save_model(small_model, tmp_path / "m", small_preprocess, small_tokenizer)
    start = ModelConfig(pretrained=str(tmp_path / "m"), freeze="vision")
    model = build(start, small_preprocess, small_tokenizer, seed=5)
    assert same_weights(model, small_model)
    assert model.logit_scale.item() == 3.25
    assert model.training
    assert not any(p.requires_grad for p in model.backbone.vision_model.parameters())
    assert all(p.requires_grad for p in model.backbone.text_model.parameters())


def test_pretrained_weights_want_their_own_preprocessing_and_tokenizer(
    tmp_path, small_model, small_preprocess, small_tokenizer
):
    save_model(small_model, tmp_path / "m", small_preprocess, small_tokenizer)
    start = ModelConfig(pretrained=str(tmp_path / "m"))
    larger = train_tokenizer(["a b"], vocab_size=600, context_length=24)
    with pytest.raises(ConfigError, match=f"{len(larger)} tokens, .* {len(small_tokenizer)}"):
        build(start, small_preprocess, larger)
    # As many tokens, with other meanings.
    other = train_tokenizer(
        ["".join(chr(97 + (i * j) % 26) for j in range(12)) for i in range(26)] * 9,
        vocab_size=len(small_tokenizer),
        context_length=24,
    )
    assert len(other) == len(small_tokenizer)
    with pytest.raises(ConfigError, match=r"preprocess\.tokenizer: its tokens have other ids"):
        build(start, small_preprocess, other)
    for change in ({"image_size": 64}, {"context_length": 25}):
        with pytest.raises(ConfigError, match=rf"preprocess\.{next(iter(change))}"):
            build(start, dataclasses.replace(small_preprocess, **change), small_tokenizer)
    with pytest.raises(CheckpointError, match="no such folder"):
        build(ModelConfig(pretrained=str(tmp_path / "x")), small_preprocess, small_tokenizer)


def test_old_checkpoints_that_name_2_as_their_end_token_are_pooled_at_the_real_one(
    tmp_path, small_model, small_preprocess, small_tokenizer
):
    small_model.backbone.config.text_config.eos_token_id = 2
    save_model(small_model, tmp_path / "m", small_preprocess, small_tokenizer)
    assert '"eos_token_id": 2' in (tmp_path / "m" / "config.json").read_text()
    model = build(ModelConfig(pretrained=str(tmp_path / "m")), small_preprocess, small_tokenizer)
    assert model.backbone.text_model.eos_token_id == small_tokenizer.eos_token_id
    save_model(model, tmp_path / "m", small_preprocess, small_tokenizer)
    assert '"eos_token_id": 2' not in (tmp_path / "m" / "config.json").read_text()


@pytest.mark.parametrize(
    ("attention", "device", "dtype", "resolved"),
    [
        ("auto", "cpu", torch.bfloat16, "eager"),
        ("auto", "cpu", torch.float32, "sdpa"),
        ("auto", "cuda", torch.bfloat16, "sdpa"),
        ("auto", "mps", torch.float32, "sdpa"),
        ("sdpa", "cpu", torch.bfloat16, "sdpa"),
        ("eager", "cuda", torch.bfloat16, "eager"),
    ],
)
def test_attention_auto_follows_the_device(attention, device, dtype, resolved):
    assert resolve_attention(attention, torch.device(device), dtype) == resolved

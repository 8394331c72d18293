"""ModelConfig → a DualEncoder: new towers of the given sizes, or those of a folder."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from clipkit.config.schema import ModelConfig, PreprocessConfig, TowerConfig
from clipkit.errors import ConfigError
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.fit import TextTower, text_tower, why_unfit
from clipkit.models.initialise import initialise
from clipkit.models.pretrained import bias_of, load_backbone

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def build_model(
    config: ModelConfig,
    preprocess: PreprocessConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    init_temperature: float,
    seed: int,
    init_bias: float | None = None,
) -> DualEncoder:
    """A model to train, on the CPU, in training mode.

    Args:
        config: sizes of a new model, or the folder or hub name of one to go on from.
        preprocess: the size, mean and deviation of the images and the length of the texts.
        tokenizer: whose ids the text tower takes.
        init_temperature: of the softmax, of a new model; another keeps its own.
        seed: the new weights are a function of it, whatever random numbers were drawn before.
        init_bias: of the logits, for a loss that has one; see ``DualEncoder``. A model that has
            one keeps its own.

    Raises:
        ConfigError: sizes that do not fit together, or a tokenizer that does not fit.
        CheckpointError: ``config.pretrained`` cannot be loaded.
    """
    if config.pretrained is not None:
        backbone = load_backbone(config.pretrained)
        _check_fit(backbone, config.pretrained, preprocess, tokenizer)
        _set_end_token(backbone, _end_token_id(tokenizer))
        if init_bias is not None:
            own = bias_of(backbone.config, config.pretrained)
            init_bias = init_bias if own is None else own
    else:
        end = _end_token_id(tokenizer)
        clip_config = _clip_config(config, preprocess, tokenizer, end, init_temperature)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = CLIPModel._from_config(clip_config)
            initialise(backbone)
    backbone.train()
    model = DualEncoder(
        backbone, preprocess.mean, preprocess.std, freeze=config.freeze, init_bias=init_bias
    )
    model.attention = config.attention
    model.patch_dropout = config.vision.patch_dropout
    return model


def _clip_config(
    config: ModelConfig,
    preprocess: PreprocessConfig,
    tokenizer: PreTrainedTokenizerBase,
    end: int,
    init_temperature: float,
) -> CLIPConfig:
    _at_least("preprocess.image_size", preprocess.image_size, 1)
    _at_least("preprocess.context_length", preprocess.context_length, 3)  # start, a token, end
    _at_least("model.vision.patch_size", config.vision.patch_size, 1)
    _at_least("model.embed_dim", config.embed_dim, 1)
    size, patch = preprocess.image_size, config.vision.patch_size
    if size % patch:
        fitting = sorted({max(size // patch, 1) * patch, (size // patch + 1) * patch})
        raise ConfigError(
            f"model.vision.patch_size: {patch} does not divide preprocess.image_size {size}; use "
            f"an image_size of {' or '.join(map(str, fitting))}."
        )
    if init_temperature <= 0:
        raise ConfigError(
            f"loss.init_temperature: {init_temperature} is not above 0; CLIP's is 0.07."
        )
    _check_memory(config, preprocess, len(tokenizer))
    # Separate configs each time: transformers shares and changes what it is given.
    text = CLIPTextConfig(
        **_tower("model.text", config.text),
        hidden_act=config.activation,
        projection_dim=config.embed_dim,
        vocab_size=len(tokenizer),
        max_position_embeddings=preprocess.context_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        **_tower("model.vision", config.vision),
        hidden_act=config.activation,
        projection_dim=config.embed_dim,
        image_size=size,
        patch_size=patch,
    )
    return CLIPConfig(
        text_config=text.to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=config.embed_dim,
        logit_scale_init_value=math.log(1 / init_temperature),
    )


def _check_memory(config: ModelConfig, preprocess: PreprocessConfig, vocabulary: int) -> None:
    """Refuses a model that this machine cannot hold, before it tries to."""
    if not hasattr(os, "sysconf"):  # Windows
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    text, vision = config.text, config.vision
    parts: dict[str, float] = {
        "preprocess.context_length": text.width * preprocess.context_length,
        "preprocess.image_size": vision.width * (preprocess.image_size / vision.patch_size) ** 2,
        "model.vision.patch_size": 3 * vision.width * vision.patch_size**2,
        "preprocess.vocab_size": text.width * vocabulary,
        "model.embed_dim": config.embed_dim * (text.width + vision.width),
    }
    for name, tower in (("vision", vision), ("text", text)):
        layers = tower.layers * tower.width**2
        parts[f"model.{name}.mlp_ratio"] = 2 * tower.mlp_ratio * layers
        parts[f"model.{name}"] = 4 * layers
    weights = 4 * sum(parts.values()) / 2**30  # GiB of float32
    if weights > memory:
        raise ConfigError(
            f"{max(parts, key=lambda key: parts[key])}: the weights of the model would take "
            f"{weights:,.4g} GiB, most of it by this, and this machine has {memory:.0f} GiB; make "
            "it smaller"
        )


def _tower(key: str, tower: TowerConfig) -> dict[str, int | float]:
    """The sizes of one tower in transformers' words."""
    _at_least(f"{key}.width", tower.width, 1)
    _at_least(f"{key}.layers", tower.layers, 1)
    if not 0 <= tower.dropout < 1:
        raise ConfigError(f"{key}.dropout: {tower.dropout} is no probability below 1.")
    heads = tower.heads
    if heads is None:
        if tower.width % 64:
            raise ConfigError(
                f"{key}.width: {tower.width} does not divide into heads of 64; use "
                f"{(tower.width // 64 + 1) * 64}, or give {key}.heads."
            )
        heads = tower.width // 64
    elif heads < 1 or tower.width % heads:
        raise ConfigError(f"{key}.heads: {heads} does not divide {key}.width {tower.width}.")
    return {
        "hidden_size": tower.width,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": heads,
        "intermediate_size": round(tower.width * tower.mlp_ratio),
        "attention_dropout": tower.dropout,
    }


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{key}: {value} is less than {least}.")


def _end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends each text, which CLIPModel pools at its first occurrence."""
    name = tokenizer.name_or_path or type(tokenizer).__name__
    ids: list[int] = tokenizer("a")["input_ids"]
    end = ids[-1]
    if end not in tokenizer.all_special_ids or end in ids[:-1]:
        raise ConfigError(
            f"preprocess.tokenizer: {name} does not end a text with a token kept for that, which "
            "CLIP pools; name another, or leave the key out to train one."
        )
    if end == 2:
        # CLIPModel takes 2 for the mark of old checkpoints and pools the largest id instead.
        raise ConfigError(
            f"preprocess.tokenizer: the end token of {name} has the id 2, for which CLIPModel "
            "pools another token; name another, or leave the key out to train one."
        )
    return end


def _set_end_token(backbone: CLIPModel, end: int) -> None:
    """Old checkpoints, OpenAI's among them, name 2 as their end token: see ``_end_token_id``."""
    backbone.config.text_config.eos_token_id = end
    backbone.text_model.config.eos_token_id = end
    backbone.text_model.eos_token_id = end


def _check_fit(
    backbone: CLIPModel,
    name: str,
    preprocess: PreprocessConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    text, vision = backbone.config.text_config, backbone.config.vision_config
    own = preprocess.tokenizer == name
    reason = why_unfit(tokenizer, text_tower(backbone.config), preprocess.tokenizer or name)
    if reason and own:
        raise ConfigError(
            f"model.pretrained: {name}: its tokenizer does not fit the model: {reason}; copy the "
            "tokenizer's files (tokenizer.json, tokenizer_config.json) from where the model comes "
            "from, or set preprocess.tokenizer to a folder that has them"
        )
    if len(tokenizer) != text.vocab_size:
        raise ConfigError(
            f"preprocess.tokenizer: it has {len(tokenizer)} tokens, model.pretrained {name} has "
            f"{text.vocab_size}; set preprocess.tokenizer: {name}"
        )
    if not own and _other_vocabulary(name, text_tower(backbone.config), tokenizer):
        raise ConfigError(
            f"preprocess.tokenizer: its tokens have other ids than those model.pretrained {name} "
            f"was trained with; set preprocess.tokenizer: {name}"
        )
    if reason:
        raise ConfigError(
            f"preprocess.tokenizer: it does not fit model.pretrained {name}: {reason}; name the "
            "tokenizer that the model was trained with"
        )
    if vision.image_size != preprocess.image_size:
        raise ConfigError(
            f"preprocess.image_size: {preprocess.image_size} is not the {vision.image_size} of "
            f"model.pretrained {name}; set preprocess.image_size: {vision.image_size}"
        )
    if preprocess.context_length > text.max_position_embeddings:
        raise ConfigError(
            f"preprocess.context_length: {preprocess.context_length} is more than the "
            f"{text.max_position_embeddings} of model.pretrained {name}."
        )


def _other_vocabulary(name: str, tower: TextTower, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model has a tokenizer, and another one: one of the same size would be taken
    in silence, and every word would mean another."""
    try:
        own = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception:  # a model may come without one
        return False
    # What is made of a folder without tokenizer is none.
    fits = why_unfit(own, tower, name) is None
    return bool(fits and own.get_vocab() != tokenizer.get_vocab())

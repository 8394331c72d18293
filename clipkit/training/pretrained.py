"""``model.pretrained`` → a config that says what the model has, or the sentence that says why
training cannot start from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from clipkit.config import Config, PreprocessConfig
from clipkit.config.effects import refuse_others
from clipkit.config.schema import ForeignPreprocess
from clipkit.errors import CheckpointError, ConfigError
from clipkit.models import load_preprocess
from clipkit.models.kinds import foreign_hint, model_folder, why_not_trained
from clipkit.models.pretrained import bias_of, load_config


def resolve_pretrained(config: Config) -> Config:
    """With ``model.pretrained``, its own folder, preprocessing and tokenizer; else as it is.

    Raises:
        ConfigError: training cannot start from this kind of model, or the config asks for another
            preprocessing or other sizes than the weights have.
        CheckpointError: the model cannot be read.
    """
    if config.model.pretrained is None:
        return config
    try:
        name = model_folder(config.model.pretrained)
        if reason := why_not_trained(name):
            raise ConfigError(f"model.pretrained: {name}: {reason}")
        own = load_config(name)
        if own.model_type != "clip":
            raise ConfigError(f"model.pretrained: {name}: {foreign_hint(own.model_type)}")
        preprocess = load_preprocess(name)
    except CheckpointError as error:
        raise CheckpointError(f"model.pretrained: {error}") from error
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, pretrained=name))
    if isinstance(preprocess, ForeignPreprocess):
        raise ConfigError(
            f"model.pretrained: {name} has {preprocess.interpolation} resizing, where training has "
            "bicubic; it can be used (clipkit.load, embed, eval), not trained"
        )
    refuse_others(config, _own_values(config, own))
    return dataclasses.replace(config, preprocess=_preprocess(config, name, preprocess))


def _preprocess(config: Config, name: str, theirs: PreprocessConfig) -> PreprocessConfig:
    default = PreprocessConfig()
    resolved = {}
    for field in dataclasses.fields(PreprocessConfig):
        asked, own = getattr(config.preprocess, field.name), getattr(theirs, field.name)
        if field.name == "tokenizer":
            own = asked or own or name
        elif asked not in (getattr(default, field.name), own) and field.name != "vocab_size":
            raise ConfigError(
                f"preprocess.{field.name}: {asked}, but {name} was trained with {own}; leave it out"
            )
        resolved[field.name] = own
    return PreprocessConfig(**resolved)


def _own_values(config: Config, own: Any) -> dict[str, Any]:
    """Values that a CLIP keeps of its own, by the keys that would set them in a new model."""
    values: dict[str, Any] = {
        "model.embed_dim": own.projection_dim,
        "model.activation": own.text_config.hidden_act,
        "model.vision.patch_size": own.vision_config.patch_size,
        "loss.init_temperature": None,
    }
    for name, tower in (("vision", own.vision_config), ("text", own.text_config)):
        values |= {
            f"model.{name}.width": tower.hidden_size,
            f"model.{name}.layers": tower.num_hidden_layers,
            f"model.{name}.heads": tower.num_attention_heads,
            f"model.{name}.mlp_ratio": tower.intermediate_size / tower.hidden_size,
            f"model.{name}.dropout": tower.attention_dropout,
        }
    if config.loss.kind == "sigmoid":
        bias = bias_of(own, str(config.model.pretrained))
        values |= {} if bias is None else {"loss.init_bias": bias}
    return values

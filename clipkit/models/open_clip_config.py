"""``open_clip_config.json`` ↔ transformers' CLIPConfig and how images and texts are made.

Every setting is looked at: what would change a number and is not reproduced is refused, and so
is what is not known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import CLIPConfig

from clipkit.config.schema import ForeignPreprocess, PreprocessConfig
from clipkit.errors import CheckpointError
from clipkit.hub import first_line
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.kinds import OPEN_CLIP_CONFIG
from clipkit.models.processor import triple


@dataclass(frozen=True)
class OpenClipConfig:
    """What an ``open_clip_config.json`` says.

    Attributes:
        clip: the same towers in transformers' words.
        preprocess: how images and texts become tensors.
        pools_end: the id of the token that is pooled; None: the greatest id of a text.
        has_bias: whether there is a ``logit_bias``.
        own_tokenizer: whether the tokenizer is that of the folder; else OpenAI's.
        clean: what is done to a text first: ``lower``, ``whitespace`` or ``canonicalize``.
    """

    clip: CLIPConfig
    preprocess: ForeignPreprocess
    pools_end: int | None
    has_bias: bool
    own_tokenizer: bool
    clean: str


def read_config(folder: Path) -> OpenClipConfig:
    """Reads and checks ``open_clip_config.json``.

    Raises:
        CheckpointError: it is broken, or asks for what clipkit does not have.
    """
    path = folder / OPEN_CLIP_CONFIG
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        model, pixels = dict(tree["model_cfg"]), dict(tree.get("preprocess_cfg") or {})
        vision, text = dict(model["vision_cfg"]), dict(model["text_cfg"])
        return _convert(path, model, vision, text, pixels)
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a config of open_clip ({first_line(error)}); copy or download it again."
        ) from error


def describe(model: DualEncoder, preprocess: PreprocessConfig) -> dict[str, Any]:
    """The content of ``open_clip_config.json`` for a model whose tokenizer lies in the same
    folder; the way back of ``read_config``.

    Args:
        model: whose towers are told.
        preprocess: how its images are made.

    Raises:
        CheckpointError: open_clip has no such activation.
    """
    config = model.backbone.config
    activations = {config.vision_config.hidden_act, config.text_config.hidden_act}
    quick = activations == {"quick_gelu"}
    if not quick and not activations <= set(_ACTIVATIONS):
        raise CheckpointError(
            f"the towers have {' and '.join(sorted(activations))}, where a model of open_clip has "
            f"quick_gelu in both, or {' or '.join(_ACTIVATIONS)}; it cannot be exported there."
        )

    def tower(own: Any) -> dict[str, Any]:
        sizes = {
            "width": own.hidden_size,
            "layers": own.num_hidden_layers,
            "mlp_ratio": _ratio(own.intermediate_size, own.hidden_size),
        }
        if own.layer_norm_eps != _EPS:
            sizes["norm_kwargs"] = {"eps": own.layer_norm_eps}
        if not quick and _ACTIVATIONS[own.hidden_act]:
            sizes["act_kwargs"] = _ACTIVATIONS[own.hidden_act]
        return sizes

    vision, text = config.vision_config, config.text_config
    pool: dict[str, Any] = {"pool_type": "eos", "eos_id": text.eos_token_id}
    if text.eos_token_id == 2:  # of old files of transformers, who mean the greatest id
        pool = {"pool_type": "argmax"}
    model_cfg: dict[str, Any] = {
        "embed_dim": model.embed_dim,
        "quick_gelu": quick,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            **tower(vision),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
            "hf_tokenizer_name": ".",  # what lies in the folder is taken, whatever the name
            **pool,
            **tower(text),
        },
    }
    if model.logit_bias is not None:
        model_cfg["init_logit_bias"] = float(model.logit_bias.detach())
    interpolation = (
        preprocess.interpolation if isinstance(preprocess, ForeignPreprocess) else "bicubic"
    )
    preprocess_cfg = {
        "size": preprocess.image_size,
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": interpolation,
        "resize_mode": "shortest" if preprocess.resize == "crop" else "squash",
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}


_EPS = 1e-5  # of open_clip's layer norms, where nothing is said
_ACTIVATIONS: dict[str, dict[str, str]] = {
    "gelu": {},
    "gelu_pytorch_tanh": {"approximate": "tanh"},
}


# What is read of each part of the config. In the next table, what else may stand there: values
# with which it changes nothing; an empty tuple: none of them does.
_READ = {
    "model_cfg": {
        "embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text", "init_logit_bias",
    },
    "vision_cfg": {
        "image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "act_kwargs",
        "norm_kwargs",
    },
    "text_cfg": {
        "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "act_kwargs",
        "norm_kwargs", "pool_type", "eos_id", "hf_tokenizer_name", "tokenizer_kwargs",
    },
    "preprocess_cfg": {"size", "mean", "std", "interpolation", "resize_mode"},
    "tokenizer_kwargs": {"clean"},
}  # fmt: skip
_LAYERS: dict[str, tuple[Any, ...]] = {
    "ls_init_value": (None,),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
}
_ANY = object()  # no value changes an embedding
_HARMLESS: dict[str, dict[str, Any]] = {
    "model_cfg": {
        "multimodal_cfg": (None,),
        "init_logit_scale": _ANY,
        "nonscalar_logit_scale": _ANY,
        "output_dict": _ANY,
    },
    "vision_cfg": {
        **_LAYERS,
        "timm_model_name": (None, ""),
        "attentional_pool": (False,),
        "no_ln_pre": (False,),
        "pool_type": ("tok",),
        "pos_embed_type": ("learnable", "sin_cos_2d"),  # in the weights, both of them
        "final_ln_after_pool": _ANY,  # a norm goes token by token
        "patch_dropout": _ANY,  # in training only
        "output_tokens": _ANY,
        "attn_pooler_queries": _ANY,
        "attn_pooler_heads": _ANY,
        **dict.fromkeys(
            ("timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias"), _ANY
        ),
        **dict.fromkeys(("timm_drop", "timm_drop_path"), _ANY),
    },
    "text_cfg": {
        **_LAYERS,
        "hf_model_name": (None, ""),
        "embed_cls": (False,),
        "no_causal_mask": (False,),
        "proj_bias": (False,),
        "proj_type": ("linear",),
        "tokenizer_mode": (None, ""),
        "final_ln_after_pool": _ANY,
        "pad_id": _ANY,  # causal: what follows the end is not seen
        "output_tokens": _ANY,
        **dict.fromkeys(("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"), _ANY),
    },
    "preprocess_cfg": {"mode": ("RGB",), "fill_color": _ANY},
    "tokenizer_kwargs": {"reduction_mask": ("",), "strip_sep_token": (False,)},
}


def _check(path: Path, part: str, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if key in _READ[part]:
            continue
        allowed = _HARMLESS[part].get(key, ())
        if allowed is _ANY or value in allowed:
            continue
        raise CheckpointError(
            f"{path}: {part}.{key} is {json.dumps(value)[:80]}, which clipkit does not have; it "
            "loads towers as those of CLIP's vision transformers, and this model's embeddings "
            "would not be its own."
        )


def _convert(
    path: Path,
    model: dict[str, Any],
    vision: dict[str, Any],
    text: dict[str, Any],
    pixels: dict[str, Any],
) -> OpenClipConfig:
    words = dict(text.get("tokenizer_kwargs") or {})
    parts = {
        "vision_cfg": vision,
        "text_cfg": text,
        "model_cfg": model,
        "preprocess_cfg": pixels,
        "tokenizer_kwargs": words,
    }
    for part, values in parts.items():
        _check(path, part, values)
    quick = bool(model.get("quick_gelu", False))
    dim = int(model["embed_dim"])
    size = _square(path, "vision_cfg.image_size", vision.get("image_size", 224))
    if isinstance(vision.get("layers", 12), list):
        raise CheckpointError(
            f"{path}: the image tower is a ResNet; clipkit loads vision transformers of open_clip."
        )
    width = int(vision.get("width", 768))
    vocab_size = int(text.get("vocab_size", 49408))
    clip = CLIPConfig(
        projection_dim=dim,
        vision_config={
            **_tower(path, "vision_cfg", vision, width, quick),
            "num_attention_heads": width // int(vision.get("head_width", 64)),
            "image_size": size,
            "patch_size": _square(path, "vision_cfg.patch_size", vision.get("patch_size", 16)),
            "projection_dim": dim,
        },
        text_config={
            **_tower(path, "text_cfg", text, int(text.get("width", 512)), quick),
            "num_attention_heads": int(text.get("heads", 8)),
            "vocab_size": vocab_size,
            "max_position_embeddings": int(text.get("context_length", 77)),
            "projection_dim": dim,
            # transformers' own are of OpenAI's tokenizer: it warns where there are no such tokens.
            **({} if vocab_size >= 49408 else {"bos_token_id": None, "eos_token_id": None}),
        },
    )
    own = bool(text.get("hf_tokenizer_name"))
    return OpenClipConfig(
        clip=clip,
        preprocess=_preprocess(path, pixels, size, clip),
        pools_end=_pools_end(path, text),
        has_bias=model.get("init_logit_bias") is not None,
        own_tokenizer=own,
        clean=str(words.get("clean", "whitespace" if own else "lower")),
    )


def _tower(
    path: Path, part: str, values: dict[str, Any], width: int, quick: bool
) -> dict[str, Any]:
    """What both towers have, in the words of transformers."""
    kwargs = values.get("act_kwargs") or {}
    activation = next((name for name, each in _ACTIVATIONS.items() if each == kwargs), None)
    norms = values.get("norm_kwargs") or {}
    if activation is None or (quick and kwargs) or not set(norms) <= {"eps"}:
        raise CheckpointError(
            f"{path}: {part} asks for an activation {json.dumps(kwargs)} and norms "
            f"{json.dumps(norms)}, which clipkit does not have."
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": int(values.get("layers", 12)),
        "intermediate_size": int(width * float(values.get("mlp_ratio", 4.0))),
        "hidden_act": "quick_gelu" if quick else activation,
        "layer_norm_eps": float(norms.get("eps", _EPS)),
    }


def _pools_end(path: Path, text: dict[str, Any]) -> int | None:
    pool, end = text.get("pool_type", "argmax"), int(text.get("eos_id", 2))
    # A CLIPModel takes 2 for "the greatest id", and so for another token than this.
    if pool not in ("argmax", "eos") or (pool == "eos" and end == 2):
        what = f"{pool} of id {end}" if pool == "eos" else pool
        raise CheckpointError(
            f"{path}: text_cfg.pool_type is {what}, where clipkit can only take the end token."
        )
    return end if pool == "eos" else None


def _preprocess(
    path: Path, pixels: dict[str, Any], size: int, clip: CLIPConfig
) -> ForeignPreprocess:
    default = ForeignPreprocess()
    mode = pixels.get("resize_mode") or "shortest"
    interpolation = pixels.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash"):
        raise CheckpointError(
            f"{path}: preprocess_cfg.resize_mode is {mode}, where clipkit can only do shortest or "
            "squash; its embeddings would not be the model's own."
        )
    if interpolation not in ("bicubic", "bilinear", "random"):
        raise CheckpointError(
            f"{path}: preprocess_cfg.interpolation is {interpolation}, where clipkit can only do "
            "bicubic or bilinear; its embeddings would not be the model's own."
        )
    return ForeignPreprocess(
        image_size=size,  # open_clip takes the tower's as well, whatever the config says
        resize="squash" if mode == "squash" else "crop",
        mean=triple(str(path), "mean", pixels.get("mean") or default.mean),
        std=triple(str(path), "std", pixels.get("std") or default.std),
        vocab_size=clip.text_config.vocab_size,
        context_length=clip.text_config.max_position_embeddings,
        # Where it is drawn at random, it is bicubic outside training.
        interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
        library="open_clip",
    )


def _square(path: Path, key: str, value: Any) -> int:
    edges = list(value) if isinstance(value, list) else [value, value]
    if len(edges) != 2 or edges[0] != edges[1]:
        raise CheckpointError(f"{path}: {key} is {value}, where clipkit takes squares only.")
    return int(edges[0])


def _ratio(inner: int, width: int) -> float:
    """What open_clip's ``int(width * ratio)`` makes ``inner`` of."""
    ratio = inner / width
    return ratio if int(width * ratio) == inner else (inner + 0.5) / width

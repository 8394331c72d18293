"""Random models as open_clip and transformers make them, saved by their own means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTImageProcessor,
)

from clipkit.data.tokenize import train_tokenizer

WORDS = ("a", "cat", "dog", "house", "two", "of", "the", "photo", "red", "green", "!", "一只猫")
TEXTS = ["a photo of the cat", "two dogs, a RED house!", "一只猫", "cat " * 40]

VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
_TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def shake(model: torch.nn.Module, seed: int = 0) -> None:
    """No two inputs are alike afterwards, and no bias or norm is 0 or 1.

    Weights are shaken by what their width bears: twelve layers whose outputs grow from one to the
    next would make a rounding of 1e-7 a difference of 1e-5, in whatever library.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "logit" not in name:
                width = weight[0].numel() if weight.ndim > 1 else 32
                weight.add_(0.6 / width**0.5 * torch.randn(weight.shape, generator=generator))


def save_open_clip(
    folder: Path,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any] | None = None,
    *,
    pickled: bool = False,
) -> Path:
    from open_clip.model import CLIP, CustomTextCLIP

    folder.mkdir(parents=True)
    torch.manual_seed(0)
    sizes = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    model = (CustomTextCLIP if model_cfg.get("custom_text") else CLIP)(**sizes)
    shake(model)
    if pickled:
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    else:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    tree = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(tree))
    return folder


def save_clip(
    folder: Path, *, activation: str = "gelu", tower: dict[str, int] | None = None, size: int = 32
) -> Path:
    tokenizer = train_tokenizer(WORDS * 4, vocab_size=600, context_length=16)
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    sizes = tower or _TOWER
    config = CLIPConfig(
        text_config={**sizes, **text, **ends, "hidden_act": activation},
        vision_config={**sizes, "image_size": size, "patch_size": 32 if tower else 8}
        | {"hidden_act": activation},
        projection_dim=24,
    )
    image = CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}
    )
    return _save(CLIPModel(config), folder, image, tokenizer)


def save_siglip(folder: Path, *, second: bool = False, tower: dict[str, int] | None = None) -> Path:
    """``second``: as SigLIP 2 of one resolution comes, bilinear and with padding on the left."""
    size = 224 if tower else 32
    sizes, length = tower or _TOWER, 64 if tower else 16
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 3}
    text = {"vocab_size": 64, "max_position_embeddings": length}
    config = SiglipConfig(
        text_config={**sizes, **text, **ends, "projection_size": sizes["hidden_size"]},
        vision_config={**sizes, "image_size": size, "patch_size": 32 if tower else 8},
    )
    model = SiglipModel(config)
    model.logit_scale.data.fill_(2.3)
    model.logit_bias.data.fill_(-3.0)
    image = SiglipImageProcessor(size={"height": size, "width": size}, resample=2 if second else 3)
    tokenizer = _tokenizer(["$A", "<eos>"], length, ["input_ids"])
    tokenizer.padding_side = "left" if second else "right"
    return _save(model, folder, image, tokenizer)


def save_vision_text(folder: Path, *, tower: dict[str, int] | None = None) -> Path:
    """A ViT and a BERT."""
    size = 224 if tower else 32
    sizes, length = tower or _TOWER, 64 if tower else 16
    vision = ViTConfig(**sizes, image_size=size, patch_size=32 if tower else 8)
    text = BertConfig(**sizes, vocab_size=64, max_position_embeddings=length)
    return save_dual(folder, vision, text, size=size, length=length)


def save_dual(folder: Path, vision: Any, text: Any, *, size: int = 32, length: int = 16) -> Path:
    """A VisionTextDualEncoder of two towers."""
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    image = ViTImageProcessor(size={"height": size, "width": size})
    tokenizer = _tokenizer(["<s>", "$A", "<eos>"], length, ["input_ids", "attention_mask"])
    return _save(VisionTextDualEncoderModel(config), folder, image, tokenizer)


def _save(model: Any, folder: Path, image: Any, tokenizer: Any) -> Path:
    shake(model)
    for part in (model, image, tokenizer):
        part.save_pretrained(folder)
    return folder


def _tokenizer(
    template: Sequence[str], length: int, inputs: Sequence[str]
) -> PreTrainedTokenizerFast:
    """A token a word."""
    ids = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", "<s>", *WORDS])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[("<s>", 3), ("<eos>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=length,
        model_input_names=list(inputs),
    )

"""A DualEncoder ↔ a Hugging Face folder, which others load with none of our code.

The folder serves transformers' AutoModel, AutoProcessor and pipelines, and SentenceTransformer.
Only safetensors and JSON are read: no pickle, and no code from a folder.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoImageProcessor, CLIPModel
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import logging as transformers_logging

from clipkit.atomic import put_in_place
from clipkit.config.schema import PreprocessConfig
from clipkit.errors import CheckpointError
from clipkit.hub import first_line
from clipkit.models.card import default_card
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.fit import starts_after_padding, vocabulary_sha256
from clipkit.models.kinds import LOADED, check_folder, convert_hint, foreign_hint, why_not
from clipkit.models.processor import image_processor, read_processor

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    model: DualEncoder,
    folder: Path,
    preprocess: PreprocessConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    card: str | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes the model with all it needs to embed; replaces a model that is there.

    It is written aside and renamed, so that ``folder`` is at no time half a model.

    Args:
        folder: the folder to make; its parents are made too.
        preprocess: how the model's images and texts were made into tensors.
        tokenizer: the one it was trained with.
        card: the text of README.md; none: a short one is written.
        weights: of the backbone, by name; none: its own, which must be whole.

    Raises:
        CheckpointError: ``folder`` is there and is no model.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise CheckpointError(
            f"{folder}: it holds files but no model (no config.json), and would be replaced; "
            "name another folder or empty this one."
        )
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    # A CLIPModel has no place for it among its weights.
    config, bias = model.backbone.config, model.logit_bias
    config.logit_bias = None if bias is None else float(bias.detach())
    config.tokenizer_sha256 = vocabulary_sha256(tokenizer)
    try:
        with quiet():
            model.backbone.save_pretrained(aside, state_dict=weights)
        image_processor(preprocess).save_pretrained(aside)
        tokenizer_for_saving(tokenizer, preprocess).save_pretrained(aside)
        for name, content in _SENTENCE_TRANSFORMER.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        text = card if card is not None else default_card(model, preprocess, folder.name)
        (aside / "README.md").write_text(text, encoding="utf-8")
        put_in_place(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def load_model(
    folder_or_name: str, *, attention: str = "auto", dtype: torch.dtype | None = None
) -> DualEncoder:
    """Any CLIP model in a Hugging Face folder or on the hub; on the CPU, in evaluation mode.

    Args:
        folder_or_name: a folder that ``save_model`` wrote or any other, or a hub name.
        attention: ``auto``, ``eager`` or ``sdpa``; see ``resolve_attention``.
        dtype: of the towers; none: float32. ``logit_scale`` is float32 always.

    Raises:
        CheckpointError: nothing there, no CLIP model, weights missing or pickled, or
            preprocessing that cannot be reproduced exactly.
    """
    preprocess = load_preprocess(folder_or_name)
    backbone = load_backbone(folder_or_name, dtype=dtype)
    check_size(folder_or_name, preprocess, backbone.config.vision_config)
    bias = bias_of(backbone.config, folder_or_name)
    model = DualEncoder(backbone.eval(), preprocess.mean, preprocess.std, init_bias=bias)
    model.attention = attention
    return model


def bias_of(config: PreTrainedConfig, folder_or_name: str) -> float | None:
    """What a model learned with a bias of the logits keeps in its config, or None.

    Raises:
        CheckpointError: it is no number.
    """
    bias = getattr(config, "logit_bias", None)
    if bias is not None and not isinstance(bias, int | float):
        raise CheckpointError(f"{folder_or_name}: config.json: logit_bias is {bias!r}, no number")
    return bias


def load_backbone(folder_or_name: str, *, dtype: torch.dtype | None = None) -> CLIPModel:
    """transformers' CLIPModel with every weight from the folder; see ``load_model``."""
    config = load_config(folder_or_name)
    if config.model_type != "clip":
        raise CheckpointError(f"{folder_or_name}: {foreign_hint(config.model_type)}")
    return load_weights(CLIPModel, folder_or_name, config, dtype=dtype)


def load_config(folder_or_name: str) -> PreTrainedConfig:
    """The config of a model whose folder has config and weights.

    Raises:
        CheckpointError: nothing there, weights missing or pickled, or another kind of model.
    """
    check_folder(folder_or_name)
    config = read_auto_config(folder_or_name)
    if config.model_type not in LOADED:
        raise CheckpointError(f"{folder_or_name}: {why_not(config.model_type)}")
    return config


def read_auto_config(folder_or_name: str) -> PreTrainedConfig:
    """The config of a model of transformers, whatever its kind.

    Raises:
        CheckpointError: there is none, or it is broken.
    """
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder_or_name, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{folder_or_name}: no model could be loaded ({first_line(error)}); name a folder, "
            "or a hub repository where there is a network."
        ) from error


def load_weights(
    kind: type[PreTrainedModel],
    folder_or_name: str,
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype | None = None,
) -> Any:
    """A model of transformers with every weight from the folder; see ``load_model``."""
    try:
        with quiet():
            backbone, report = kind.from_pretrained(
                folder_or_name,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, each by its name
                trust_remote_code=False,
            )
    except Exception as error:  # transformers and safetensors raise many kinds
        if not Path(folder_or_name).is_dir() and "safetensors" in first_line(error):
            raise CheckpointError(f"{folder_or_name}: {convert_hint(folder_or_name)}") from error
        raise CheckpointError(
            f"{folder_or_name}: the weights cannot be loaded ({first_line(error)}); "
            "copy or download the folder again."
        ) from error
    check_report(folder_or_name, kind, report)
    return round_weights(backbone, dtype)


def check_report(where: str, kind: type[PreTrainedModel], report: dict[str, Any]) -> None:
    """Refuses weights that are not those of the config: transformers would go on with random ones.

    Args:
        where: the folder, for messages.
        kind: the class that was loaded.
        report: its ``output_loading_info``.

    Raises:
        CheckpointError: names a weight that is missing, too much, or of another shape.
    """
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, found, wanted = wrong[0]
        raise CheckpointError(
            f"{where}: {len(wrong)} of the weights have another shape than config.json says, "
            f"{name} among them ({tuple(found)}, not {tuple(wanted)}); copy or download both "
            "again, from one place."
        )
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{where}: {len(missing)} of the weights are missing, {missing[0]} among "
            f"them; is it a whole {kind.__name__}? Copy or download the folder again."
        )
    if unexpected := sorted(report["unexpected_keys"]):
        raise CheckpointError(
            f"{where}: config.json has no place for {len(unexpected)} of the weights, "
            f"{unexpected[0]} among them, so they would be left out; copy or download both again, "
            "from one place."
        )


def round_weights(backbone: Any, dtype: torch.dtype | None) -> Any:
    """The weights in another dtype, but for the scale and the bias of the logits."""
    if dtype is not None:
        # bf16 rounds logit_scale by up to 0.8%, and so the sharpness of every softmax.
        kept = {
            name: getattr(backbone, name).detach().clone()
            for name in ("logit_scale", "logit_bias")
            if isinstance(getattr(backbone, name, None), torch.Tensor)
        }
        backbone.to(dtype)
        for name, value in kept.items():
            getattr(backbone, name).data = value
    return backbone


def check_size(where: str, preprocess: PreprocessConfig, vision_config: Any) -> None:
    """
    Raises:
        CheckpointError: the image processor and the tower take different sizes.
    """
    size = vision_config.image_size
    if size != preprocess.image_size:
        raise CheckpointError(
            f"{where}: preprocessor_config.json makes images of {preprocess.image_size} "
            f"pixels, config.json says {size}; correct one of them."
        )


def load_preprocess(folder_or_name: str) -> PreprocessConfig:
    """How a model's images and texts are made into tensors, read from its folder.

    The tokenizer is the folder's own: ``tokenizer`` is None and ``vocab_size`` what the model
    has. The rest is what ``save_model`` was given, bit for bit.

    Raises:
        CheckpointError: nothing there, or steps other than those of ``eval_transform``.
    """
    text = load_config(folder_or_name).text_config
    try:
        with quiet():
            processor = AutoImageProcessor.from_pretrained(folder_or_name, trust_remote_code=False)
            texts = get_tokenizer_config(folder_or_name)
    except Exception as error:
        raise CheckpointError(
            f"{folder_or_name}: no image processor could be loaded{_cause(folder_or_name, error)}; "
            "the folder needs the preprocessor_config.json of the model, which says how pixels are "
            "made: copy or download it."
        ) from error
    positions = text.max_position_embeddings
    if starts_after_padding(text):
        positions -= text.pad_token_id + 1
    return read_processor(
        folder_or_name,
        processor,
        vocab_size=text.vocab_size,
        context_length=min(int(texts.get("model_max_length") or positions), positions),
    )


def _cause(folder_or_name: str, error: Exception) -> str:
    names = ("preprocessor_config.json", "processor_config.json")
    folder = Path(folder_or_name)
    if folder.is_dir() and not any((folder / name).is_file() for name in names):
        return ""  # of a missing file, transformers says a paragraph
    return f" ({first_line(error)})"


# What SentenceTransformer (6 and later) reads beside the files of transformers.
_SENTENCE_TRANSFORMER: dict[str, Any] = {
    "modules.json": [
        {
            "idx": 0,
            "name": "0",
            "path": "",
            "type": "sentence_transformers.base.modules.transformer.Transformer",
        },
        {
            "idx": 1,
            "name": "1",
            "path": "1_Normalize",
            "type": "sentence_transformers.base.modules.normalize.Normalize",
        },
    ],
    "sentence_bert_config.json": {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
            "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
        },
        "module_output_name": "sentence_embedding",
    },
    "config_sentence_transformers.json": {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
    },
    "1_Normalize/config.json": {"module_input_name": "sentence_embedding"},
}


def tokenizer_for_saving(
    tokenizer: PreTrainedTokenizerBase, preprocess: PreprocessConfig
) -> PreTrainedTokenizerBase:
    """A copy that, loaded by others, cuts and pads and treats special tokens as ours."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = preprocess.context_length
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs.update(
        model_max_length=preprocess.context_length,
        split_special_tokens=True,
        padding_side="right",
        truncation_side="right",
    )
    for passing in ("is_local", "local_files_only", "_commit_hash"):  # of how it was loaded
        tokenizer.init_kwargs.pop(passing, None)
    return tokenizer


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of transformers, which have their say as errors."""
    bars, verbosity = (
        transformers_logging.is_progress_bar_enabled(),
        transformers_logging.get_verbosity(),
    )
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()

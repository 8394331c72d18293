"""An open_clip checkpoint folder → a DualEncoder; names and layouts of weights, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from clipkit.errors import CheckpointError
from clipkit.hub import first_line
from clipkit.models.dual_encoder import DualEncoder
from clipkit.models.kinds import OPEN_CLIP_CONFIG
from clipkit.models.open_clip_config import OpenClipConfig
from clipkit.models.pickled import read_pickled
from clipkit.models.pretrained import round_weights

# The names that open_clip looks for first, in its order.
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def load_open_clip(
    folder: Path, config: OpenClipConfig, end: int, *, dtype: torch.dtype | None = None
) -> DualEncoder:
    """The model, on the CPU, in evaluation mode.

    Args:
        folder: of the checkpoint.
        config: what ``read_config`` gave.
        end: the id of the tokenizer's end token.
        dtype: of the weights; none: float32.

    Raises:
        CheckpointError: weights are missing, broken, of another shape, or need code to be read.
    """
    config.clip.text_config.eos_token_id = end
    weights = _read_weights(folder)
    bias = weights.pop("logit_bias", None)
    if (bias is not None) != config.has_bias:
        raise CheckpointError(
            f"{folder}: the weights and {OPEN_CLIP_CONFIG} do not agree on a logit_bias; copy or "
            "download the folder again."
        )
    backbone = CLIPModel._from_config(config.clip)
    try:
        backbone.load_state_dict(to_transformers(weights))
    except RuntimeError as error:
        # The first line only says that there are errors.
        reason = str(error).strip().splitlines()[1].strip()
        raise CheckpointError(
            f"{folder}: the weights are not those that {OPEN_CLIP_CONFIG} tells of "
            f"({reason[:200]}); copy or download the folder again."
        ) from error
    return DualEncoder(
        round_weights(backbone, dtype).eval(),
        config.preprocess.mean,
        config.preprocess.std,
        init_bias=None if bias is None else float(bias),
    )


def to_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names and layouts → those of a ``CLIPModel``, in float32."""
    ours: dict[str, Tensor] = {}
    for name, weight in weights.items():
        name, tensor = name.removeprefix("text."), weight.float()
        if name in _PROJECTIONS:
            ours[_PROJECTIONS[name]] = tensor.T.contiguous()
        elif ".attn.in_proj_" in name:
            for part, chunk in zip("qkv", tensor.chunk(3), strict=True):
                own = name.replace(".attn.in_proj_", f".self_attn.{part}_proj.")
                ours[_renamed(own)] = chunk.contiguous()
        elif name == "logit_scale":
            ours[name] = tensor.reshape(())
        elif name != "attn_mask":  # which old checkpoints hold, and everyone computes
            ours[_renamed(name)] = tensor
    return ours


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names and layouts of a ``CLIPModel`` → open_clip's."""
    projections = {own: name for name, own in _PROJECTIONS.items()}
    theirs: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in projections:
            theirs[projections[name]] = tensor.T.contiguous()
        elif ".self_attn.q_proj." in name:
            parts = [weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            own = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
            theirs[_renamed(own, back=True)] = torch.cat(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            theirs[_renamed(name, back=True)] = tensor.contiguous()
    return theirs


# open_clip has (width, D), for x @ weight.
_PROJECTIONS = {
    "visual.proj": "visual_projection.weight",
    "text_projection": "text_projection.weight",
}
_NAMES = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("token_embedding.", "text_model.embeddings.token_embedding."),
    ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("ln_final.", "text_model.final_layer_norm."),
)
_NAMES_IN_A_LAYER = (
    (".attn.out_proj.", ".self_attn.out_proj."),
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
)


def _renamed(name: str, *, back: bool = False) -> str:
    for theirs, ours in _NAMES:
        old, new = (ours, theirs) if back else (theirs, ours)
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for theirs, ours in _NAMES_IN_A_LAYER:
        name = name.replace(ours, theirs) if back else name.replace(theirs, ours)
    return name


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder}: there are no weights ({' or '.join(WEIGHTS)}).")
    if path.suffix != ".safetensors":
        return read_pickled(path)
    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises many kinds
        raise CheckpointError(
            f"{path}: the weights cannot be loaded ({first_line(error)}); copy or download them "
            "again."
        ) from error

"""A SigLIP or VisionTextDualEncoder folder of transformers → what a ``DualEncoder`` gives.

The forward pass is transformers' own; these models are used here, not trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import CLIPModel, SiglipModel, VisionTextDualEncoderModel

from clipkit.config.schema import PreprocessConfig
from clipkit.errors import CheckpointError
from clipkit.models.dual_encoder import DualEncoderOutput, unit_length
from clipkit.models.pretrained import check_size, load_config, load_preprocess, load_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CLASSES: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPModel,
    "siglip": SiglipModel,
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
}
# Which towers of a VisionTextDualEncoder are known to have a pooled output, so need no try.
_POOLED = ("clip_vision_model", "clip_text_model", "vit", "deit", "bert", "roberta", "xlm-roberta")


class TextLayout(NamedTuple):
    """How the text tower wants a batch, told by its tokenizer.

    Attributes:
        pad: the id of the token that fills up.
        end: the id of the end token; None where there is none.
        length: tokens that every text is filled up to; None: the longest of the batch.
        left: whether the filling stands before the text.
        masked: whether the tower is told which tokens are filling.
    """

    pad: int
    end: int | None
    length: int | None
    left: bool
    masked: bool


class ForeignEncoder(nn.Module):
    """Two towers of transformers, with normalisation of pixels before and of embeddings after.

    Args:
        backbone: a ``SiglipModel`` or ``VisionTextDualEncoderModel``.
        preprocess: mean and deviation of the pixels.
        layout: of a batch of texts.

    Attributes:
        compute_dtype: what the towers compute in, by autocast; none: that of the weights.

    Reference: SigLIP, https://arxiv.org/abs/2303.15343; LiT, https://arxiv.org/abs/2111.07991.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, backbone: PreTrainedModel, preprocess: PreprocessConfig, layout: TextLayout
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.layout = layout
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1), persistent=False)
        self.compute_dtype: torch.dtype | None = None
        self.train(backbone.training)

    def forward(
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None
    ) -> DualEncoderOutput:
        """Embeds images, texts, or both.

        Args:
            pixel_values: (B, 3, H, W), uint8 RGB, or float and already normalised.
            input_ids: (B, L) int64, padded on the right.
        """
        device, dtype = self.logit_scale.device, self.compute_dtype
        image_embeds = text_embeds = None
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            if pixel_values is not None:
                image_embeds = unit_length(self.image_features(self._normalise(pixel_values)))
            if input_ids is not None:
                text_embeds = unit_length(self.text_features(input_ids.to(device)))
        bias = None if self.logit_bias is None else self.logit_bias.float().reshape(())
        scale = self.logit_scale.float().exp().reshape(())
        return DualEncoderOutput(image_embeds, text_embeds, scale, bias)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W), normalised → (B, D), of any length."""
        features: Tensor = self.backbone.get_image_features(pixel_values=pixel_values).pooler_output
        return features

    def text_features(self, input_ids: Tensor) -> Tensor:
        """(B, L) int64, padded on the right → (B, D), of any length."""
        ids, mask = arrange(input_ids, self.layout)
        masks = {"attention_mask": mask} if self.layout.masked else {}
        features: Tensor = self.backbone.get_text_features(input_ids=ids, **masks).pooler_output
        return features

    @property
    def logit_scale(self) -> Tensor:
        """The logarithm of the scale; () or (1,)."""
        logit_scale: Tensor = self.backbone.logit_scale
        return logit_scale

    @property
    def logit_bias(self) -> Tensor | None:
        """Of the logits, for probabilities of yes or no; () or (1,)."""
        return getattr(self.backbone, "logit_bias", None)

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        config = self.backbone.config
        if config.model_type == "siglip":
            return int(config.vision_config.hidden_size)
        return int(config.projection_dim)

    def _normalise(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) in the dtype of the weights."""
        if pixel_values.dtype == torch.uint8:
            pixel_values = (pixel_values.float() / 255 - self.mean) / self.std
        return pixel_values.to(next(self.backbone.vision_model.parameters()).dtype)


def arrange(input_ids: Tensor, layout: TextLayout) -> tuple[Tensor, Tensor]:
    """(B, L) ids padded on the right → ids and mask, (B, length) each, as a tower wants them."""
    count, given = input_ids.shape
    mask = input_ids != layout.pad
    if layout.pad == layout.end:  # then the first of them is the end
        mask |= (~mask).int().cumsum(1) == 1
    length = layout.length or given
    ids = input_ids.new_full((count, length), layout.pad)
    ids[:, :given] = input_ids
    mask = torch.cat([mask, mask.new_zeros(count, length - given)], dim=1)
    if layout.left:
        shift = length - mask.sum(1, keepdim=True)  # (B, 1)
        source = (torch.arange(length, device=ids.device) - shift) % length
        ids, mask = ids.gather(1, source), mask.gather(1, source)
    return ids, mask.long()


def load_foreign(
    folder_or_name: str, tokenizer: PreTrainedTokenizerBase, *, dtype: torch.dtype | None = None
) -> ForeignEncoder:
    """The model, on the CPU, in evaluation mode.

    Args:
        folder_or_name: of a SigLIP or a VisionTextDualEncoder.
        tokenizer: the folder's, as it is.
        dtype: of the weights; none: float32.

    Raises:
        CheckpointError: see ``clipkit.models.load_model``.
    """
    config = load_config(folder_or_name)
    preprocess = load_preprocess(folder_or_name)
    check_size(folder_or_name, preprocess, config.vision_config)
    siglip = config.model_type == "siglip"
    if siglip and not getattr(config.vision_config, "vision_use_head", True):
        raise CheckpointError(
            f"{folder_or_name}: its image tower has no pooling head, so it gives no embedding."
        )
    backbone = load_weights(CLASSES[config.model_type], folder_or_name, config, dtype=dtype)
    pad = tokenizer.pad_token_id
    if pad is None:
        raise CheckpointError(
            f"{folder_or_name}: its tokenizer has no padding token; name one in "
            "tokenizer_config.json (pad_token)."
        )
    if not siglip:
        _check_pooled(folder_or_name, backbone.eval(), preprocess)
    layout = TextLayout(
        pad=int(pad),
        end=tokenizer.eos_token_id,
        # SigLIP pools the last position, whatever stands there.
        length=preprocess.context_length if siglip else None,
        left=tokenizer.padding_side == "left",
        masked="attention_mask" in tokenizer.model_input_names,
    )
    return ForeignEncoder(backbone.eval(), preprocess, layout)


@torch.inference_mode()
def _check_pooled(where: str, backbone: PreTrainedModel, preprocess: PreprocessConfig) -> None:
    """
    Raises:
        CheckpointError: a tower has no pooled output (DistilBERT has none), so transformers cannot
            run the model either.
    """
    size = preprocess.image_size
    towers: dict[str, tuple[Any, Tensor]] = {
        "text": (backbone.text_model, torch.zeros(1, 3, dtype=torch.long)),
        "image": (backbone.vision_model, torch.zeros(1, 3, size, size)),
    }
    for name, (tower, inputs) in towers.items():
        if tower.config.model_type in _POOLED:
            continue
        if getattr(tower(inputs), "pooler_output", None) is None:
            raise CheckpointError(
                f"{where}: its {name} tower ({tower.config.model_type}) has no pooled output, so "
                "neither clipkit nor transformers gets an embedding from it; train one with "
                f"another tower, such as {'bert' if name == 'text' else 'vit'}."
            )

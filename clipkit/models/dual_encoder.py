"""(pixels, token ids) → (image_embeds, text_embeds, scale): both towers in one forward.

One module with one ``forward``, because only ``forward`` gets DistributedDataParallel's hooks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel


class DualEncoderOutput(NamedTuple):
    """image_embeds and text_embeds (B, D) float32 of unit length, or None where the input was
    not given; scale () float32, the inverse temperature; bias () float32 of the logits, or
    None where the model has none."""

    image_embeds: Tensor | None
    text_embeds: Tensor | None
    scale: Tensor
    bias: Tensor | None = None


class DualEncoder(nn.Module):
    """A transformers ``CLIPModel``, with normalisation of pixels before it and of embeddings
    after it.

    Args:
        backbone: the two towers, their projections and ``logit_scale``.
        mean: of the pixels, red, green, blue, on the scale 0 to 1.
        std: the same.
        freeze: the tower that is not trained; its projection still is. A frozen tower stays
            in evaluation mode.
        init_bias: of a bias of the logits, which a loss of yes or no needs to be learned; none:
            there is none. It is no part of the backbone.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, Figure 3.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: PreTrainedModel,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        freeze: Literal["none", "vision", "text"] = "none",
        init_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.logit_bias = None if init_bias is None else nn.Parameter(torch.tensor(init_bias))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        towers = {"vision": backbone.vision_model, "text": backbone.text_model}
        # In a tuple, so that it is no second submodule.
        self._frozen = () if freeze == "none" else (towers[freeze],)
        for tower in self._frozen:
            tower.requires_grad_(False)
        self.train(backbone.training)

    def forward(
        self, pixel_values: Tensor | None = None, input_ids: Tensor | None = None
    ) -> DualEncoderOutput:
        """Embeds images, texts, or both.

        Args:
            pixel_values: (B, 3, H, W), uint8 RGB, or float and already normalised.
            input_ids: (B, L) int64, padded on the right.
        """
        image_embeds = None if pixel_values is None else self._embed_images(pixel_values)
        text_embeds = None if input_ids is None else self._embed_texts(input_ids)
        bias = None if self.logit_bias is None else self.logit_bias.float()
        return DualEncoderOutput(image_embeds, text_embeds, self.logit_scale.float().exp(), bias)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The backbone's own parameter, the logarithm of the scale; ()."""
        logit_scale: nn.Parameter = self.backbone.logit_scale
        return logit_scale

    @property
    def embed_dim(self) -> int:
        """D, the length of an embedding."""
        return int(self.backbone.config.projection_dim)

    @property
    def image_size(self) -> int:
        """H and W that the image tower takes."""
        return int(self.backbone.config.vision_config.image_size)

    @property
    def context_length(self) -> int:
        """The largest L that the text tower takes."""
        return int(self.backbone.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def clamp_scale(self, max_scale: float) -> None:
        """Keeps the scale at or below ``max_scale``, as CLIP does for a stable training
        (https://arxiv.org/abs/2103.00020, section 2.5)."""
        self.logit_scale.clamp_(max=math.log(max_scale))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for tower in self._frozen:
            tower.eval()
        return self

    def _embed_images(self, pixel_values: Tensor) -> Tensor:
        if pixel_values.dtype == torch.uint8:
            # On the device and in float32: a quarter of the bytes is moved, nothing is rounded.
            pixel_values = (pixel_values.float() / 255 - self.mean) / self.std
        return _unit_length(self.backbone.get_image_features(pixel_values).pooler_output)

    def _embed_texts(self, input_ids: Tensor) -> Tensor:
        # No attention mask: attention is causal and the first end token is pooled, so what
        # comes after it, the padding, is never seen.
        return _unit_length(self.backbone.get_text_features(input_ids).pooler_output)


def resolve_attention(attention: str, device_type: str | None = None) -> str:
    """``auto`` → ``eager`` on a CPU and ``sdpa`` elsewhere; anything else as it is.

    Args:
        attention: ``auto``, ``eager`` or ``sdpa``.
        device_type: where the model will run; none: a GPU if there is one.
    """
    if attention != "auto":
        return attention
    if device_type is None:
        gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        device_type = "gpu" if gpu else "cpu"
    return "eager" if device_type == "cpu" else "sdpa"


def _unit_length(features: Tensor) -> Tensor:
    """(B, D) → (B, D) float32 of unit length, outside autocast."""
    # float32: bf16 cosines, times a scale of 100, are off by up to 0.4.
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=-1)

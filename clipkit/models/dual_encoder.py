"""(pixels, token ids) → (image_embeds, text_embeds, scale): both towers in one forward.

One module with one ``forward``, because only ``forward`` gets DistributedDataParallel's hooks.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipkit.models.attention import ImageLayout, TextLayout, resolve_attention
from clipkit.models.depth import PlacedParameter, TowerParts, place_parameters
from clipkit.models.layers import EncoderLayer, linear, norm
from clipkit.models.packing import PackedTexts, pack_texts
from clipkit.models.plain import call, has_hooks, is_plain

if TYPE_CHECKING:
    from typing import Self

    from transformers import PreTrainedModel


# Modules of the backbone that hold others, and that only transformers' own forward calls.
_HOLDERS = (
    "",
    *(f"{tower}{part}" for tower in ("vision_model", "text_model")
      for part in ("", ".embeddings", ".encoder")),
)  # fmt: skip


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

    Attributes:
        compute_dtype: what the towers compute in, weights rounded to it as they are used; none:
            that of the weights. Embeddings are float32 always.
        attention: ``auto``, ``eager`` or ``sdpa``; see ``resolve_attention``.
        patch_dropout: this share of an image's patches is left out while training (FLIP,
            https://arxiv.org/abs/2212.00794, section 3).

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
        for layer in self.blocks():
            layer.__class__ = EncoderLayer
        self.compute_dtype: torch.dtype | None = None
        self.attention = "auto"
        self.patch_dropout = 0.0
        self.compiled = False
        self._told: set[str] = set()  # modules whose hooks were said to have no effect
        self.train(backbone.training)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | PackedTexts | None = None,
    ) -> DualEncoderOutput:
        """Embeds images, texts, or both.

        Args:
            pixel_values: (B, 3, H, W), uint8 RGB, or float and already normalised. H and W are
                multiples of the patch size; positions are interpolated where they are not the
                model's own.
            input_ids: (B, L) int64, padded on the right; or what ``pack`` made of them.
        """
        device = self.logit_scale.device
        self._tell_of_hooks()
        image_embeds = text_embeds = None
        # Where there is a dtype to compute in, autocast (accelerate's, with fp16) is not wanted.
        autocast = self.compute_dtype is None and torch.is_autocast_enabled(device.type)
        with torch.autocast(device.type, enabled=autocast):
            if pixel_values is not None:
                image_embeds = self._embed_images(pixel_values)
            if input_ids is not None:
                packed = input_ids if isinstance(input_ids, PackedTexts) else self.pack(input_ids)
                text_embeds = self._embed_texts(packed.to(device))
        bias = None if self.logit_bias is None else self.logit_bias.float()
        return DualEncoderOutput(image_embeds, text_embeds, self.logit_scale.float().exp(), bias)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The backbone's own parameter, the logarithm of the scale; ()."""
        logit_scale: nn.Parameter = self.backbone.logit_scale
        return logit_scale

    def towers(self) -> tuple[TowerParts, TowerParts]:
        """The modules of the image tower and of the text tower."""
        images, texts = self.backbone.vision_model, self.backbone.text_model
        return (
            TowerParts(
                "vision",
                (images.embeddings, images.pre_layrnorm),  # transformers spells it so
                images.encoder.layers,
                (images.post_layernorm, self.backbone.visual_projection),
            ),
            TowerParts(
                "text",
                (texts.embeddings,),
                texts.encoder.layers,
                (texts.final_layer_norm, self.backbone.text_projection),
            ),
        )

    def blocks(self) -> list[nn.Module]:
        """The layers of both towers, first to last, those of the image tower first."""
        return [block for tower in self.towers() for block in tower.blocks]

    def parameters_by_depth(self) -> Iterator[PlacedParameter]:
        """All parameters, each with its tower and its depth there."""
        return place_parameters(self, self.towers())

    @property
    def patch_size(self) -> int:
        """Edge of a patch in pixels."""
        return int(self.backbone.config.vision_config.patch_size)

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

    def checkpoint_activations(self, share: float = 1.0) -> None:
        """Keeps of some layers only what came in, and computes them once more in the backward pass
        (https://arxiv.org/abs/1604.06174): less memory, up to a third more time.

        Args:
            share: of each tower's layers, spread over it.
        """
        for tower in self.towers():
            for number, block in enumerate(tower.blocks):
                layer = cast("EncoderLayer", block)
                layer.recompute = int((number + 1) * share) > int(number * share)

    def compile_layers(self) -> None:
        """Has ``torch.compile`` make each layer faster, which takes a minute or so at first."""
        for layer in self.blocks():
            layer.compile(dynamic=True)
        self.compiled = True
        # Images and texts, the last layer and the others, with gradients and without: more than
        # 8, after which what is new would not be compiled.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for tower in self._frozen:
            tower.eval()
        return self

    def pack(self, input_ids: Tensor) -> PackedTexts:
        """(B, L) captions as ``forward`` takes them; on the CPU, where nothing waits for it."""
        # Each number of groups would be compiled anew.
        one_group = self.compiled or self.logit_scale.device.type != "cpu"
        end = int(self.backbone.text_model.eos_token_id)
        return pack_texts(input_ids, end, one_group=one_group)

    def attend_images(self, pixel_values: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Embeds images and keeps the attention, so that gradients of it can be taken.

        Args:
            pixel_values: (B, 3, H, W), as ``forward`` takes them.

        Returns:
            (B, D) embeddings, and for each layer (B, H, L, L) shares, the first token the one
            that is pooled; of the last layer only its row, (B, H, 1, L).
        """
        shares: list[Tensor] = []
        return self._embed_images(pixel_values, shares), shares

    def _tell_of_hooks(self) -> None:
        """Warns of hooks on modules that only hold others, since nothing calls these."""
        for name in _HOLDERS:
            if name not in self._told and has_hooks(self.backbone.get_submodule(name)):
                self._told.add(name)
                where = f"backbone.{name}" if name else "backbone"
                warnings.warn(
                    f"{where}: its hooks have no effect, since only what is inside it is called; "
                    "hook into a layer, a Linear, a norm, or the model itself",
                    stacklevel=4,
                )

    def _embed_images(self, pixel_values: Tensor, shares: list[Tensor] | None = None) -> Tensor:
        tower = self.backbone.vision_model
        x = self._image_tokens(pixel_values, tower.embeddings)  # (B, L, W)
        layout = ImageLayout(x.shape[0], x.shape[1], self._sdpa(x), shares)
        x = norm(x.flatten(0, 1), tower.pre_layrnorm)  # (B · L, W)
        x = norm(_run(tower.encoder.layers, x, layout), tower.post_layernorm)  # (B, W)
        return unit_length(linear(x, self.backbone.visual_projection))

    def _image_tokens(self, pixel_values: Tensor, embeddings: Any) -> Tensor:
        """(B, 3, H, W) → (B, L, width): the class token, and a token for each patch that stays."""
        size, convolution = int(embeddings.patch_size), embeddings.patch_embedding
        count, _, height, width = pixel_values.shape
        grid = height // size, width // size
        positions = _positions(embeddings, grid)  # (1 + patches, width)
        kept = self._kept_patches(count, grid[0] * grid[1], pixel_values.device)
        dtype = self.compute_dtype or embeddings.class_embedding.dtype
        if is_plain(convolution, nn.Conv2d):
            patches = pixel_values.view(count, 3, grid[0], size, grid[1], size)
            patches = patches.permute(0, 2, 4, 1, 3, 5).reshape(count, grid[0] * grid[1], -1)
            patches = self._normalised(_select(patches, kept), size * size)
            x = F.linear(patches.to(dtype), convolution.weight.flatten(1).to(dtype))
        else:
            pixels = pixel_values.flatten(1).view(count, 1, -1)
            pixels = self._normalised(pixels, height * width).view(pixel_values.shape)
            x = call(convolution, pixels.to(dtype)).to(dtype).flatten(2).transpose(1, 2)
            x = _select(x, kept)
        at = positions[1:] if kept is None else positions[1:][kept]  # (patches, W) or (B, kept, W)
        x = x + at.to(dtype)
        first = (embeddings.class_embedding + positions[0]).to(dtype)
        return torch.cat([first.expand(count, 1, -1), x], dim=1)

    def _kept_patches(self, images: int, patches: int, device: torch.device) -> Tensor | None:
        """(B, K) int64, which patches of each image stay; None where all do."""
        drop = self.patch_dropout if self.backbone.vision_model.training else 0.0
        if not drop:
            return None
        number = max(1, round(patches * (1 - drop)))
        return torch.rand((images, patches), device=device).argsort(1)[:, :number]

    def _normalised(self, pixels: Tensor, area: int) -> Tensor:
        """(…, 3 · area) uint8 → float32, red first; what is floating point is normalised already.

        On the device: a quarter of the bytes is moved there, and nothing is rounded.
        """
        if pixels.dtype != torch.uint8:
            return pixels
        factor = (1 / (255 * self.std)).flatten().repeat_interleave(area)
        shift = (-self.mean / self.std).flatten().repeat_interleave(area)
        return torch.addcmul(shift, pixels.float(), factor)

    def _embed_texts(self, texts: PackedTexts) -> Tensor:
        tower = self.backbone.text_model
        tokens = tower.embeddings.token_embedding(texts.input_ids)
        x = tokens + tower.embeddings.position_embedding(texts.positions)  # (T, W)
        x = x.to(self.compute_dtype or x.dtype)
        layout = TextLayout(texts, self._sdpa(x))
        x = norm(_run(tower.encoder.layers, x, layout), tower.final_layer_norm)  # (B, W)
        x = linear(x, self.backbone.text_projection).index_select(0, texts.restore)
        return unit_length(x)

    def _sdpa(self, x: Tensor) -> bool:
        return resolve_attention(self.attention, x.device, x.dtype) == "sdpa"


def _run(layers: nn.ModuleList, x: Tensor, layout: ImageLayout | TextLayout) -> Tensor:
    """(T, W) → (B, W), the pooled tokens after all layers."""
    for number, layer in enumerate(layers):
        x = layer(x, layout, number == len(layers) - 1)
    return x


def _select(tokens: Tensor, kept: Tensor | None) -> Tensor:
    """(B, P, W) → (B, K, W); all where ``kept`` is None."""
    if kept is None:
        return tokens
    return tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))


def _positions(embeddings: Any, grid: tuple[int, int]) -> Tensor:
    """(1 + rows · columns, W): of the class token and of each patch; those of a grid that is not
    the model's own are interpolated."""
    module = embeddings.position_embedding
    plain = is_plain(module, nn.Embedding)
    weight: Tensor = module.weight if plain else module(embeddings.position_ids)[0]
    side = math.isqrt(len(weight) - 1)
    if grid == (side, side):
        return weight
    square = weight[1:].view(1, side, side, -1).permute(0, 3, 1, 2).float()
    shrinks = grid < (side, side)  # then it is smoothed; else it is as transformers does it
    other = F.interpolate(square, grid, mode="bicubic", antialias=shrinks, align_corners=False)
    patches = other.flatten(2)[0].T.to(weight.dtype)
    return torch.cat([weight[:1], patches])


def unit_length(features: Tensor) -> Tensor:
    """(B, D) → (B, D) float32 of unit length, outside autocast."""
    # float32: bf16 cosines, times a scale of 100, are off by up to 0.4.
    with torch.autocast(features.device.type, enabled=False):
        return F.normalize(features.float(), dim=-1)

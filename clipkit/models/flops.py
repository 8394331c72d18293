"""How much arithmetic a model's images and texts ask for, whatever way it is then computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextConfig, CLIPVisionConfig

    from clipkit.models.dual_encoder import DualEncoder


def image_flops(model: DualEncoder, patches: int) -> int:
    """FLOPs of one image through the image tower, forward.

    With p² pixels a patch, n patches and t = n + 1 tokens of width w, m hidden units in each of
    k layers, and an embedding of length D:

        2 · 3p² · w · n  +  k · (8w² + 4wm) · t  +  k · 4w · t²  +  2wD
        patches             projections, MLP        attention       to the joint space

    Multiplications and additions of matrix products count, at one FLOP each; norms, softmax and
    activations do not, as usual.

    Args:
        model: for its sizes.
        patches: that are really there: of the image's size, less those that were dropped.

    Reference: PaLM, https://arxiv.org/abs/2204.02311, appendix B.
    """
    vision = model.backbone.config.vision_config
    patch = int(2 * vision.num_channels * vision.patch_size**2 * vision.hidden_size)
    tokens = patches + 1
    return patch * patches + _layers(vision, tokens, tokens**2) + _projection(model, vision)


def kept_patches(model: DualEncoder, height: int, width: int) -> int:
    """Patches of an image of this size that are left while training."""
    patches = (height // model.patch_size) * (width // model.patch_size)
    return max(1, round(patches * (1 - model.patch_dropout)))


def text_flops(model: DualEncoder, lengths: Tensor) -> int:
    """FLOPs of texts through the text tower, forward; see :func:`image_flops`.

    Attention counts all t² pairs of a text's own tokens, as usual, though a causal mask hides
    half. The last layer counts whole, though only one token of it is needed.

    Args:
        model: for its sizes.
        lengths: (B,) tokens of each text, without padding; see :func:`text_lengths`.
    """
    text = model.backbone.config.text_config
    lengths = lengths.long()
    tokens, squares = int(lengths.sum()), int(lengths.square().sum())
    return _layers(text, tokens, squares) + len(lengths) * _projection(model, text)


def training_factors(model: DualEncoder) -> tuple[int, int]:
    """What to multiply forward FLOPs of the image and the text tower by: 3 where a backward pass,
    twice the forward, follows; 1 for a frozen tower. A forward pass that is repeated to save
    memory does not count."""
    towers = (model.backbone.vision_model, model.backbone.text_model)
    trained = [any(p.requires_grad for p in tower.parameters()) for tower in towers]
    return 3 if trained[0] else 1, 3 if trained[1] else 1


def text_lengths(model: DualEncoder, input_ids: Tensor) -> Tensor:
    """(B, L) token ids → (B,) tokens up to the first end token, which is counted."""
    end = model.backbone.config.text_config.eos_token_id
    lengths: Tensor = (input_ids == end).int().argmax(dim=1) + 1
    return lengths


def _layers(config: CLIPTextConfig | CLIPVisionConfig, tokens: int, squares: int) -> int:
    """Of all layers of a tower; ``squares`` is the sum of the squares of sequences' lengths."""
    width, mlp = config.hidden_size, config.intermediate_size
    each = (8 * width**2 + 4 * width * mlp) * tokens + 4 * width * squares
    return int(config.num_hidden_layers * each)


def _projection(model: DualEncoder, config: CLIPTextConfig | CLIPVisionConfig) -> int:
    return int(2 * config.hidden_size * model.embed_dim)

"""Embeddings by transformers' own forward, to compare ours with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clipkit.models import DualEncoder


def theirs(model: DualEncoder, pixels: Tensor, ids: Tensor) -> list[Tensor]:
    """(B, D) of images and (B, D) of texts, of unit length."""
    normalised = (pixels.float() / 255 - model.mean) / model.std
    images = model.backbone.get_image_features(normalised).pooler_output
    texts = model.backbone.get_text_features(ids).pooler_output
    return [F.normalize(x, dim=-1) for x in (images, texts)]

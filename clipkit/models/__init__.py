"""Two towers into one space: building, running, saving and loading them."""

from clipkit.models.attention import resolve_attention
from clipkit.models.dual_encoder import DualEncoder, DualEncoderOutput
from clipkit.models.foreign import ForeignEncoder
from clipkit.models.packing import PackedTexts
from clipkit.models.pretrained import load_model, load_preprocess, save_model
from clipkit.models.towers import build_model

__all__ = [
    "DualEncoder",
    "DualEncoderOutput",
    "ForeignEncoder",
    "PackedTexts",
    "build_model",
    "load_model",
    "load_preprocess",
    "resolve_attention",
    "save_model",
]

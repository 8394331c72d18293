"""(image bytes, caption) pairs → batches of tensors."""

from clipkit.data.decode import ImageError, decode_image, to_rgb
from clipkit.data.holdout import hold_back
from clipkit.data.loader import Loader, build_eval_loader, build_train_loader
from clipkit.data.mixture import MixtureReader
from clipkit.data.order import Order
from clipkit.data.reader import Reader, SampleError
from clipkit.data.source import open_source
from clipkit.data.transforms import eval_transform, train_transform

__all__ = [
    "ImageError",
    "Loader",
    "MixtureReader",
    "Order",
    "Reader",
    "SampleError",
    "build_eval_loader",
    "build_train_loader",
    "decode_image",
    "eval_transform",
    "hold_back",
    "open_source",
    "to_rgb",
    "train_transform",
]

"""PreprocessConfig ↔ the image processor of transformers that does the same.

What transformers would do to a picture is either what ``eval_transform`` does, or refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling

from clipkit.errors import CheckpointError

if TYPE_CHECKING:
    from clipkit.config.schema import PreprocessConfig


def image_processor(preprocess: PreprocessConfig) -> CLIPImageProcessor:
    """What others run in the place of ``eval_transform``."""
    size, crop = preprocess.image_size, preprocess.resize == "crop"
    return CLIPImageProcessor(
        do_convert_rgb=True,
        do_resize=True,
        size={"shortest_edge": size} if crop else {"height": size, "width": size},
        resample=PILImageResampling.BICUBIC,
        do_center_crop=crop,
        crop_size={"height": size, "width": size},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(preprocess.mean),
        image_std=list(preprocess.std),
    )


def image_geometry(where: str, processor: Any) -> tuple[int, str]:
    """(image_size, resize policy) of an image processor, if ``eval_transform`` has the same.

    Raises:
        CheckpointError: it has other steps; ``where`` is named.
    """
    expected = {
        "do_resize": True,
        "resample": PILImageResampling.BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
    }
    for key, value in expected.items():
        found = getattr(processor, key, None)
        if found != value:
            raise CheckpointError(
                f"{where}: preprocessor_config.json has {key} {found}, where clipkit can only do "
                f"{value}; its embeddings would not be the model's own."
            )
    size = {k: v for k, v in dict(processor.size).items() if v is not None}
    crop = getattr(processor, "crop_size", None) if processor.do_center_crop else None
    window = {k: v for k, v in dict(crop).items() if v is not None} if crop else None
    edge = size.get("shortest_edge", size.get("height"))
    square = {"height": edge, "width": edge}
    if isinstance(edge, int):
        if size == {"shortest_edge": edge} and window == square:
            return edge, "crop"
        if size == square and window in (None, square):
            return edge, "squash"
    raise CheckpointError(
        f"{where}: preprocessor_config.json resizes to {size} and crops to {window}, where clipkit "
        "can only crop to, or squash to, one square; its embeddings would not be the model's own."
    )


def triple(where: str, key: str, values: Any) -> tuple[float, float, float]:
    """The mean or deviation of an image processor, a value a colour."""
    values = [values] * 3 if isinstance(values, int | float) else list(values or [])
    if len(values) != 3:
        raise CheckpointError(
            f"{where}: preprocessor_config.json has {len(values)} values of {key}, not three."
        )
    return float(values[0]), float(values[1]), float(values[2])

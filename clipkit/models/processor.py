"""PreprocessConfig ↔ the image processor of transformers that does the same.

What transformers would do to a picture is either what ``eval_transform`` does, or refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import CLIPImageProcessor
from transformers.image_utils import PILImageResampling

from clipkit.config.schema import ForeignPreprocess, PreprocessConfig
from clipkit.errors import CheckpointError

# Others have steps of their own, some without a word about them in their files.
_PROCESSORS = ("CLIP", "Siglip", "ViT", "DeiT", "Bit")
_INTERPOLATION = {PILImageResampling.BICUBIC: "bicubic", PILImageResampling.BILINEAR: "bilinear"}


def image_processor(preprocess: PreprocessConfig) -> CLIPImageProcessor:
    """What others run in the place of ``eval_transform``."""
    size, crop = preprocess.image_size, preprocess.resize == "crop"
    resample = PILImageResampling.BICUBIC
    if isinstance(preprocess, ForeignPreprocess) and preprocess.interpolation == "bilinear":
        resample = PILImageResampling.BILINEAR
    return CLIPImageProcessor(
        do_convert_rgb=True,
        do_resize=True,
        size={"shortest_edge": size} if crop else {"height": size, "width": size},
        resample=resample,
        do_center_crop=crop,
        crop_size={"height": size, "width": size},
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=list(preprocess.mean),
        image_std=list(preprocess.std),
    )


def read_processor(
    where: str, processor: Any, *, vocab_size: int, context_length: int
) -> PreprocessConfig:
    """An image processor as ``eval_transform`` does the same; a ``ForeignPreprocess`` where no
    config can ask for it.

    Args:
        where: the model, for messages.
        processor: of transformers.
        vocab_size: of the model.
        context_length: tokens that its texts may have.

    Raises:
        CheckpointError: it has other steps.
    """
    kind = type(processor).__name__
    if kind.split("ImageProcessor")[0] not in _PROCESSORS:
        raise CheckpointError(
            f"{where}: preprocessor_config.json names a {kind}, whose steps clipkit does not have; "
            "its embeddings would not be the model's own."
        )
    expected = {
        "do_resize": (True,),
        "resample": tuple(_INTERPOLATION),
        "do_rescale": (True,),
        "rescale_factor": (1 / 255,),
        "do_normalize": (True,),
    }
    for key, values in expected.items():
        found = getattr(processor, key, None)
        if found not in values:
            raise CheckpointError(
                f"{where}: preprocessor_config.json has {key} {found}, where clipkit can only do "
                f"{' or '.join(map(str, values))}; its embeddings would not be the model's own."
            )
    image_size, resize = _geometry(where, processor)
    preprocess = PreprocessConfig(
        image_size=image_size,
        resize="crop" if resize == "crop" else "squash",
        mean=triple(where, "image_mean", processor.image_mean),
        std=triple(where, "image_std", processor.image_std),
        tokenizer=None,
        vocab_size=vocab_size,
        context_length=context_length,
    )
    if processor.resample == PILImageResampling.BICUBIC:
        return preprocess
    return ForeignPreprocess(**dataclasses.asdict(preprocess), interpolation="bilinear")


def _geometry(where: str, processor: Any) -> tuple[int, str]:
    """(image_size, resize policy)."""
    size = {k: v for k, v in dict(processor.size).items() if v is not None}
    cropped = getattr(processor, "do_center_crop", None)
    crop = getattr(processor, "crop_size", None) if cropped else None
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
            f"{where}: the preprocessing has {len(values)} values of {key}, not three."
        )
    return float(values[0]), float(values[1]), float(values[2])

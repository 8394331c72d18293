"""The fastest of float32, bf16, fp16 and int8 in which the vectors stay what they are."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from clipkit.data import Reader, build_eval_loader
from clipkit.encoder import EncodedBatch, Encoder
from clipkit.errors import CheckpointError, ConfigError
from clipkit.models.precision import fastest_precision, measure_speed, say_speed

Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
LEAST_COSINE = 0.999
_SAMPLES, _TRIES = 64, 8
DTYPES: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "int8": torch.int8,
}


def choose_precision(
    encoder: Encoder,
    reader: Reader,
    asked: Precision,
    *,
    images: bool,
    texts: bool,
    max_image_pixels: int,
) -> tuple[str, dict[str, float]]:
    """What to compute in, and the least cosine of its embeddings to those in float32 of the first
    images and of the first texts, where it was measured.

    Args:
        encoder: the model.
        reader: the source, of which the first usable samples are embedded twice.
        asked: ``auto`` takes bf16, or fp16 on a GPU without bf16, where it is measured to be
            faster here (see ``clipkit.models.precision``) and the cosine is at least
            ``LEAST_COSINE``; bf16 and fp16 that are asked for are taken anyway, int8 is not.
        images: whether images are embedded.
        texts: whether captions are.
        max_image_pixels: larger images are skipped.

    Raises:
        CheckpointError: the embeddings are not finite.
        ConfigError: int8, which this model or machine cannot compute in, or whose cosine is less.
    """
    other: str = asked
    if asked == "auto":
        other = fastest_precision(encoder.device, fp16=True).precision
    if other == "fp32":
        return "fp32", {}
    cosines: dict[str, float] = {}
    tries = -(-len(reader) // _SAMPLES)
    loader = build_eval_loader(
        reader,
        encoder.preprocess,
        encoder.tokenizer,
        batch_size=_SAMPLES,
        max_image_pixels=max_image_pixels,
        images=images,
        texts=texts,
        batches=range(tries if asked == "int8" else min(_TRIES, tries)),
    )
    for batch in loader:
        if not bool(batch.valid.any()):
            continue
        found = {}
        for name in ("fp32", other):
            with encoder.computing(DTYPES[name]):
                found[name] = next(encoder.encode_batches([batch], images=images, texts=texts))
            refuse_non_finite(encoder, found[name])
        for what in ("image", "text"):
            whole, rounded = (getattr(found[name], f"{what}_embeds") for name in ("fp32", other))
            if whole is not None:
                cosines[what] = round(float(np.min((whole * rounded).sum(axis=1))), 6)
        break
    loader.close()
    least = min(cosines.values(), default=0.0)
    if other == "int8" and cosines and least < LEAST_COSINE:
        raise ConfigError(
            f"int8: with this model a vector keeps a cosine of {least:.4f} to float32's, which is "
            f"less than {LEAST_COSINE}; take bf16"
        )
    return ("fp32" if asked == "auto" and least < LEAST_COSINE else other), cosines


def slower_than_float32(encoder: Encoder, asked: Precision) -> str | None:
    """A sentence where bf16 or fp16 is asked for and measured to be slower here than float32."""
    if asked not in ("bf16", "fp16"):
        return None
    speed = measure_speed(encoder.device, asked)
    if speed >= 1:
        return None
    return f"--precision {asked} is measured {say_speed(speed)} here; fp32 or auto is faster"


def refuse_non_finite(encoder: Encoder, encoded: EncodedBatch) -> None:
    """Refuses what cannot be compared with anything.

    Raises:
        CheckpointError: an embedding holds NaN or Inf; names the model and the sample.
    """
    for what in ("image", "text"):
        embeds = getattr(encoded, f"{what}_embeds")
        if embeds is None or np.isfinite(embeds).all():
            continue
        row = int(np.flatnonzero(~np.isfinite(embeds).all(axis=1))[0])
        key = encoded.batch.keys[int(np.flatnonzero(encoded.batch.valid.numpy())[row])]
        raise CheckpointError(
            f"{encoder.name}: its {what} embeddings are not finite (the first: of sample {key}); "
            "the model's weights are broken, so take another checkpoint of it"
        )

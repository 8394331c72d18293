"""bf16 or float32: what a machine is faster with, as long as the vectors stay what they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from clipkit.data import Reader, build_eval_loader
from clipkit.encoder import EncodedBatch, Encoder
from clipkit.errors import CheckpointError

Precision = Literal["auto", "fp32", "bf16"]
LEAST_COSINE = 0.999
_SAMPLES, _TRIES = 64, 8
DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16}


def choose_precision(
    encoder: Encoder,
    reader: Reader,
    asked: Precision,
    *,
    images: bool,
    texts: bool,
    max_image_pixels: int,
) -> tuple[str, dict[str, float]]:
    """What to compute in, and the least cosine between bf16 and float32 embeddings of the first
    images and of the first texts, where it was measured.

    Args:
        encoder: the model.
        reader: the source, of which the first usable samples are embedded twice.
        asked: ``auto`` takes bf16 where this machine is faster with it and the cosine is at
            least ``LEAST_COSINE``.
        images: whether images are embedded.
        texts: whether captions are.
        max_image_pixels: larger images are skipped.

    Raises:
        CheckpointError: the embeddings are not finite.
    """
    if asked == "fp32" or (asked == "auto" and not is_bf16_fast(encoder.device)):
        return "fp32", {}
    cosines: dict[str, float] = {}
    loader = build_eval_loader(
        reader,
        encoder.preprocess,
        encoder.tokenizer,
        batch_size=_SAMPLES,
        max_image_pixels=max_image_pixels,
        images=images,
        texts=texts,
        batches=range(min(_TRIES, -(-len(reader) // _SAMPLES))),
    )
    for batch in loader:
        if not bool(batch.valid.any()):
            continue
        found = {}
        for name, dtype in DTYPES.items():
            with encoder.computing(dtype):
                found[name] = next(encoder.encode_batches([batch], images=images, texts=texts))
            refuse_non_finite(encoder, found[name])
        for what in ("image", "text"):
            whole, rounded = (getattr(found[name], f"{what}_embeds") for name in ("fp32", "bf16"))
            if whole is not None:
                cosines[what] = round(float(np.min((whole * rounded).sum(axis=1))), 6)
        break
    loader.close()
    good = bool(cosines) and min(cosines.values()) >= LEAST_COSINE
    return ("bf16" if asked == "bf16" or good else "fp32"), cosines


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


def is_bf16_fast(device: torch.device) -> bool:
    """Whether matrix products in bf16 are faster than in float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) is not None

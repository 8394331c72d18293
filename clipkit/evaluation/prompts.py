"""Sentences around a class name: a model trained on captions knows captions best.

Averaging over several wordings is steadier than any one of them.

Reference: CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from clipkit.config.templates import TEMPLATES, resolve_templates

if TYPE_CHECKING:
    from clipkit.encoder import Encoder

__all__ = ["TEMPLATES", "class_embeds", "resolve_templates"]

_MOST_CACHED = 20_000  # classes a model: 40 MB at 512 numbers each
_cached: WeakKeyDictionary[Encoder, tuple[Any, dict[tuple[str, ...], np.ndarray]]]
_cached = WeakKeyDictionary()


def class_embeds(encoder: Encoder, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """(C, D) float32 unit vectors: of each class, the direction of the mean of its prompts.

    A class that this model has embedded before is not embedded again, unless its weights have
    changed since.

    Args:
        encoder: the model.
        prompts: C lists of texts.
    """
    state = _state(encoder)
    before, known = _cached.get(encoder, (None, {}))
    if before != state or len(known) > _MOST_CACHED:
        known = {}
    wanted = [tuple(each) for each in prompts]
    new = list(dict.fromkeys(each for each in wanted if each not in known))
    if new:
        with warnings.catch_warnings():
            # The classifier says it of its labels, also of those that are known.
            warnings.filterwarnings("ignore", ".* and were cut")
            embeds = encoder.encode_text([prompt for each in new for prompt in each])
        ends = np.cumsum([len(each) for each in new])
        for each, part in zip(new, np.split(embeds, ends[:-1]), strict=True):
            mean = part.mean(axis=0)
            known[each] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    _cached[encoder] = state, known
    return np.stack([known[each] for each in wanted])


def _state(encoder: Encoder) -> object:
    """What changes when the weights do, in place or by another dtype or device."""
    parameters = encoder.model.parameters()
    return encoder.dtype, [(id(p), p._version, p.dtype, p.device) for p in parameters]

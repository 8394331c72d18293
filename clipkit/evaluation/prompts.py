"""Sentences around a class name: a model trained on captions knows captions best.

Averaging over several wordings is steadier than any one of them.

Reference: CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from clipkit.errors import ConfigError

if TYPE_CHECKING:
    from clipkit.encoder import Encoder

TEMPLATES: dict[str, tuple[str, ...]] = {
    "none": ("{}",),
    "photo": (
        "a photo of a {}",
        "a photo of the {}",
        "a close photo of a {}",
        "a picture of a {} from far away",
        "a blurry picture of a {}",
        "a bright, clear photo of a {}",
        "several {} in one photo",
    ),
    "art": (
        "a drawing of a {}",
        "a painting of a {}",
        "a cartoon {}",
        "a {} made of paper",
        "an icon that shows a {}",
    ),
    "sketch": ("a pencil sketch of a {}", "a {} in black lines on white", "a quick doodle of a {}"),
    "satellite": (
        "a satellite picture of {}",
        "{} as seen from the air",
        "an aerial photo that shows {}",
    ),
    "texture": ("a {} surface", "a photo of a {} texture", "something {} seen from near"),
    "medical": (
        "a medical image that shows {}",
        "a scan of a patient with {}",
        "a clinical picture of {}",
        "findings: {}",
    ),
    "microscope": ("{} under a microscope", "a stained slide of {}", "a micrograph of {}"),
    "product": (
        "a product photo of a {}",
        "a {} on a white background",
        "a {} as a shop shows it",
    ),
    "scene": ("a photo taken in a {}", "a view of a {}", "a {} with nobody in it"),
    "action": (
        "a photo of a person who is {}",
        "people {}",
        "an example of {}",
    ),
    "text": ("a picture of the text {}", "the word {} in print", "a sign that says {}"),
}

_MOST_CACHED = 20_000  # classes a model: 40 MB at 512 numbers each
_cached: WeakKeyDictionary[Encoder, tuple[Any, dict[tuple[str, ...], np.ndarray]]]
_cached = WeakKeyDictionary()


def resolve_templates(templates: str | Sequence[str] | None) -> list[str]:
    """The wordings that are meant: none, one, a named set, or a list of one's own.

    Args:
        templates: None: the label alone; a text with ``{}`` where the label goes; the name of
            a set in ``TEMPLATES``; or several texts.

    Raises:
        ConfigError: no ``{}`` in a template, or no set of that name.
    """
    if templates is None:
        return ["{}"]
    if isinstance(templates, str) and "{}" not in templates:
        if templates not in TEMPLATES:
            near = difflib.get_close_matches(templates, TEMPLATES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known sets: {', '.join(TEMPLATES)}"
            raise ConfigError(
                f"template: {templates!r} has no {{}} where the label goes, and no set of "
                f"templates has this name; {hint}"
            )
        return list(TEMPLATES[templates])
    if not isinstance(templates, Iterable):
        raise ConfigError(
            f"template: {templates!r}; give a text with {{}}, a list of them, or the name of a set"
        )
    chosen = [templates] if isinstance(templates, str) else list(templates)
    if not chosen:
        raise ConfigError("template: the list is empty; leave it out to use the labels alone")
    for template in chosen:
        if not isinstance(template, str) or "{}" not in template:
            raise ConfigError(f"template: {template!r} has no {{}} where the label goes")
    return chosen


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

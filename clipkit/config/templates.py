"""Sentences around a class name: a model trained on captions knows captions best.

Reference: CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from clipkit.errors import ConfigError

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


def resolve_templates(
    templates: str | Sequence[str] | None, *, where: str = "template"
) -> list[str]:
    """The wordings that are meant: none, one, a named set, or a list of one's own.

    Args:
        templates: None: the label alone; a text with ``{}`` where the label goes; the name of
            a set in ``TEMPLATES``; or several texts.
        where: what to call them in a message.

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
                f"{where}: {templates!r} has no {{}} where the label goes, and no set of "
                f"templates has this name; {hint}"
            )
        return list(TEMPLATES[templates])
    if not isinstance(templates, Iterable):
        raise ConfigError(
            f"{where}: {templates!r}; give a text with {{}}, a list of them, or the name of a set"
        )
    chosen = [templates] if isinstance(templates, str) else list(templates)
    if not chosen:
        raise ConfigError(f"{where}: the list is empty; leave it out to use the labels alone")
    for template in chosen:
        if not isinstance(template, str) or "{}" not in template:
            raise ConfigError(f"{where}: {template!r} has no {{}} where the label goes")
    return chosen

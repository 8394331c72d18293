"""Sentences around a class name: a model trained on captions knows captions best.

Averaging over several wordings is steadier than any one of them.

Reference: CLIP, https://arxiv.org/abs/2103.00020, section 3.1.4.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

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
}


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
    chosen = [templates] if isinstance(templates, str) else list(templates)
    if not chosen:
        raise ConfigError("template: the list is empty; leave it out to use the labels alone")
    for template in chosen:
        if not isinstance(template, str) or "{}" not in template:
            raise ConfigError(f"template: {template!r} has no {{}} where the label goes")
    return chosen

"""How a source was read, as its reader says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Understood:
    """How a source was read.

    Attributes:
        images: where the images come from: ``column image``, ``members .jpg``, ``image files``;
            empty where none are read.
        captions: where the captions come from: ``column description``, ``NAME.txt beside each
            image``, ``folder names``; empty where none are read.
        an_image: how many captions an image has, ``5`` or ``1 to 7``, where the reader counted
            them; empty where it did not.
        also: columns, fields or members that look like captions and are not read.
        unused: what lies in the source and is not read, with counts, by kind: ``not an image
            file (.heic)``.
        classes: whether the captions are made of the names of classes: of folders, ``.cls`` members
            or class labels.
        class_names: the names of the classes in the order of their numbers, where it is known.
        notes: further sentences without a full stop, such as the encoding that was found.
    """

    images: str = ""
    captions: str = ""
    an_image: str = ""
    also: Sequence[str] = ()
    unused: Mapping[str, int] = field(default_factory=dict)
    classes: bool = False
    class_names: Sequence[str] = ()
    notes: Sequence[str] = ()

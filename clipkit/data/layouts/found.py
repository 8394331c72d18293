"""Captions that were found in a folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Captions:
    """Captions of some of the images, from files of one kind.

    Attributes:
        told: where they come from, in words.
        files: the caption files of each image, each with the JSON field that is read; empty for a
            text.
        texts: the captions of each image, where they were read at once.
        records: what a table says of each image besides.
        used: the names of the files that are read.
        also: columns or fields that look like captions and are not read.
        notes: further sentences.
        dropped: images that a table names and that cannot be read, by reason.
    """

    told: str
    files: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    records: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    used: frozenset[str] = frozenset()
    also: Sequence[str] = ()
    notes: Sequence[str] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """How many images have captions."""
        return len(self.files) + len(self.texts)

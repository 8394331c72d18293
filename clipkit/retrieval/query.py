"""Words, pictures, and what it should not be → one vector to look for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clipkit.display.console import shorten
from clipkit.errors import ConfigError, DataError
from clipkit.inputs import clean_text, open_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipkit.encoder import Encoder
    from clipkit.inputs import ImageInput

_WEIGHTS = {"text": 1.0, "image": 1.0, "like": 1.0, "negative": 0.5}
_MOST = 1e6  # of a weight: far above it, sums overflow
_LEAST = 1e-6  # of a sum's length: below it, its direction is rounding


@dataclass(frozen=True)
class SearchQuery:
    """What to look for. Several parts become the weighted sum of their vectors, at unit length.

    Attributes:
        text: in words.
        image: a picture of it.
        like: a row of the store: more like this one, which is itself left out.
        negative: in words, what it should not be.
        weights: of ``text``, ``image``, ``like`` (1 each) and ``negative`` (0.5, subtracted;
            shared by all of them).
        place: the file and line it comes from, for messages.
    """

    text: str | None = None
    image: ImageInput | None = None
    like: int | None = None
    negative: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    place: str | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.negative, str):
            object.__setattr__(self, "negative", (self.negative,))
        if self.text is None and self.image is None and self.like is None:
            raise ConfigError(
                "search: nothing to look for; give a text, an image, or a row as like"
            )
        for name, weight in self.weights.items():
            if name not in _WEIGHTS:
                raise ConfigError(
                    f"weights: {name!r} is no part of a query; the parts are {', '.join(_WEIGHTS)}"
                )
            if (
                isinstance(weight, bool)
                or not isinstance(weight, int | float)
                or not 0 <= weight <= _MOST
            ):
                raise ConfigError(
                    f"weights: {name} is {weight!r}; give a number from 0 on, a million at "
                    "most (what should not be found goes under negative)"
                )

    def weight(self, part: str) -> float:
        """Of ``text``, ``image``, ``like`` or ``negative``."""
        return float(self.weights.get(part, _WEIGHTS[part]))

    @property
    def title(self) -> str:
        """The text or the picture's name alone where there is nothing else; else all of it."""
        if self.image is None and self.like is None and not self.negative:
            return self.text or ""
        if self.text is None and self.like is None and not self.negative:
            return str(self.image) if isinstance(self.image, str | Path) else str(self)
        return str(self)

    def __str__(self) -> str:
        parts = []
        if self.text is not None:
            parts.append(f'"{shorten(self.text, 100)}"')
        if self.image is not None:
            named = isinstance(self.image, str | Path)
            parts.append(f'"{shorten(str(self.image), 100)}"' if named else "a picture")
        if self.like is not None:
            parts.append(f"row {self.like}")
        return " + ".join(parts) + "".join(f' − "{shorten(text, 100)}"' for text in self.negative)


def embed_queries(
    queries: Sequence[SearchQuery], encoder: Encoder, liked: Mapping[int, np.ndarray]
) -> np.ndarray:
    """(Q, D) float32 vectors of queries; all texts, and all images, are embedded at once.

    Args:
        queries: Q of them.
        encoder: the model.
        liked: the vectors of the rows that queries are ``like``.

    Raises:
        ClipkitError: a text is empty, or a picture is none.
        DataError: a picture cannot be read, or a query of a file has parts that cancel out.
        ConfigError: another one has.
    """
    several = len(queries) > 1
    places = [q.place or (f"queries[{i}]" if several else "search") for i, q in enumerate(queries)]
    placed = list(zip(queries, places, strict=True))
    texts = [(q.text, place) for q, place in placed if q.text is not None]
    texts += [(text, place) for q, place in placed for text in q.negative]
    text_embeds = encoder.encode_text([clean_text(text, where=place) for text, place in texts])
    image_embeds = encoder.encode_image(_pictures(queries, places))
    positive, pictures = iter(text_embeds), iter(image_embeds)
    negative = iter(text_embeds[len(texts) - sum(len(q.negative) for q in queries) :])
    found = np.empty((len(queries), encoder.embed_dim), dtype=np.float32)
    for i, query in enumerate(queries):
        parts = []
        if query.text is not None:
            parts.append(query.weight("text") * next(positive).astype(np.float64))
        if query.image is not None:
            parts.append(query.weight("image") * next(pictures).astype(np.float64))
        if query.like is not None:
            parts.append(query.weight("like") * liked[query.like].astype(np.float64))
        for _ in query.negative:
            share = query.weight("negative") / len(query.negative)
            parts.append(-share * next(negative).astype(np.float64))
        total = np.sum(parts, axis=0)
        length = np.linalg.norm(total)
        if length < _LEAST:
            fault = DataError if query.place else ConfigError
            raise fault(f"{places[i]}: {query}: the parts cancel out; change their weights")
        found[i] = total / length
    return found


def _pictures(queries: Sequence[SearchQuery], places: Sequence[str]) -> Iterator[Image]:
    """Those of the queries, one by one.

    Raises:
        ClipkitError: one is none.
        DataError: one cannot be read.
    """
    for query, place in zip(queries, places, strict=True):
        if query.image is not None:
            try:
                yield open_image(query.image, where=place)
            except DataError as error:  # which names the picture's own file, if it has one
                if query.place is None or not isinstance(query.image, str | Path):
                    raise
                raise DataError(f"{place}: {error}") from error

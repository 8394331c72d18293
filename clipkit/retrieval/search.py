"""A store + a query → what is nearest: in Python, and under ``clipkit search``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from clipkit.encoder import Encoder, load
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.approximate import ApproximateIndex
from clipkit.retrieval.index import Index
from clipkit.retrieval.query import SearchQuery, embed_queries
from clipkit.retrieval.result import SearchResult
from clipkit.retrieval.where import rows_where

if TYPE_CHECKING:
    from clipkit.inputs import ImageInput
    from clipkit.retrieval.store import EmbeddingStore

Kind = Literal["auto", "image", "text"]


class StoreIndex:
    """A store ready to be searched; see ``EmbeddingStore.index``.

    Search is exact unless ``approximate`` is asked for: the result is what comparing with every row
    gives, equal scores in the order of their rows. The model is loaded when the first text or image
    is looked for.

    Args:
        store: where to look.
        kind: among which of its vectors; auto: images, or texts where there are no images.
        model: what made the store, a run, folder or hub name, or what ``clipkit.load`` gave;
            none: the one that the store names.
        approximate: whether to search what ``clipkit index --approximate`` made; with conditions
            search is exact even so.

    Raises:
        CheckpointError: the store has no vectors of this kind; or ``model`` is another one.

    Example:
        >>> index = clipkit.EmbeddingStore("runs/emoji/store").index()
        >>> index.search("red apple", negative="fruit basket", where=["width>=64"], k=3)
    """

    def __init__(
        self,
        store: EmbeddingStore,
        kind: Kind = "auto",
        model: str | Path | Encoder | None = None,
        *,
        approximate: bool = False,
    ) -> None:
        self.store = store
        self.kind = ("image" if store.image_embeds else "text") if kind == "auto" else kind
        self._index: Index | ApproximateIndex = (
            ApproximateIndex.open(store, self.kind) if approximate else Index.open(store, self.kind)
        )
        self._encoder: Encoder | None = None
        self._model = str(store.manifest["model"]) if model is None else model
        if isinstance(model, Encoder):
            store.check_model(model)
            self._encoder = model

    @property
    def encoder(self) -> Encoder:
        """The model, loaded when it is first needed.

        Raises:
            CheckpointError: it is not there, or is not the one that made the store.
        """
        if self._encoder is None:
            assert not isinstance(self._model, Encoder)
            try:
                encoder = load(self._model)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{self.store.folder}: its model cannot be loaded: {error}; if it is "
                    "at another place now, name that as the model (--model)"
                ) from error
            self.store.check_model(encoder)
            self._encoder = encoder
        return self._encoder

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f"StoreIndex of {self.store!r}, among its {self.kind} embeddings"

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        negative: str | Sequence[str] = (),
        like: int | None = None,
        weights: Mapping[str, float] | None = None,
        where: str | Sequence[str] = (),
        k: int = 10,
    ) -> SearchResult:
        """The k items nearest to a query, the nearest first.

        Args:
            text: what to look for, in words.
            image: and, or, a picture of it.
            negative: in words, what it should not be.
            like: a row of the store, to find more like it; the row itself is left out.
            weights: of ``text``, ``image``, ``like`` (1 each) and ``negative`` (0.5).
            where: conditions that items must meet, all of them, such as ``"width>=512"``; see
                :mod:`clipkit.retrieval.where`.
            k: how many; fewer come back where there are fewer.

        Raises:
            ConfigError: there is nothing to look for, ``k`` is below 1, or a condition or weight
                makes no sense.
            ClipkitError: a text is empty.
            DataError: the image cannot be read.
            CheckpointError: the model is missing or another one, or the store is damaged.
        """
        query = SearchQuery(text, image, like, negative, weights or {})
        return self.search_many([query], where=where, k=k)[0]

    def search_many(
        self,
        queries: Sequence[str | SearchQuery],
        *,
        where: str | Sequence[str] = (),
        k: int = 10,
    ) -> list[SearchResult]:
        """The results of several queries at once, which is faster than one after the other.

        Args:
            queries: texts, or queries of several parts.
            where: see ``search``.
            k: how many a query.

        Raises:
            ClipkitError: see ``search``.
        """
        wanted = [SearchQuery(query) if isinstance(query, str) else query for query in queries]
        liked = {q.like: self.vector(q.like) for q in wanted if q.like is not None}
        if all(q.text is None and q.image is None and not q.negative for q in wanted):
            embeds = [liked[q.like] for q in wanted if q.like is not None]
            query_embeds = np.stack(embeds) if embeds else np.zeros((0, self.store.dim))
        else:
            query_embeds = embed_queries(wanted, self.encoder, liked)
        return self._search(query_embeds, wanted, where, k)

    def search_embeds(
        self, query_embeds: np.ndarray, k: int = 10, where: str | Sequence[str] = ()
    ) -> list[SearchResult]:
        """The results of queries that are vectors already; no model is loaded.

        Args:
            query_embeds: (Q, D), of the model that made the store.
            k: how many a query.
            where: see ``search``.

        Raises:
            ClipkitError: they have another D, or are not finite.
        """
        query_embeds = np.atleast_2d(query_embeds)
        named = [SearchQuery(f"vector {i}") for i in range(len(query_embeds))]
        return self._search(query_embeds, named, where, k)

    def vector(self, row: int) -> np.ndarray:
        """(D,) float32, what the store has of a row.

        Raises:
            ConfigError: there is no such row.
        """
        if not 0 <= row < len(self):
            raise ConfigError(f"like: {row} is no row of {self.store.folder}; 0 to {len(self) - 1}")
        vector: np.ndarray = self._index.vectors(np.array([row]))[0]
        return vector

    def _search(
        self,
        query_embeds: np.ndarray,
        queries: Sequence[SearchQuery],
        where: str | Sequence[str],
        k: int,
    ) -> list[SearchResult]:
        mask = rows_where(self.store, where)
        leaves_out = any(query.like is not None for query in queries)
        # A row is always like itself: one more is looked for, and it is left out.
        scores, rows = self._index.search(query_embeds, k + leaves_out if k > 0 else k, mask=mask)
        kept = [
            np.flatnonzero(found != (-1 if query.like is None else query.like))[:k]
            for query, found in zip(queries, rows, strict=True)
        ]
        found_rows = [found[keep] for found, keep in zip(rows, kept, strict=True)]
        all_rows = np.concatenate([np.zeros(0, np.int64), *found_rows])
        items = self.store.items(all_rows)
        ends = np.cumsum([0, *map(len, found_rows)])
        return [
            SearchResult(
                query,
                found_rows[i],
                scores[i][kept[i]],
                self.store,
                items.slice(ends[i], len(found_rows[i])),
            )
            for i, query in enumerate(queries)
        ]

"""Stores + a query → what is nearest: in Python, and under ``clipkit search``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from clipkit.encoder import Encoder, load
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.approximate import ApproximateIndex
from clipkit.retrieval.columns import join_tables
from clipkit.retrieval.index import Index
from clipkit.retrieval.merged import MergedIndex
from clipkit.retrieval.near_duplicates import find_duplicates
from clipkit.retrieval.query import SearchQuery, embed_queries
from clipkit.retrieval.result import SearchResult
from clipkit.retrieval.where import rows_where

if TYPE_CHECKING:
    from clipkit.inputs import ImageInput
    from clipkit.retrieval.store import EmbeddingStore

Kind = Literal["auto", "image", "text"]
_ITEMS = 4096  # of duplicates, looked up at a time


class StoreIndex:
    """One or more stores ready to be searched; see ``EmbeddingStore.index``.

    Search is exact unless ``approximate`` is asked for: the result is what comparing with every row
    gives, equal scores in the order of stores and rows. Several stores are searched one by one and
    merged by score; what is in two of them is found twice. The model is loaded when the first text
    or image is looked for.

    Args:
        store: where to look.
        kind: among which of its vectors; auto: images, or texts where there are no images.
        model: what made the store, a run, folder or hub name, or what ``clipkit.load`` gave;
            none: the one that the store names.
        approximate: whether to search what ``clipkit index --approximate`` made; with conditions
            search is exact even so.
        also: further stores of the same model.

    Raises:
        ConfigError: there is no such kind.
        CheckpointError: a store has no vectors of this kind; or ``model`` is another one, or that
            of a further store is.

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
        also: Sequence[EmbeddingStore] = (),
    ) -> None:
        if kind not in ("auto", "image", "text"):
            raise ConfigError(f"kind: {kind!r}; give auto, image or text")
        self.store, self.stores = store, [store, *also]
        self.kind: Kind = ("image" if store.image_embeds else "text") if kind == "auto" else kind
        for other in also:
            store.check_same_model(other)
        make = ApproximateIndex.open if approximate else Index.open
        self._index = MergedIndex([make(each, self.kind) for each in self.stores])
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
        return len(self._index)

    def __repr__(self) -> str:
        stores = " + ".join(map(repr, self.stores))
        return f"StoreIndex of {stores}, among {self.kind} embeddings"

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
            like: a row of the (first) store, to find more like it; the row itself is left out.
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
        """(D,) float32, what the (first) store has of a row.

        Raises:
            ConfigError: there is no such row.
        """
        last = len(self.store) - 1
        if not 0 <= row <= last:
            raise ConfigError(f"like: {row} is no row of {self.store.folder}; 0 to {last}")
        vector: np.ndarray = self._index.vectors(np.array([row]))[0]
        return vector

    def duplicates(
        self, least: float = 0.95, *, where: str | Sequence[str] = (), progress: bool = False
    ) -> Iterator[SearchResult]:
        """Groups of items that are nearly the same, the largest first.

        A group is an item that stays, with a score of 1, and those after it that are as near to it
        as asked for, the nearest first; an item belongs to the first such one. So whoever keeps
        the first of each group, and what is in none, keeps no two that are that near. This is
        exact. It compares each item with all that stay: N² D / 2 multiplications at most.

        Args:
            least: the cosine, above 0 and below 1.
            where: see ``search``; among these items alone.
            progress: whether to show a progress bar.

        Raises:
            ConfigError: ``least`` is no such cosine, or a condition makes no sense.
            CheckpointError: a store is damaged.
        """
        if not (0 < least < 1 and 0 < np.float32(least) < 1):  # which it is compared as
            raise ConfigError(
                f"duplicates: {least}; give a cosine above 0 and below 1: 0.95, or 0.999 for what "
                "is the same but for rounding"
            )
        first, scores = find_duplicates(
            self._index, np.float32(least), mask=self._mask(where), progress=progress
        )
        return self._groups(first, scores)

    def _groups(self, first: np.ndarray, scores: np.ndarray) -> Iterator[SearchResult]:
        gone = np.flatnonzero(first >= 0)
        gone = gone[np.lexsort((gone, -scores[gone], first[gone]))]
        kept, begins, counts = np.unique(first[gone], return_index=True, return_counts=True)
        some: list[np.ndarray] = []
        for i in np.lexsort((kept, -counts)):
            some.append(np.append(kept[i], gone[begins[i] : begins[i] + counts[i]]))
            if sum(map(len, some)) >= _ITEMS:
                yield from self._group_results(some, scores)
                some = []
        yield from self._group_results(some, scores)

    def _group_results(self, groups: list[np.ndarray], scores: np.ndarray) -> list[SearchResult]:
        found = [np.append(np.float32(1), scores[rows[1:]]) for rows in groups]
        results = self._results([SearchQuery("near-duplicates")] * len(groups), groups, found)
        for result in results:
            result.query = SearchQuery(f"near-duplicates of {result.keys[0]}")
        return results

    def _mask(self, where: str | Sequence[str]) -> np.ndarray | None:
        masks = []
        for store in self.stores:
            try:
                mask = rows_where(store, where)
            except ConfigError as error:
                if len(self.stores) == 1:
                    raise
                raise ConfigError(f"{store.folder}: {error}") from error
            if mask is None:
                return None
            masks.append(mask)
        return np.concatenate(masks)

    def _search(
        self,
        query_embeds: np.ndarray,
        queries: Sequence[SearchQuery],
        where: str | Sequence[str],
        k: int,
    ) -> list[SearchResult]:
        mask = self._mask(where)
        leaves_out = any(query.like is not None for query in queries)
        # A row is always like itself: one more is looked for, and it is left out.
        scores, rows = self._index.search(query_embeds, k + leaves_out if k > 0 else k, mask=mask)
        kept = [
            np.flatnonzero(found != (-1 if query.like is None else query.like))[:k]
            for query, found in zip(queries, rows, strict=True)
        ]
        return self._results(
            queries,
            [found[keep] for found, keep in zip(rows, kept, strict=True)],
            [found[keep] for found, keep in zip(scores, kept, strict=True)],
        )

    def _results(
        self,
        queries: Sequence[SearchQuery],
        rows: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
    ) -> list[SearchResult]:
        """Results of rows that count through all stores."""
        of_store, within = self._index.locate(np.concatenate([np.zeros(0, np.int64), *rows]))
        items = self._items(of_store, within)
        ends = np.cumsum([0, *map(len, rows)])
        return [
            SearchResult(
                query,
                within[begin:end],
                scores[i],
                self.stores,
                of_store[begin:end],
                items.slice(begin, end - begin),
            )
            for i, (query, begin, end) in enumerate(zip(queries, ends, ends[1:], strict=False))
        ]

    def _items(self, of_store: np.ndarray, within: np.ndarray) -> pa.Table:
        if len(self.stores) == 1:
            return self.store.items(within)
        places = [np.flatnonzero(of_store == i) for i in range(len(self.stores))]
        tables = [
            store.items(within[place]) for store, place in zip(self.stores, places, strict=True)
        ]
        return join_tables(tables).take(pa.array(np.argsort(np.concatenate(places))))

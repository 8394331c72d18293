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
from clipkit.retrieval.images import ImageRows
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
_REACH = 8  # rows that are looked for at first for each image wanted, where images have several


class StoreIndex:
    """One or more stores ready to be searched; see ``EmbeddingStore.index``.

    Search is exact unless ``approximate`` is asked for: the result is what comparing with every row
    gives, equal scores in the order of stores and rows. Several stores are searched one by one and
    merged by score. Of rows with the same image file, such as one for each of its captions, the
    first of that ranking is the hit, unless ``rows`` asks for each. The model is loaded when the
    first text or image is looked for.

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
        self._images = ImageRows(self.stores)
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

    def locate(self, row: int) -> tuple[int, int]:
        """Which store a row is in, counted through all of them, and its row there."""
        which, within = self._index.locate(np.array([row]))
        return int(which[0]), int(within[0])

    def numbers(self, of_store: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(n,) rows of stores → (n,) rows counted through all stores, as ``like`` takes them."""
        return np.asarray(self._index.starts[of_store] + rows)

    def count_items(self) -> int:
        """How many items are compared for near-duplicates: images, or captions."""
        firsts = self._images.first_rows(None) if self.kind == "image" else None
        return len(self) if firsts is None else int(firsts.sum())

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
        rows: bool = False,
    ) -> SearchResult:
        """The k items nearest to a query, the nearest first.

        Args:
            text: what to look for, in words.
            image: and, or, a picture of it.
            negative: in words, what it should not be.
            like: a row, counted through all stores, to find more like it; its image is left out.
            weights: of ``text``, ``image``, ``like`` (1 each) and ``negative`` (0.5).
            where: conditions that items must meet, all of them, such as ``"width>=512"``; see
                :mod:`clipkit.retrieval.where`.
            k: how many; fewer come back where there are fewer.
            rows: whether each row is a hit; else one of each image is.

        Raises:
            ConfigError: there is nothing to look for, ``k`` is below 1, or a condition or weight
                makes no sense.
            ClipkitError: a text is empty.
            DataError: the image cannot be read.
            CheckpointError: the model is missing or another one, or the store is damaged.
        """
        query = SearchQuery(text, image, like, negative, weights or {})
        return self.search_many([query], where=where, k=k, rows=rows)[0]

    def search_many(
        self,
        queries: Sequence[str | SearchQuery],
        *,
        where: str | Sequence[str] = (),
        k: int = 10,
        rows: bool = False,
    ) -> list[SearchResult]:
        """The results of several queries at once, which is faster than one after the other.

        Args:
            queries: texts, or queries of several parts.
            where: see ``search``.
            k: how many a query.
            rows: see ``search``.

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
        return self._search(query_embeds, wanted, where, k, rows)

    def search_embeds(
        self,
        query_embeds: np.ndarray,
        k: int = 10,
        where: str | Sequence[str] = (),
        rows: bool = False,
    ) -> list[SearchResult]:
        """The results of queries that are vectors already; no model is loaded.

        Args:
            query_embeds: (Q, D), of the model that made the store.
            k: how many a query.
            where: see ``search``.
            rows: see ``search``.

        Raises:
            ClipkitError: they have another D, or are not finite.
        """
        query_embeds = np.atleast_2d(query_embeds)
        named = [SearchQuery(f"vector {i}") for i in range(len(query_embeds))]
        return self._search(query_embeds, named, where, k, rows)

    def vector(self, row: int) -> np.ndarray:
        """(D,) float32, the vector of a row, counted through all stores.

        Raises:
            ConfigError: there is no such row.
        """
        last = len(self) - 1
        if not 0 <= row <= last:
            names = " + ".join(str(store.folder) for store in self.stores)
            raise ConfigError(f"like: {row} is no row of {names}; 0 to {last}")
        vector: np.ndarray = self._index.vectors(np.array([row]))[0]
        return vector

    def duplicates(
        self,
        least: float = 0.95,
        *,
        where: str | Sequence[str] = (),
        rows: bool = False,
        progress: bool = False,
    ) -> Iterator[SearchResult]:
        """Groups of items that are nearly the same, the largest first.

        A group is an item that stays, with a score of 1, and those after it that are as near to it
        as asked for, the nearest first; an item belongs to the first such one. So whoever keeps
        the first of each group, and what is in none, keeps no two that are that near. This is
        exact. It compares each item with all that stay: N² D / 2 multiplications at most.

        Args:
            least: the cosine, above 0 and below 1.
            where: see ``search``; among these items alone.
            rows: whether rows of the same image are compared, too; captions always are.
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
        mask = self._mask(where)
        if self.kind == "image" and not rows:
            mask = self._images.first_rows(mask)
        first, scores = find_duplicates(
            self._index, np.float32(least), mask=mask, progress=progress
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
        others = sorted({name for store in self.stores for name in store.schema.names})
        for store in self.stores:
            try:
                mask = rows_where(store, where, others)
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
        rows: bool,
    ) -> list[SearchResult]:
        mask = self._mask(where)
        # A row is always like itself: one more is looked for, and it is left out.
        wanted = k + any(query.like is not None for query in queries) if k > 0 else k
        if rows or self._images.most == 1:
            scores, found = self._index.search(query_embeds, wanted, mask=mask)
            ranked = list(zip(scores, found, strict=True))
        else:
            ranked = self._one_an_image(query_embeds, wanted, mask)
        found_rows, found_scores = [], []
        for query, (scores, found) in zip(queries, ranked, strict=True):
            kept = np.ones(len(found), dtype=bool)
            if query.like is not None and len(found):
                like = query.like
                kept = found != like if rows else ~self._images.same(found, like)
            found_rows.append(found[kept][:k])
            found_scores.append(scores[kept][:k])
        return self._results(queries, found_rows, found_scores, rows_alone=rows)

    def _one_an_image(
        self, query_embeds: np.ndarray, wanted: int, mask: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Scores and rows of each query's best images, at their best rows.

        The ranking of all rows is read until it has as many images as are wanted.
        """
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        left, reach = np.arange(len(query_embeds)), min(_REACH, self._images.most)
        while len(left):
            k = wanted * reach
            all_scores, all_rows = self._index.search(query_embeds[left], k, mask=mask)
            complete = reach >= self._images.most or all_rows.shape[1] < k
            for query, scores, rows in zip(left.tolist(), all_scores, all_rows, strict=True):
                firsts = self._images.firsts(rows)[:wanted]
                if complete or len(firsts) >= wanted:
                    found[query] = scores[firsts], rows[firsts]
            left = np.array([query for query in left.tolist() if query not in found], dtype=int)
            reach = min(4 * reach, self._images.most)
        return [found[query] for query in range(len(query_embeds))]

    def _results(
        self,
        queries: Sequence[SearchQuery],
        rows: Sequence[np.ndarray],
        scores: Sequence[np.ndarray],
        *,
        rows_alone: bool = True,
    ) -> list[SearchResult]:
        """Results of rows that count through all stores.

        Args:
            queries: Q of them.
            rows: of each query.
            scores: of each query's rows.
            rows_alone: whether each row is a hit, whatever else is of the same image.
        """
        of_store, within = self._index.locate(np.concatenate([np.zeros(0, np.int64), *rows]))
        items = self._items(of_store, within)
        more = np.zeros(len(within), dtype=np.int64)
        if not rows_alone:
            for place, store in enumerate(self.stores):
                here = of_store == place
                more[here] = store.rows_an_image(within[here]) - 1
        ends = np.cumsum([0, *map(len, rows)])
        return [
            SearchResult(
                query,
                within[begin:end],
                scores[i],
                self.stores,
                of_store[begin:end],
                items.slice(begin, end - begin),
                None if rows_alone else more[begin:end],
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

"""Queries of many clients at once → hits; the model runs in threads of its own.

Texts that wait together are embedded together, and searched together where their conditions are
the same. Pictures are decoded and embedded one after the other, so that at most one large one is
in memory.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.inputs import open_image
from clipkit.retrieval.query import SearchQuery
from clipkit.retrieval.result import Hit, SearchResult
from clipkit.retrieval.search import StoreIndex
from clipkit.serve.cache import RecentlyUsed
from clipkit.serve.limits import Limits
from clipkit.serve.stores import Served, ServedStores

_TOGETHER = 32  # texts that are embedded at once


@dataclass(frozen=True, slots=True)
class Wanted:
    """One search.

    Attributes:
        text: in words.
        negative: what it should not be, in words.
        like: a row, counted through all stores.
        picture: an image file's bytes.
        where: conditions, see :mod:`clipkit.retrieval.where`.
        k: results.
        rows: whether each row is a hit; else one of each image is.
        state: the ``id`` of the stores that ``like`` is a row of; None: as they are now.
    """

    text: str | None = None
    negative: str | None = None
    like: int | None = None
    picture: bytes | None = None
    where: tuple[str, ...] = ()
    k: int = 24
    rows: bool = False
    state: str | None = None

    @property
    def is_text_alone(self) -> bool:
        """Whether its vector is the text's, which may be known already."""
        return self.text is not None and (self.negative, self.like, self.picture) == (None,) * 3


@dataclass(frozen=True, slots=True)
class Found:
    """Result of one search.

    Attributes:
        served: the stores in the state that was searched.
        hits: the best first.
        numbers: their rows, counted through all stores.
    """

    served: Served
    hits: list[Hit]
    numbers: list[int]


class Updated(ClipkitError):
    """A row is asked for of what the stores were before an update."""


@dataclass(slots=True)
class _Job:
    wanted: Wanted
    future: Future[Found] = field(default_factory=Future)


class Engine:
    """Answers searches from any number of clients.

    Args:
        stores: where to look.
        limits: how many vectors are kept, and how large pictures may be.

    Attributes:
        stores: where it looks.
        model: held while the model computes.
    """

    def __init__(self, stores: ServedStores, limits: Limits) -> None:
        self.stores, self.model = stores, threading.Lock()
        self._encoder = stores.encoder
        self._limits = limits
        self._embeds: RecentlyUsed[str, np.ndarray] = RecentlyUsed(limits.embeds)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._uploads = ThreadPoolExecutor(1, "uploads")
        threading.Thread(target=self._work, name="searches", daemon=True).start()

    @property
    def index(self) -> StoreIndex:
        """Where it looks now."""
        return self.stores.current.index

    async def search(self, wanted: Wanted) -> Found:
        """The hits of one query, the best first.

        Raises:
            Updated: ``like`` is a row of what the stores were before.
            ClipkitError: what is wanted makes no sense; the text says why.
            CheckpointError: the store is damaged.
        """
        if wanted.picture is not None:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._uploads, self._search_picture, wanted)
        job = _Job(wanted)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    def _search_picture(self, wanted: Wanted) -> Found:
        assert wanted.picture is not None
        image = open_image(wanted.picture, where="picture", max_pixels=self._limits.pixels)
        return self._search_one(wanted, image)

    def _search_one(self, wanted: Wanted, image: object = None) -> Found:
        served = self.stores.current
        if wanted.like is not None and wanted.state not in (None, served.facts["id"]):
            raise Updated("the store has been updated since; search again")
        query = SearchQuery(
            wanted.text,
            image,  # type: ignore[arg-type]
            wanted.like,
            () if wanted.negative is None else wanted.negative,
        )
        with self.model:
            results = served.index.search_many(
                [query], where=wanted.where, k=wanted.k, rows=wanted.rows
            )
        return _found(served, results[0], wanted.k)

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while len(jobs) < _TOGETHER and not self._jobs.empty():
                jobs.append(self._jobs.get())
            # Those whose clients have gone, or have waited too long, are left out.
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            texts = [job for job in jobs if job.wanted.is_text_alone]
            for alike in dict.fromkeys((job.wanted.where, job.wanted.rows) for job in texts):
                self._answer([j for j in texts if (j.wanted.where, j.wanted.rows) == alike])
            for job in jobs:
                if not job.wanted.is_text_alone:
                    self._answer([job])

    def _answer(self, jobs: list[_Job]) -> None:
        """Of one query of any kind, or of several texts with the same conditions."""
        try:
            if jobs[0].wanted.is_text_alone:
                found = self._search_texts([job.wanted for job in jobs])
            else:
                found = [self._search_one(jobs[0].wanted)]
        except BaseException as error:
            for job in jobs:
                job.future.set_exception(error)
            return
        for job, hits in zip(jobs, found, strict=True):
            job.future.set_result(hits)

    def _search_texts(self, wanted: list[Wanted]) -> list[Found]:
        query_embeds = self._embed([str(each.text) for each in wanted])
        served = self.stores.current
        results = served.index.search_embeds(
            query_embeds,
            k=max(each.k for each in wanted),
            where=wanted[0].where,
            rows=wanted[0].rows,
        )
        return [
            _found(served, result, each.k) for each, result in zip(wanted, results, strict=True)
        ]

    def _embed(self, texts: list[str]) -> np.ndarray:
        """(Q, D) of texts, which the caller found not to be empty."""
        known = {text: self._embeds.get(text) for text in texts}
        new = [text for text, vector in known.items() if vector is None]
        if new:
            with self.model:
                vectors = self._encoder.encode_text(new)
            for text, vector in zip(new, vectors, strict=True):
                known[text] = vector
                self._embeds.put(text, vector.copy())  # a view would keep all of the batch
        found = [vector for text in texts if (vector := known[text]) is not None]
        if len(found) != len(texts):
            raise ClipkitError("the model gave fewer vectors than texts")
        return np.stack(found)


def _found(served: Served, result: SearchResult, k: int) -> Found:
    """The first k hits of a result."""
    numbers = served.index.numbers(result.of_store, result.rows)
    return Found(served, result[:k], numbers[:k].tolist())

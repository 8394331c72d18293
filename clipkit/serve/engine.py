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
from clipkit.retrieval.result import Hit
from clipkit.retrieval.search import StoreIndex
from clipkit.serve.cache import RecentlyUsed
from clipkit.serve.limits import Limits

_TOGETHER = 32  # texts that are embedded at once


@dataclass(frozen=True, slots=True)
class Wanted:
    """One search.

    Attributes:
        text: in words.
        negative: what it should not be, in words.
        like: a row of the store.
        picture: an image file's bytes.
        where: conditions, see :mod:`clipkit.retrieval.where`.
        k: results.
    """

    text: str | None = None
    negative: str | None = None
    like: int | None = None
    picture: bytes | None = None
    where: tuple[str, ...] = ()
    k: int = 24

    @property
    def is_text_alone(self) -> bool:
        """Whether its vector is the text's, which may be known already."""
        return self.text is not None and (self.negative, self.like, self.picture) == (None,) * 3


@dataclass(slots=True)
class _Job:
    wanted: Wanted
    future: Future[list[Hit]] = field(default_factory=Future)


class Engine:
    """Answers searches from any number of clients.

    Args:
        index: where to look; its model is loaded here, if it is not yet.
        limits: how many vectors are kept, and how large pictures may be.

    Raises:
        CheckpointError: the model is missing, or is not the one that made the store.

    Attributes:
        index: where it looks.
        model: held while the model computes.
    """

    def __init__(self, index: StoreIndex, limits: Limits) -> None:
        self.index, self.model = index, threading.Lock()
        self._encoder = index.encoder
        self._limits = limits
        self._embeds: RecentlyUsed[str, np.ndarray] = RecentlyUsed(limits.embeds)
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._uploads = ThreadPoolExecutor(1, "uploads")
        threading.Thread(target=self._work, name="searches", daemon=True).start()

    async def search(self, wanted: Wanted) -> list[Hit]:
        """The hits of one query, the best first.

        Raises:
            ClipkitError: what is wanted makes no sense; the text says why.
            CheckpointError: the store is damaged.
        """
        if wanted.picture is not None:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._uploads, self._search_picture, wanted)
        job = _Job(wanted)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    def _search_picture(self, wanted: Wanted) -> list[Hit]:
        assert wanted.picture is not None
        image = open_image(wanted.picture, where="picture", max_pixels=self._limits.pixels)
        return self._search_one(wanted, image)

    def _search_one(self, wanted: Wanted, image: object = None) -> list[Hit]:
        query = SearchQuery(
            wanted.text,
            image,  # type: ignore[arg-type]
            wanted.like,
            () if wanted.negative is None else wanted.negative,
        )
        with self.model:
            return list(self.index.search_many([query], where=wanted.where, k=wanted.k)[0])

    def _work(self) -> None:
        while True:
            jobs = [self._jobs.get()]
            while len(jobs) < _TOGETHER and not self._jobs.empty():
                jobs.append(self._jobs.get())
            # Those whose clients have gone, or have waited too long, are left out.
            jobs = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            texts = [job for job in jobs if job.wanted.is_text_alone]
            for where in dict.fromkeys(job.wanted.where for job in texts):
                self._answer([job for job in texts if job.wanted.where == where])
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

    def _search_texts(self, wanted: list[Wanted]) -> list[list[Hit]]:
        query_embeds = self._embed([str(each.text) for each in wanted])
        results = self.index.search_embeds(
            query_embeds, k=max(each.k for each in wanted), where=wanted[0].where
        )
        return [result[: each.k] for each, result in zip(wanted, results, strict=True)]

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

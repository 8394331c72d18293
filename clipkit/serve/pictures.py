"""A row of a store → its picture, read from where it was embedded, small, as WebP."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from clipkit.data import SampleError
from clipkit.display.page import small_webp
from clipkit.errors import ClipkitError, DataError
from clipkit.retrieval.page import reader_of
from clipkit.retrieval.store import EmbeddingStore
from clipkit.serve.cache import RecentlyUsed
from clipkit.serve.limits import Limits


class NoPicture(ClipkitError):
    """A row's picture is gone, or is broken."""


class Pictures:
    """Shows the rows of a store. A client names a row; which file is read follows from the
    store's source alone.

    Args:
        store: whose rows are shown.
        limits: how many bytes are kept.

    Attributes:
        fault: why no picture at all can be shown; None where they can.
    """

    def __init__(self, store: EmbeddingStore, limits: Limits) -> None:
        self._store = store
        self._reader, self.fault = reader_of(store)
        self._kept: RecentlyUsed[tuple[int, int], bytes] = RecentlyUsed(limits.pictures_bytes, len)
        self._threads = ThreadPoolExecutor(2, "pictures")
        self._reading = threading.Lock()  # readers are made for one thread

    async def get(self, row: int, edge: int) -> bytes:
        """A row's picture as WebP, its longest edge at most so long.

        Raises:
            NoPicture: it cannot be shown; the text says why.
        """
        kept = self._kept.get((row, edge))
        if kept is not None:
            return kept
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._make, row, edge)

    def _make(self, row: int, edge: int) -> bytes:
        if self._reader is None:
            raise NoPicture(self.fault or "the source is gone")
        if not 0 <= row < len(self._store):
            raise NoPicture(f"{row} is no row of this store")
        source_row = self._store.items([row])["source_row"][0].as_py()
        try:
            with self._reading:
                data = self._reader[source_row].image
            if data is None:
                raise NoPicture("there is no picture at this row")
            picture = small_webp(data, edge)
        except (SampleError, DataError, IndexError, OSError) as error:
            raise NoPicture(f"the picture cannot be shown ({error})") from error
        self._kept.put((row, edge), picture)
        return picture

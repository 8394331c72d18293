"""A row of a store → its picture, read from where it was embedded, small, as WebP."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

from clipkit.data import SampleError
from clipkit.display.page import small_webp
from clipkit.errors import ClipkitError, DataError
from clipkit.retrieval.page import reader_of
from clipkit.retrieval.search import StoreIndex
from clipkit.serve.cache import RecentlyUsed
from clipkit.serve.limits import Limits


class NoPicture(ClipkitError):
    """A row's picture is gone, or is broken."""


class Pictures:
    """Shows the rows of stores. A client names a row; which file is read follows from the
    sources of the stores alone.

    Args:
        index: the stores whose rows are shown, counted through all of them.
        limits: how many bytes are kept.

    Attributes:
        fault: why no pictures of a store can be shown; None where all can.
    """

    def __init__(self, index: StoreIndex, limits: Limits) -> None:
        self._index = index
        self._readers = [reader_of(store) for store in index.stores]
        faults = dict.fromkeys(fault for _, fault in self._readers if fault)
        self.fault = "; ".join(faults) or None
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
        if not 0 <= row < len(self._index):
            raise NoPicture(f"{row} is no row of this store")
        place, within = self._index.locate(row)
        reader, fault = self._readers[place]
        if reader is None:
            raise NoPicture(fault or "the source is gone")
        source_row = self._index.stores[place].items([within], ["source_row"])[0][0].as_py()
        try:
            with self._reading:
                data = reader[source_row].image
            if data is None:
                raise NoPicture("there is no picture at this row")
            picture = small_webp(data, edge)
        except (SampleError, DataError, IndexError, OSError) as error:
            raise NoPicture(f"the picture cannot be shown ({error})") from error
        self._kept.put((row, edge), picture)
        return picture

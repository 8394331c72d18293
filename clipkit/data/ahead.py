"""Remote samples are read by threads, and before they are needed: a network answers late, but
many requests at a time."""

from __future__ import annotations

import os
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from torch.utils.data import get_worker_info

from clipkit.data.reader import Reader
from clipkit.types import Pair

_THREADS = 32
_PIECES_AHEAD = 2


class ReadAhead:
    """Reads the rows of pieces, and those of the pieces that this worker makes next.

    Args:
        reader: of a remote source.
        rows: piece number → its rows; none behind the last piece.
    """

    def __init__(self, reader: Reader, rows: Callable[[int], Iterable[int]]) -> None:
        self._reader, self._rows = reader, rows
        self._pieces: OrderedDict[int, list[Future[Pair]]] = OrderedDict()
        self._threads: _Threads | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pieces": OrderedDict(), "_threads": None}

    def pairs(self, number: int) -> list[Future[Pair]]:
        """What the piece's rows give, or will: a pair, or the error of reading it."""
        if self._threads is None or self._threads.pid != os.getpid():  # a fork has no threads
            self._threads = _Threads()
            self._pieces.clear()
        worker = get_worker_info()
        stride = worker.num_workers if worker is not None else 1  # pieces are dealt out in turn
        for each in range(number, number + (1 + _PIECES_AHEAD) * stride, stride):
            if each not in self._pieces:
                self._pieces[each] = [self._threads.submit(self._read, r) for r in self._rows(each)]
        while len(self._pieces) > 1 + _PIECES_AHEAD:  # of an order that was given up
            self._pieces.popitem(last=False)
        return self._pieces.pop(number)

    def _read(self, row: int) -> Pair:
        return self._reader[row]


class _Threads:
    """Daemons, so that nothing waits for an answer that nobody needs any more."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._work: queue.SimpleQueue[tuple[Future[Pair], Callable[[int], Pair], int]]
        self._work = queue.SimpleQueue()
        for _ in range(_THREADS):
            threading.Thread(target=self._run, daemon=True).start()

    def submit(self, action: Callable[[int], Pair], row: int) -> Future[Pair]:
        future: Future[Pair] = Future()
        self._work.put((future, action, row))
        return future

    def _run(self) -> None:
        while True:
            future, action, row = self._work.get()
            try:
                future.set_result(action(row))
            except BaseException as error:  # whoever asks for the result gets it
                future.set_exception(error)

"""The most recently used of something, up to a size."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class RecentlyUsed(Generic[K, V]):
    """A mapping that forgets what was not used for longest; safe among threads.

    Args:
        room: how much is kept at most.
        size: what a value takes of it; 1 where not given.
    """

    def __init__(self, room: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self.room, self.used = room, 0
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """What is kept under a key, if it still is."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: K, value: V) -> None:
        """Keeps a value, unless it alone is too large."""
        with self._lock:
            if key in self._values:
                self.used -= self._size(self._values.pop(key))
            if self._size(value) > self.room:
                return
            self._values[key] = value
            self.used += self._size(value)
            while self.used > self.room:
                _, dropped = self._values.popitem(last=False)
                self.used -= self._size(dropped)

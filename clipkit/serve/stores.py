"""The stores that are served, as they are now: an update that is finished is taken over."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError
from clipkit.retrieval.search import StoreIndex
from clipkit.retrieval.store import EmbeddingStore
from clipkit.serve.facts import store_facts
from clipkit.serve.limits import Limits
from clipkit.serve.pictures import Pictures

_WATCHED = ("manifest.json", "index/image-exact.json", "index/text-exact.json")


@dataclass(frozen=True, slots=True)
class Served:
    """Stores in one state. A row is counted through all of them, and means this state.

    Attributes:
        index: searches them.
        pictures: shows their rows.
        facts: what ``/api/store`` answers; ``id`` names the state.
    """

    index: StoreIndex
    pictures: Pictures
    facts: dict[str, Any]


class ServedStores:
    """Opens stores, and opens them again once they have changed.

    Args:
        folders: of the stores.
        model: what made them; none: the one that the first names.
        limits: how many bytes of pictures are kept.

    Raises:
        CheckpointError: a store or the model cannot be used, or the stores are of several models.

    Attributes:
        current: the newest state that could be opened.
    """

    def __init__(self, folders: Sequence[str | Path], model: str | None, limits: Limits) -> None:
        self._folders = [Path(folder).expanduser() for folder in folders]
        self._limits = limits
        self._opening = threading.Lock()
        self._seen = self._stamps()
        self.current = self._open(model)
        self.encoder: Encoder = self.current.index.encoder

    def has_changed(self) -> bool:
        """Whether a store is not as it was when it was last opened or tried."""
        return self._stamps() != self._seen

    def refresh(self) -> None:
        """Opens stores that have changed. Where they cannot be opened, what was served goes on
        being served, and the log says why. Only one thread does this; others do not wait."""
        if not self._opening.acquire(blocking=False):
            return
        try:
            stamps = self._stamps()
            if stamps == self._seen:
                return
            # Before the files are read: a change meanwhile is seen as another one.
            self._seen = stamps
            try:
                self.current = self._open(self.encoder)
                print(f"{self.current.facts['name']}: taken over as it is now", file=sys.stderr)
            except (ClipkitError, OSError) as error:
                print(f"a store has changed and is served as it was: {error}", file=sys.stderr)
        finally:
            self._opening.release()

    def _open(self, model: str | Encoder | None) -> Served:
        first, *also = [EmbeddingStore(folder) for folder in self._folders]
        index = first.index(model=model, also=also)
        pictures = Pictures(index, self._limits)
        return Served(index, pictures, store_facts(index, fault=pictures.fault))

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        """State that changes when a store or its index does."""
        stamps: list[tuple[int, int, int] | None] = []
        for path in (folder / name for folder in self._folders for name in _WATCHED):
            try:
                stat = path.stat()
                stamps.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
            except OSError:
                stamps.append(None)
        return stamps

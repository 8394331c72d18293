"""Keys of samples → small pictures, from the sources that were evaluated, where they still are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, SampleError, open_source
from clipkit.data.files import is_url
from clipkit.display.page import thumbnail
from clipkit.errors import ClipkitError
from clipkit.types import Pair

_EDGE = 160  # pixels
_MOST = 300  # pictures of a page, which they would else make too large
_READ = 3000  # rows at most that are read in search of a key


@dataclass(frozen=True, slots=True)
class Found:
    """A sample that is still there: its picture, a data URI, and its caption."""

    picture: str
    caption: str


class Pictures:
    """Opens each source once, and counts the pictures of a page."""

    def __init__(self) -> None:
        self._readers: dict[str, Reader | str] = {}
        self.left = _MOST

    def reader(self, source: SourceConfig) -> Reader | str:
        """A source opened; or why it cannot be, for the reader of the page."""
        if (name := repr(source)) not in self._readers:
            self._readers[name] = _open(source)
        return self._readers[name]

    def find(self, path: Any, places: Mapping[str, int]) -> tuple[dict[str, Found], str]:
        """Pictures by key; and a sentence where there are none.

        Args:
            path: of the source, or a list of which it is the first.
            places: of each key, how many samples came before it.
        """
        source = source_at(path)
        reader = self.reader(source)
        if isinstance(reader, str):
            return {}, reader
        found: dict[str, Found] = {}
        for key, place in places.items():
            if self.left <= 0:
                return found, f"No more than {_MOST} pictures are on a page."
            pair = _pair_of(reader, key, place)
            picture = thumbnail(pair.image, edge=_EDGE) if pair is not None else None
            if pair is not None and picture is not None:
                found[key] = Found(picture, pair.caption or "")
                self.left -= 1
        missing = (
            "" if found else f"{source.path}: these samples are not there any more: no pictures."
        )
        return found, missing


def source_at(path: Any) -> SourceConfig:
    """The source that results name by its path, or as the first of several."""
    paths = path if isinstance(path, list) else [path]
    return SourceConfig(path=str(paths[0]) if paths and paths[0] else "")


def _open(source: SourceConfig) -> Reader | str:
    path = source.path
    if not path:
        return "The results do not say where the images were, so there are no pictures."
    if is_url(path):
        return f"{path} is not on this machine, so there are no pictures."
    try:
        return open_source(source, progress=False)
    except (ClipkitError, OSError):
        return f"{path} is not there any more, or cannot be read, so there are no pictures."


def _pair_of(reader: Reader, key: str, place: int) -> Pair | None:
    """The sample of a key: at its place or after it, as those that were skipped come before."""
    near = range(place, min(place + 64, len(reader)))
    rows = [*near, *(range(min(place, len(reader))) if len(reader) <= _READ else ())]
    for row in [*rows, *(range(near.stop, len(reader)) if len(reader) <= _READ else ())]:
        try:
            pair = reader[row]
        except (SampleError, ClipkitError):
            continue
        if pair.key == key:
            return pair
    return None

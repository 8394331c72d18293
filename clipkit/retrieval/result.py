"""Rows and scores → what was found: in a notebook, as a table, or one hit after the other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyarrow as pa

from clipkit.display.console import escape_control, format_table, shorten

if TYPE_CHECKING:
    import pandas as pd

    from clipkit.retrieval.query import SearchQuery
    from clipkit.retrieval.store import EmbeddingStore

_OF_HIT = ("row", "score", "store")
_OWN = ("key", "caption", "origin", "source_row")
_NOT_SHOWN = (*_OWN, "image_hash")


@dataclass(frozen=True, slots=True)
class Hit:
    """One thing found.

    Attributes:
        store: its folder.
        row: in the store.
        score: the cosine, from -1 to 1.
        key: its name in the source.
        caption: its text; None where it has none.
        origin: where it came from.
        source_row: its row in the source.
        metadata: the store's other columns.
        more: further rows of the same image in its store, such as those of other captions; 0
            where each row was asked for.
    """

    store: str
    row: int
    score: float
    key: str
    caption: str | None
    origin: str
    source_row: int
    metadata: dict[str, Any] = field(default_factory=dict)
    more: int = 0


class SearchResult(Sequence[Hit]):
    """What one query finds, the best first: a sequence of hits that a notebook shows as pictures.

    Attributes:
        query: what was looked for.
        rows: (k,) int64, each in its store.
        scores: (k,) float32 cosines.
        stores: where it was looked for.
        of_store: (k,) int64, which of them each hit is from.
        items: the stores' columns, k rows.
        more: (k,) int64, further rows of the same image in the hit's store; 0 where each row is
            a hit.
    """

    def __init__(
        self,
        query: SearchQuery,
        rows: np.ndarray,
        scores: np.ndarray,
        stores: Sequence[EmbeddingStore],
        of_store: np.ndarray,
        items: pa.Table,
        more: np.ndarray | None = None,
    ) -> None:
        self.query, self.rows, self.scores = query, rows, scores
        self.stores, self.of_store, self.items = stores, of_store, items
        self.more = np.zeros(len(rows), dtype=np.int64) if more is None else more

    @property
    def keys(self) -> list[str]:
        """k names in the source."""
        return [str(key) for key in self.items["key"].to_pylist()]

    @property
    def captions(self) -> list[str | None]:
        """k texts, None where there is none."""
        captions: list[str | None] = self.items["caption"].to_pylist()
        return captions

    @cached_property
    def hits(self) -> list[Hit]:
        """k hits."""
        return [
            Hit(
                store=str(self.stores[place].folder),
                row=int(row),
                score=float(score),
                metadata={name: value for name, value in item.items() if name not in _NOT_SHOWN},
                more=int(more),
                **{name: item[name] for name in _OWN},
            )
            for place, row, score, item, more in zip(
                *(self.of_store, self.rows, self.scores, self.items.to_pylist(), self.more),
                strict=True,
            )
        ]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Hit]: ...
    def __getitem__(self, index: int | slice) -> Hit | list[Hit]:
        return self.hits[index]

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __repr__(self) -> str:
        return f"{self.query}\n{format_hits(self)}"

    def to_pandas(self) -> pd.DataFrame:
        """A row a hit: row, score, with several stores the store, and the stores' columns; one of
        theirs that has such a name gets ``metadata_`` before it."""
        frame: pd.DataFrame = self.items.to_pandas()
        frame = frame.rename(columns={name: f"metadata_{name}" for name in _OF_HIT})
        frame.insert(0, "row", self.rows)
        frame.insert(1, "score", self.scores)
        if len(self.stores) > 1:
            frame.insert(0, "store", [hit.store for hit in self.hits])
        return frame

    def _repr_html_(self) -> str:
        from clipkit.retrieval.page import notebook_gallery

        return notebook_gallery(self)


def plain_value(value: Any) -> Any:
    """A value as JSON has it: null for a number that is not finite, text for what is no number."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # A lone surrogate, as of a file's name that is not UTF-8, cannot be sent.
    return str(value).encode("utf-8", "replace").decode()


def format_hits(result: SearchResult, *, width: int = 200) -> str:
    """A table of hits for a terminal of some width; with several stores it names them."""
    from clipkit.display.console import display_width

    header = ["score", "caption", "key", "origin"]
    names = [[shorten(escape_control(hit.key), 60), escape_control(hit.origin)] for hit in result]
    if len(result.stores) > 1:
        header.append("store")
        names = [
            [*each, escape_control(hit.store)] for each, hit in zip(names, result, strict=True)
        ]
    fixed = 7 + max((sum(map(display_width, each)) for each in names), default=0)
    room = max(24, width - fixed - 6)
    rows = [
        [f"{hit.score:.3f}", _caption(hit, room), *each]
        for hit, each in zip(result, names, strict=True)
    ]
    return format_table(header, rows, right=[0])


def _caption(hit: Hit, room: int) -> str:
    """The caption in some room, and how many more its image has."""
    more = f" (+{hit.more:,} more)" if hit.more else ""
    return shorten(hit.caption or "", max(8, room - len(more))) + more

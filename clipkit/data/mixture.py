"""Several sources → one, by weights: what share of the positions each of them has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import SourceConfig
from clipkit.data import files
from clipkit.data.image_ids import ImageFiles, joined, number_images
from clipkit.data.mixture_order import BLOCK, positions_a_block
from clipkit.data.reader import TURN, Access, Reader, first_of
from clipkit.data.understood import Understood
from clipkit.types import Pair


class MixtureReader:
    """Sources laid end to end, and the weights by which an order draws from them; see
    :class:`clipkit.data.reader.Reader`.

    Args:
        parts: the sources by name.
        weights: one each, above 0; None: as many as it has samples.
    """

    def __init__(self, parts: dict[str, Reader], weights: Sequence[float | None]) -> None:
        self.parts, self.names = list(parts.values()), list(parts)
        self._asked = list(weights)
        told = [len(r) if w is None else w for r, w in zip(self.parts, weights, strict=True)]
        self.weights = [weight / sum(told) for weight in told]
        self.source = SourceConfig(path=" + ".join(part.source.path for part in self.parts))
        self.shard_sizes = [size for part in self.parts for size in part.shard_sizes]
        dropped: Counter[str] = Counter()
        for part in self.parts:
            dropped.update(part.dropped)
        self.dropped = dict(dropped)
        self.damage = [line for part in self.parts for line in part.damage]
        self.lost = sum(part.lost for part in self.parts)
        self.access = Access(
            remote=any(part.access.remote for part in self.parts),
            estimated=any(part.access.estimated for part in self.parts),
        )
        self.understood = Understood()  # each part has its own
        self.fingerprint = files.digest(*(part.fingerprint for part in self.parts))
        self._ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> Pair:
        part, inner = self._find(row)
        return part[inner]

    def locate(self, row: int) -> str:
        part, inner = self._find(row)
        return part.locate(inner)

    def place(self, row: int) -> tuple[str, int | None]:
        part, inner = self._find(row)
        return part.place(inner)

    def texts(self) -> Iterator[list[str]]:
        for part in self.parts:
            yield from part.texts()

    def captions(self) -> Iterator[str]:
        return first_of(self.texts())

    def image_files(self) -> ImageFiles | None:
        parts = [part.image_files() for part in self.parts]
        known = [part for part in parts if part is not None]
        return joined(known) if len(known) == len(parts) else None

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def drawn(self, positions: int) -> list[int]:
        """How many of the first ``positions`` samples come from each source, within a block."""
        counts = positions_a_block(self.weights)
        return [round(positions * int(count) / BLOCK) for count in counts]

    def like(self, parts: Sequence[Reader]) -> MixtureReader:
        """The same mixture of other parts: pieces of these."""
        return MixtureReader(dict(zip(self.names, parts, strict=True)), self._asked)

    def _find(self, row: int) -> tuple[Reader, int]:
        if not 0 <= row % TURN < len(self):
            raise IndexError(row)
        number = int(np.searchsorted(self._ends, row % TURN, side="right"))
        part = self.parts[number]
        return part, row - int(self._ends[number]) + len(part)

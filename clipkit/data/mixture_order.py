"""position → row of several sources, drawn by weights: a function of (seed, position) alone.

The definition, for sources with weights that sum to 1, each with an order of its own:

- Positions are cut into blocks of ``BLOCK``. A block holds a fixed number of positions of each
  source: its weight times ``BLOCK``, rounded so that they sum to ``BLOCK``, and at least one.
- Which positions of block b they are is a permutation drawn from (seed, b).
- The j-th position of a source, counted over all blocks, is position j of its own order, with a
  seed drawn from (seed, number of the source); so each source goes through its own epochs.

Rows count through the sources, one behind the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.order import Order, Rows
from clipkit.data.rng import Purpose, permutation, raw_bits

BLOCK = 4096


class MixtureOrder:
    """The order of samples drawn from several sources; see the module for its definition.

    Args:
        shard_sizes: samples a shard, for each source.
        weights: one a source, above 0; only their ratios count.
        seed: of the run; not negative.
        lanes: V of each source's order.
        chunk: of each source's order; one for all, or one each.
        window: of each source's order.
        turn: of each source's order; one for all, or one each.
    """

    def __init__(
        self,
        shard_sizes: Sequence[Sequence[int]],
        weights: Sequence[float],
        *,
        seed: int,
        lanes: int,
        chunk: int | Sequence[int],
        window: int,
        turn: int | Sequence[int] = 0,
    ) -> None:
        assert len(shard_sizes) == len(weights) <= BLOCK
        self.seed = seed
        chunks, turns = (np.broadcast_to(of_all, len(shard_sizes)) for of_all in (chunk, turn))
        self.orders = [
            Order(
                sizes,
                seed=_seed_of(seed, i),
                lanes=lanes,
                chunk=int(chunks[i]),
                window=window,
                turn=int(turns[i]),
            )
            for i, sizes in enumerate(shard_sizes)
        ]
        self.samples = sum(order.samples for order in self.orders)
        self.counts = positions_a_block(weights)
        self._first_row = np.cumsum([0, *(order.samples for order in self.orders)])
        self._blocks: OrderedDict[int, tuple[Rows, Rows]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_blocks": OrderedDict()}

    @property
    def shares(self) -> list[float]:
        """The share of the positions that each source really has."""
        return [count / BLOCK for count in self.counts]

    def rows(self, positions: NDArray[np.integer[Any]]) -> Rows:
        """The row read at each position.

        Args:
            positions: (P,) of any order, not negative.

        Returns:
            (P,) rows in [0, samples), and a source's ``turn`` more for each of its epochs before.
        """
        blocks, within = np.divmod(np.asarray(positions, dtype=np.int64), BLOCK)
        source, own = np.empty_like(blocks), np.empty_like(blocks)
        for block in np.unique(blocks):
            here = blocks == block
            of_place, nth = self._block(int(block))
            source[here] = of_place[within[here]]
            own[here] = block * self.counts[source[here]] + nth[within[here]]
        rows = np.empty_like(blocks)
        for i, order in enumerate(self.orders):
            of_source = source == i
            if of_source.any():
                rows[of_source] = self._first_row[i] + order.rows(own[of_source])
        return rows

    def _block(self, block: int) -> tuple[Rows, Rows]:
        """(BLOCK,) the source at each place of a block, and how many of it stand before it."""
        if block not in self._blocks:
            while len(self._blocks) >= 4:
                self._blocks.popitem(last=False)
            sources = np.repeat(np.arange(len(self.counts)), self.counts)
            source = sources[permutation(self.seed, Purpose.MIXTURE, block, size=BLOCK)]
            nth = np.empty_like(source)
            for i, count in enumerate(self.counts):
                nth[source == i] = np.arange(count)
            self._blocks[block] = (source, nth)
        return self._blocks[block]


def positions_a_block(weights: Sequence[float]) -> NDArray[np.int64]:
    """How many of ``BLOCK`` positions belong to each source: largest remainders, at least one."""
    exact = np.asarray(weights, dtype=np.float64) / np.sum(weights) * BLOCK
    counts: NDArray[np.int64] = np.maximum(1, np.floor(exact)).astype(np.int64)
    while counts.sum() != BLOCK:
        if counts.sum() < BLOCK:
            counts[np.argmax(exact - counts)] += 1
        else:  # the sources of less than one position took theirs from the largest
            counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts


def _seed_of(seed: int, source: int) -> int:
    return int(raw_bits(seed, Purpose.SOURCE, source, size=1)[0] >> np.uint64(1))

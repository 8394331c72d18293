"""position → row: the order of samples is a function of (seed, position) alone.

A checkpoint holds one integer, the step; it does not matter how many workers or ranks read,
or how large a batch is.

The definition, for N samples and V lanes (virtual readers, fixed for a run):

- Position p belongs to epoch e = p // N and to lane l = p % V.
- In each epoch the shards are cut into chunks of at most ``chunk`` neighbouring samples. A
  permutation drawn from (seed, e) lays the chunks end to end: a sequence of N slots.
- Lane l owns as many consecutive slots as the epoch has positions of that lane; the lanes'
  parts lie one after another, in lane order.
- A lane walks through its part in windows of ``window`` slots, each permuted by a draw from
  (seed, e, l, number of the window).

So the N positions of an epoch meet each sample exactly once, whatever N and V, and neighbours
of a shard that are read near one another in time (sequential reads) land in different
batches. Batches may straddle epochs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.rng import Purpose, permutation

Rows = NDArray[np.int64]


class Order:
    """The order of the samples of some shards; see the module for its definition.

    Args:
        shard_sizes: samples a shard, in shard order; a row is a sample's number in all of them.
        seed: of the run; not negative.
        lanes: V, the number of virtual readers.
        chunk: samples that stay neighbours when an epoch's chunks are permuted.
        window: slots of a lane that are permuted together.
    """

    def __init__(
        self, shard_sizes: Sequence[int], *, seed: int, lanes: int, chunk: int, window: int
    ) -> None:
        assert seed >= 0
        assert min(lanes, chunk, window) >= 1
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        assert sizes.sum() > 0, "an order of no samples"
        self.seed, self.lanes, self.chunk, self.window = seed, lanes, chunk, window
        self.samples = int(sizes.sum())
        # Chunk c lies in shard s where first_chunk[s] <= c < first_chunk[s + 1].
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-sizes // chunk))])
        self._first_row = np.concatenate([[0], np.cumsum(sizes)])
        self._max_windows = self.samples // lanes // window + 2  # of a lane; only tells lanes apart
        # Batches straddle two epochs at most; each lane stands in one window, or between two.
        self._epochs: OrderedDict[int, tuple[Rows, Rows]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], Rows] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epochs": OrderedDict(), "_windows": OrderedDict()}

    def rows(self, positions: NDArray[np.integer[Any]]) -> Rows:
        """The row read at each position.

        Args:
            positions: (P,) of any order, not negative.

        Returns:
            (P,) rows in [0, N).
        """
        positions = np.asarray(positions, dtype=np.int64)
        epochs = positions // self.samples
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._row_of_slot(int(epoch), self._slots(int(epoch), positions[here]))
        return rows

    def _slots(self, epoch: int, positions: Rows) -> Rows:
        """(P,) positions of one epoch → (P,) slots in [0, N)."""
        begin, lanes = epoch * self.samples, np.arange(self.lanes, dtype=np.int64)
        first = begin + (lanes - begin) % self.lanes  # each lane's first position in the epoch
        owned = np.maximum(0, -(-(begin + self.samples - first) // self.lanes))
        start = np.cumsum(owned) - owned
        lane = positions % self.lanes
        turn = (positions - first[lane]) // self.lanes  # j: the lane's j-th position
        window, within = np.divmod(turn, self.window)
        # One permutation serves all positions of a (lane, window).
        groups, member = np.unique(lane * self._max_windows + window, return_inverse=True)
        sorted_by_group = np.argsort(member, kind="stable")
        ends = np.cumsum(np.bincount(member, minlength=len(groups)))
        shuffled = np.empty_like(within)
        for group, some in zip(groups, np.split(sorted_by_group, ends[:-1]), strict=True):
            lane_, window_ = divmod(int(group), self._max_windows)
            size = min(self.window, int(owned[lane_]) - window_ * self.window)
            shuffled[some] = self._window(epoch, lane_, window_, size)[within[some]]
        slots: Rows = start[lane] + window * self.window + shuffled
        return slots

    def _row_of_slot(self, epoch: int, slots: Rows) -> Rows:
        chunks, ends = self._epoch(epoch)
        place = np.searchsorted(ends, slots, side="right")
        first_slot = np.where(place > 0, ends[place - 1], 0)
        return self._chunk_first_row(chunks[place]) + slots - first_slot

    def _chunk_first_row(self, chunks: Rows) -> Rows:
        """(C,) chunk numbers → the first row of each, (C,)."""
        shard = np.searchsorted(self._first_chunk, chunks, side="right") - 1
        first: Rows = self._first_row[shard] + (chunks - self._first_chunk[shard]) * self.chunk
        return first

    def _epoch(self, epoch: int) -> tuple[Rows, Rows]:
        """The epoch's chunks in order, and the slot each of them ends before; (C,) each."""
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                self._epochs.popitem(last=False)
            # All chunks are full but the last of each shard that is not a multiple of them.
            sizes = np.full(int(self._first_chunk[-1]), self.chunk, dtype=np.int32)
            filled = np.diff(self._first_row) > 0
            last = self._first_chunk[1:][filled] - 1
            sizes[last] = self._first_row[1:][filled] - self._chunk_first_row(last)
            chunks = permutation(self.seed, Purpose.CHUNKS, epoch, size=len(sizes))
            ends = np.cumsum(sizes[chunks], dtype=np.int64)
            self._epochs[epoch] = (chunks, ends)
        return self._epochs[epoch]

    def _window(self, epoch: int, lane: int, window: int, size: int) -> Rows:
        key = (epoch, lane, window)
        if key not in self._windows:
            while len(self._windows) >= 2 * self.lanes:
                self._windows.popitem(last=False)
            self._windows[key] = permutation(self.seed, Purpose.WINDOW, *key, size=size)
        else:
            self._windows.move_to_end(key)
        return self._windows[key]

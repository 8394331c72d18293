"""position → row: the order of samples is a function of (seed, position) alone.

A checkpoint holds one integer, the step; it does not matter how many workers or ranks read,
or how large a batch is.

The definition, for N samples and V lanes (virtual readers, fixed for a run):

- Position p belongs to epoch e = p // N and to lane l = p % V.
- The shards are cut into chunks of ``chunk`` neighbouring samples; the last of a shard may be
  shorter. In each epoch a permutation drawn from (seed, e) lays the chunks end to end: a
  sequence of N slots. Above ``chunk`` · 2**23 samples the chunks are of N / 2**23, rounded up,
  so that a permutation of them fits in little memory whatever N.
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
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clipkit.data.rng import Purpose, permutation

Rows = NDArray[np.int64]

MOST_CHUNKS = 2**23  # full ones; an epoch's permutation is drawn in 0.4 s and kept in 32 MiB


class RowOrder(Protocol):
    """What says which row is read at each position."""

    def rows(self, positions: NDArray[np.integer[Any]]) -> Rows:
        """(P,) positions, not negative, of any order → (P,) rows."""
        ...


class _Epoch(NamedTuple):
    """An epoch's C chunks, S of which are short.

    Attributes:
        chunks: (C,) their numbers, in the epoch's order.
        ends: (S,) the slot that each short chunk ends before, in the epoch's order.
        missing: (S + 1,) what the first 0, 1, … S short chunks are short of, together.
    """

    chunks: NDArray[np.int32]
    ends: Rows
    missing: Rows


class Order:
    """The order of the samples of some shards; see the module for its definition.

    Args:
        shard_sizes: samples a shard, in shard order; a row is a sample's number in all of them.
        seed: of the run; not negative.
        lanes: V, the number of virtual readers.
        chunk: samples that stay neighbours when an epoch's chunks are permuted; more, where
            there would be too many chunks.
        window: slots of a lane that are permuted together.
        turn: what a row grows by with each epoch, where a reader wants to know it.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        lanes: int,
        chunk: int,
        window: int,
        turn: int = 0,
    ) -> None:
        assert seed >= 0
        assert min(lanes, chunk, window) >= 1
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        assert sizes.sum() > 0, "an order of no samples"
        self.seed, self.lanes, self.window = seed, lanes, window
        self.turn = turn
        self.samples = int(sizes.sum())
        self.chunk = chunk = max(chunk, -(-self.samples // MOST_CHUNKS))
        # Chunk c lies in shard s where first_chunk[s] <= c < first_chunk[s + 1].
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-sizes // chunk))])
        self._first_row = np.concatenate([[0], np.cumsum(sizes)])
        short = np.flatnonzero(sizes % chunk)  # the shards whose last chunk is not full
        self._short = self._first_chunk[short + 1] - 1
        self._missing = chunk - sizes[short] % chunk
        self._max_windows = self.samples // lanes // window + 2  # of a lane; only tells lanes apart
        # Batches straddle two epochs at most; each lane stands in one window, or between two.
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int, int], Rows] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epochs": OrderedDict(), "_windows": OrderedDict()}

    def rows(self, positions: NDArray[np.integer[Any]]) -> Rows:
        """The row read at each position.

        Args:
            positions: (P,) of any order, not negative.

        Returns:
            (P,) rows in [0, N), and ``turn`` more for each epoch before.
        """
        positions = np.asarray(positions, dtype=np.int64)
        epochs = positions // self.samples
        rows = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            slots = self._slots(int(epoch), positions[here])
            rows[here] = self._row_of_slot(int(epoch), slots) + int(epoch) * self.turn
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
        if self.window == 1:
            return np.asarray(start[lane] + window)
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
        chunks, ends, missing = self._epoch(epoch)
        # The slot it would be if all chunks before it were full.
        slots = slots + missing[np.searchsorted(ends, slots, side="right")]
        place, within = np.divmod(slots, self.chunk)
        return self._chunk_first_row(chunks[place]) + within

    def _chunk_first_row(self, chunks: NDArray[np.int32]) -> Rows:
        """(C,) chunk numbers → the first row of each, (C,)."""
        shard = np.searchsorted(self._first_chunk, chunks, side="right") - 1
        first: Rows = self._first_row[shard] + (chunks - self._first_chunk[shard]) * self.chunk
        return first

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            while len(self._epochs) >= 2:
                self._epochs.popitem(last=False)
            count = int(self._first_chunk[-1])
            drawn = permutation(self.seed, Purpose.CHUNKS, epoch, size=count)
            chunks = drawn.astype(np.int32)  # half the memory, which each worker needs
            is_short = np.zeros(count, dtype=np.bool_)
            is_short[self._short] = True
            places = np.flatnonzero(is_short[chunks])
            missing = self._missing[np.searchsorted(self._short, chunks[places])]
            missing = np.concatenate([[0], np.cumsum(missing)])
            ends = (places + 1) * self.chunk - missing[1:]
            self._epochs[epoch] = _Epoch(chunks, ends, missing)
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

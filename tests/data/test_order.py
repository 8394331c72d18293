"""The order against a reference of a few lines, and its promise: each sample once an epoch."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from clipkit.data.order import Order
from clipkit.data.rng import Purpose, permutation, uniforms


def brute_force_rows(shard_sizes, seed, lanes, chunk, window, count):
    """The definition, read aloud: the rows at positions 0 … count-1."""
    n = sum(shard_sizes)
    rows = []
    epoch = 0
    while len(rows) < count:
        chunks, first = [], 0
        for size in shard_sizes:
            chunks += [
                range(a, min(a + chunk, first + size)) for a in range(first, first + size, chunk)
            ]
            first += size
        shuffled = permutation(seed, Purpose.CHUNKS, epoch, size=len(chunks))
        slots = [row for c in shuffled for row in chunks[c]]
        positions = range(epoch * n, (epoch + 1) * n)
        of_lane, at = {}, 0
        for lane in range(lanes):
            owned = sum(p % lanes == lane for p in positions)
            part, at = slots[at : at + owned], at + owned
            mixed = []
            for w, begin in enumerate(range(0, owned, window)):
                some = part[begin : begin + window]
                mixed += [
                    some[i]
                    for i in permutation(seed, Purpose.WINDOW, epoch, lane, w, size=len(some))
                ]
            of_lane[lane] = iter(mixed)
        rows += [next(of_lane[p % lanes]) for p in positions]
        epoch += 1
    return rows[:count]


CASES = [
    ([1], 8, 64, 4096),
    ([3], 8, 2, 2),
    ([3], 1, 1, 1),
    ([7, 0, 5], 8, 3, 2),
    ([10, 1, 13], 3, 4, 3),
    ([16], 8, 64, 4096),
    ([40, 40, 17], 8, 8, 5),
    ([97], 5, 1, 1000),
]


@pytest.mark.parametrize(("sizes", "lanes", "chunk", "window"), CASES)
def test_order_equals_the_brute_force_reference(sizes, lanes, chunk, window):
    order = Order(sizes, seed=3, lanes=lanes, chunk=chunk, window=window)
    count = 4 * sum(sizes) + 5
    expected = brute_force_rows(sizes, 3, lanes, chunk, window, count)
    assert order.rows(np.arange(count)).tolist() == expected


@pytest.mark.parametrize(
    ("sizes", "lanes", "chunk", "window"), [*CASES, ([1000, 900, 3], 8, 64, 100)]
)
def test_each_epoch_meets_each_sample_once(sizes, lanes, chunk, window):
    n = sum(sizes)
    order = Order(sizes, seed=0, lanes=lanes, chunk=chunk, window=window)
    for epoch in (0, 1, 2, 1_000_003):
        rows = order.rows(np.arange(epoch * n, (epoch + 1) * n))
        assert sorted(rows.tolist()) == list(range(n))


def test_rows_do_not_depend_on_how_positions_are_asked_for():
    sizes = [50, 31, 7]
    whole = Order(sizes, seed=1, lanes=4, chunk=8, window=6).rows(np.arange(300))
    asked = list(range(300))
    random.Random(0).shuffle(asked)
    order = Order(sizes, seed=1, lanes=4, chunk=8, window=6)
    one_by_one = {p: int(order.rows(np.array([p]))[0]) for p in asked}
    assert [one_by_one[p] for p in range(300)] == whole.tolist()
    shuffled = pickle.loads(pickle.dumps(order)).rows(np.array(asked))
    assert shuffled.tolist() == whole[asked].tolist()


def test_seeds_and_epochs_give_different_orders():
    def rows(seed, epoch):
        order = Order([500], seed=seed, lanes=8, chunk=16, window=64)
        return order.rows(np.arange(epoch * 500, (epoch + 1) * 500)).tolist()

    assert len({tuple(rows(s, e)) for s in range(3) for e in range(3)}) == 9


def test_neighbours_of_a_shard_are_spread_over_batches():
    # One shard sorted by class is the hard case: no batch may be made of neighbours.
    n, batch = 20_000, 256
    order = Order([n], seed=0, lanes=8, chunk=64, window=4096)
    rows = order.rows(np.arange(n - n % batch)).reshape(-1, batch)
    in_one_batch = [np.bincount(rows_ // 1000, minlength=20).max() for rows_ in rows]
    assert np.mean(in_one_batch) < 40  # a full permutation: 21; sequential reading: 256


def test_a_billion_samples_resume_at_any_position():
    sizes = np.full(100_000, 10_000)
    order = Order(sizes, seed=0, lanes=64, chunk=1024, window=4096)
    begin = 3_123_456_789
    rows = order.rows(np.arange(begin, begin + 4096))
    assert len(set(rows.tolist())) == 4096
    assert rows.min() >= 0
    assert rows.max() < 1_000_000_000


def test_draws_are_the_golden_ones():
    # Made with NumPy 2.4.6. A change here would change what every resumed run sees next.
    assert permutation(7, Purpose.CHUNKS, 1, size=8).tolist() == GOLDEN_PERMUTATION
    assert uniforms(7, Purpose.AUGMENT, 5, size=2).tolist() == GOLDEN_UNIFORMS
    order = Order([5, 6], seed=7, lanes=2, chunk=2, window=3)
    assert order.rows(np.arange(11)).tolist() == GOLDEN_ROWS


GOLDEN_PERMUTATION = [2, 6, 3, 5, 0, 4, 1, 7]
GOLDEN_UNIFORMS = [0.9158546494524418, 0.4793343300879548]
GOLDEN_ROWS = [5, 4, 7, 1, 6, 0, 3, 10, 2, 9, 8]

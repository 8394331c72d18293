"""The order against a reference of a few lines, and its promise: each sample once an epoch."""

from __future__ import annotations

import pickle
import random
import tracemalloc
from itertools import islice
from pathlib import Path

import numpy as np
import order_reference
import pytest

from clipkit.data.order import Order
from clipkit.data.rng import Purpose, permutation, uniforms

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
    options = {"seed": 3, "lanes": lanes, "chunk": chunk, "window": window}
    count = 4 * sum(sizes) + 5
    expected = list(islice(order_reference.order(sizes, **options), count))
    assert Order(sizes, **options).rows(np.arange(count)).tolist() == expected


def test_order_equals_the_reference_in_any_small_case():
    draw = random.Random(0)
    for _ in range(300):
        sizes = [draw.choice([0, 1, draw.randint(2, 40)]) for _ in range(draw.randint(1, 7))]
        sizes[draw.randrange(len(sizes))] += 1
        options = {
            "seed": draw.randrange(2**62),
            "lanes": draw.randint(1, 9),
            "chunk": draw.choice([1, 2, 3, 8, 64]),
            "window": draw.choice([1, 2, 5, 16, 4096]),
        }
        expected = list(islice(order_reference.order(sizes, **options), 4 * sum(sizes)))
        positions = list(range(len(expected)))
        draw.shuffle(positions)
        order = Order(sizes, **options)
        for some in np.array_split(np.array(positions), 5):
            assert order.rows(some).tolist() == [expected[p] for p in some], (sizes, options)


def test_above_the_most_chunks_they_are_longer(monkeypatch):
    monkeypatch.setattr("clipkit.data.order.MOST_CHUNKS", 16)
    monkeypatch.setattr(order_reference, "MOST_CHUNKS", 16)
    for sizes, chunk in [([64], 4), ([65], 5), ([40, 0, 101, 7], 10)]:
        order = Order(sizes, seed=1, lanes=3, chunk=4, window=20)
        assert order.chunk == chunk
        count = 2 * sum(sizes) + 3
        options = {"seed": 1, "lanes": 3, "chunk": 4, "window": 20}
        expected = list(islice(order_reference.order(sizes, **options), count))
        assert order.rows(np.arange(count)).tolist() == expected


def test_the_page_on_the_order_shows_the_reference():
    page = (Path(__file__).parents[2] / "docs" / "order.md").read_text(encoding="utf-8")
    code = Path(order_reference.__file__).read_text(encoding="utf-8")
    assert f"```python\n{code}```\n" in page


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


def test_rows_tell_their_epoch_where_a_reader_wants_to_know_it():
    options = {"seed": 1, "lanes": 4, "chunk": 8, "window": 6}
    positions = np.arange(300)
    rows = Order([50, 31, 7], **options).rows(positions)
    told = Order([50, 31, 7], **options, turn=1000).rows(positions)
    assert told.tolist() == (rows + positions // 88 * 1000).tolist()


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


def test_a_billion_samples_fit_and_resume_at_any_position():
    sizes = np.full(100_000, 10_000)
    sizes[::2] += 13
    sizes[1::2] -= 13
    begin = 3_123_456_789
    tracemalloc.start()
    order = Order(sizes, seed=0, lanes=8, chunk=64, window=4096)
    rows = order.rows(np.arange(begin, begin + 4096))
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 200 * 2**20
    assert held < 50 * 2**20
    assert len(pickle.dumps(order)) < 10 * 2**20
    assert order.chunk == 120  # 1e9 / 2**23, rounded up
    assert len(set(rows.tolist())) == 4096
    assert rows.min() >= 0
    assert rows.max() < 1_000_000_000
    again = Order(sizes, seed=0, lanes=8, chunk=64, window=4096)
    assert again.rows(np.array([begin + 1000]))[0] == rows[1000]


def test_up_to_537_million_samples_chunks_are_as_asked():
    for samples, chunk in [(67_108_865, 64), (64 * 2**23, 64), (64 * 2**23 + 1, 65)]:
        assert Order([samples], seed=0, lanes=8, chunk=64, window=4096).chunk == chunk


def test_draws_are_the_golden_ones():
    # Made with NumPy 2.4.6. A change here would change what every resumed run sees next.
    assert permutation(7, Purpose.CHUNKS, 1, size=8).tolist() == GOLDEN_PERMUTATION
    assert uniforms(7, Purpose.AUGMENT, 5, size=2).tolist() == GOLDEN_UNIFORMS
    order = Order([5, 6], seed=7, lanes=2, chunk=2, window=3)
    assert order.rows(np.arange(11)).tolist() == GOLDEN_ROWS


GOLDEN_PERMUTATION = [2, 6, 3, 5, 0, 4, 1, 7]
GOLDEN_UNIFORMS = [0.9158546494524418, 0.4793343300879548]
GOLDEN_ROWS = [5, 4, 7, 1, 6, 0, 3, 10, 2, 9, 8]

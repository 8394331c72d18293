"""The order of samples straight from its definition: slow, and short enough to be read."""

from collections.abc import Iterator, Sequence
from itertools import count, islice

from clipkit.data.rng import Purpose, permutation, raw_bits

MOST_CHUNKS, BLOCK = 2**23, 4096


def order(
    shard_sizes: Sequence[int], *, seed: int, lanes: int, chunk: int, window: int
) -> Iterator[int]:
    """The row at position 0, 1, 2, … without end."""
    n = sum(shard_sizes)
    chunk = max(chunk, -(-n // MOST_CHUNKS))
    chunks, first = [], 0
    for size in shard_sizes:
        end = first + size
        chunks += [range(row, min(row + chunk, end)) for row in range(first, end, chunk)]
        first = end
    for epoch in count():
        drawn = permutation(seed, Purpose.CHUNKS, epoch, size=len(chunks))
        slots = iter([row for number in drawn for row in chunks[number]])
        row_at: dict[int, int] = {}
        for lane in range(lanes):
            mine = [p for p in range(epoch * n, (epoch + 1) * n) if p % lanes == lane]
            for w in range(0, len(mine), window):
                positions = mine[w : w + window]
                rows = list(islice(slots, len(positions)))
                key = (epoch, lane, w // window)
                mixed = permutation(seed, Purpose.WINDOW, *key, size=len(rows))
                row_at |= {p: rows[i] for p, i in zip(positions, mixed, strict=True)}
        yield from (row_at[p] for p in range(epoch * n, (epoch + 1) * n))


def mixture(
    shard_sizes: Sequence[Sequence[int]],
    counts: Sequence[int],
    *,
    seed: int,
    lanes: int,
    chunk: int,
    window: int,
) -> Iterator[int]:
    """The same of sources that have ``counts`` of each ``BLOCK`` positions."""
    first, orders, owners = 0, [], []
    for i, (sizes, of_block) in enumerate(zip(shard_sizes, counts, strict=True)):
        own = int(raw_bits(seed, Purpose.SOURCE, i, size=1)[0]) >> 1
        rows = order(sizes, seed=own, lanes=lanes, chunk=chunk, window=window)
        orders.append(map(first.__add__, rows))
        owners += [i] * of_block
        first += sum(sizes)
    for block in count():
        for place in permutation(seed, Purpose.MIXTURE, block, size=BLOCK):
            yield next(orders[owners[place]])

"""What the order of samples costs, and how well it mixes: the figures of docs/order.md.

    python scripts/order_report.py scale      # seconds and memory, to a billion samples
    python scripts/order_report.py quality    # sorted data beside a full permutation
    python scripts/order_report.py alike      # hard negatives: captions sorted by their words

Nothing is read: the order wants the sizes of the shards only, and captions are made up. All print
Markdown.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from machine import machine
from numpy.typing import NDArray

from clipkit.config.schema import DataConfig
from clipkit.data import order as order_module
from clipkit.data.hard_negatives import sort_alike
from clipkit.data.order import MOST_CHUNKS, Order
from clipkit.data.rng import Purpose, permutation

DEFAULT = DataConfig()
Ints = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["scale", "quality", "alike"])
    what = parser.parse_args().what
    print(f"    OMP_NUM_THREADS=1 python scripts/order_report.py {what}\n")
    print(f"{machine('numpy')}, CPU only.\n")
    {"scale": scale, "quality": quality, "alike": alike}[what]()


def build(sizes: Ints, *, lanes: int = 0, chunk: int = 0, window: int = 0) -> Order:
    """An order with the defaults of the config where nothing else is said."""
    return Order(
        sizes.tolist(),
        seed=0,
        lanes=lanes or DEFAULT.lanes,
        chunk=chunk or DEFAULT.shuffle_chunk,
        window=window or DEFAULT.shuffle_window,
    )


# Costs


def scale() -> None:
    print("| samples | shards | chunk | build, s | first batch, s | after it, ms |", end="")
    print(" peak memory, MiB | sent to a worker, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for samples, shards in [
        (1_000_000, 100),
        (64_000_000, 6_400),
        (500_000_000, 50_000),
        (1_000_000_000, 100_000),
        (10_000_000_000, 1_000_000),
    ]:
        # A process each, as what one frees would hide what the next one needs.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            print(process.submit(cost, samples, shards).result(), flush=True)
    print(
        "\nShards of ±20%, batches of 256. *First batch*: at a position far into the seventh epoch,"
        "\nof an order that has done nothing before, which is what a resumed run waits for. *After"
        "\nit*: a batch, the mean of the next 100. *Peak memory*: what resident memory grew by, to"
        "\nthe end of the second epoch's draw. A checkpoint keeps one integer, the step."
    )


def cost(samples: int, shards: int) -> str:
    """A row of the table."""
    sizes = uneven(samples, shards)
    before = resident()
    clock = time.perf_counter()
    order = build(sizes)
    built = time.perf_counter() - clock
    begin = 6 * samples + samples // 3
    sent = len(pickle.dumps(order))
    clock = time.perf_counter()
    order.rows(np.arange(begin, begin + 256))
    first = time.perf_counter() - clock
    clock = time.perf_counter()
    for step in range(1, 101):
        order.rows(np.arange(begin + 256 * step, begin + 256 * (step + 1)))
    after = (time.perf_counter() - clock) / 100
    order.rows(np.arange(7 * samples - 128, 7 * samples + 128))  # straddles two epochs
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return (
        f"| {samples:,} | {shards:,} | {order.chunk} | {built:.2f} | {first:.2f} | "
        f"{after * 1000:.1f} | {grown / 2**20:.0f} | {sent / 2**20:.1f} |"
    )


def uneven(samples: int, shards: int) -> Ints:
    """(S,) sizes of shards, ±20% about their mean."""
    ends = np.linspace(0, samples, shards + 1)
    spread = np.random.default_rng(0).uniform(-0.1, 0.1, shards - 1)
    ends[1:-1] += spread * samples / shards
    whole = ends.astype(np.int64)
    return whole[1:] - whole[:-1]


def resident() -> int:
    """Bytes of this process in memory; of Linux."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def alike() -> None:
    words = np.random.default_rng(0).zipf(1.3, (SAMPLES, 12)) % 1_000_000
    captions = (" ".join(f"word{number}" for number in numbers.tolist()) for numbers in words)
    before, clock = resident(), time.process_time()
    sort_alike(captions, group=4)
    seconds = time.process_time() - clock
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    took = f"{seconds:.0f} s of one core, {grown / 2**20:.0f} MiB"
    print(f"{SAMPLES:,} captions of 12 words, Zipf's law (1.3): {took}")


# Quality

SAMPLES, CLASSES = 1_000_000, 1000
BATCHES = (256, 4096)


def quality() -> None:
    print(f"{SAMPLES:,} samples of {CLASSES:,} classes, sorted by class: the hard case.\n")
    print("| order | shards | neighbours apart: median | 1% less than |", end="")
    print(" in one batch of 256 | " + " | ".join(f"imbalance, {b:,}" for b in BATCHES) + " |")
    print("|---|---|---|---|---|---|---|")
    whole = permutation(0, Purpose.CHUNKS, 99, size=SAMPLES)
    show("a full permutation", 1, whole)
    for shards in (1, 8, 1000):
        show("the defaults", shards, rows_of(build(uneven(SAMPLES, shards))))
    for words, options in {
        "shuffle_window=16384": {"window": 16384},
        "shuffle_window=65536": {"window": 65536},
        "lanes=64": {"lanes": 64},
        "shuffle_chunk=16": {"chunk": 16},
        "shuffle_chunk=1": {"chunk": 1},
    }.items():
        show(f"`data.{words}`", 1, rows_of(build(uneven(SAMPLES, 1), **options)))
    sizes = uneven(SAMPLES, 1000)
    for lanes in (DEFAULT.lanes, 64):
        rows = rows_of(build(sizes, lanes=lanes, chunk=int(sizes.max())))
        show(f"remote shards without an index, `data.lanes={lanes}`", 1000, rows)
    sequential()

    print("\n1,000,000,000 samples in 100,000 shards, the same, 400 batches here and there:\n")
    print("| at most | chunk | " + " | ".join(f"imbalance, {b:,}" for b in BATCHES) + " |")
    print("|---|---|---|---|")
    for most in (2**20, 2**22, MOST_CHUNKS, 2**24):
        print(far(most), flush=True)
    print(
        "\n*Neighbours* follow one another in a shard; *apart* is in positions; *in one batch* is"
        "\nthe share of them, in percent. *Imbalance*: Σ (n − E)² / E over the classes, where a"
        "\nbatch has n of a class and E are expected; the mean over batches, divided by that of"
        "\nrandom batches. 1 is as good as a full permutation; the batch size is the worst."
    )


def rows_of(order: Order) -> Ints:
    """(N,) the rows of an epoch, in order."""
    return order.rows(np.arange(order.samples))


def show(words: str, shards: int, rows: Ints) -> None:
    """Prints a row of the table."""
    at = np.empty_like(rows)
    at[rows] = np.arange(len(rows))
    inside = np.ones(len(rows) - 1, dtype=np.bool_)
    inside[np.cumsum(uneven(SAMPLES, shards))[:-1] - 1] = False  # two shards
    apart = np.abs(np.diff(at))[inside]
    together = (at[1:] // 256 == at[:-1] // 256)[inside]
    median, first = np.percentile(apart, [50, 1])
    unfair = " | ".join(f"{imbalance(batches(rows, size), SAMPLES):.2f}" for size in BATCHES)
    print(
        f"| {words} | {shards:,} | {median:,.0f} | {first:,.0f} | {100 * together.mean():.2f} | "
        f"{unfair} |",
        flush=True,
    )


def sequential() -> None:
    rows = np.arange(SAMPLES)
    unfair = " | ".join(f"{imbalance(batches(rows, size), SAMPLES):.2f}" for size in BATCHES)
    print(f"| none: sequential | 1 | 1 | 1 | {100 * (1 - 1 / 256):.2f} | {unfair} |")


def batches(rows: Ints, size: int) -> Iterator[Ints]:
    return iter(rows[: len(rows) // size * size].reshape(-1, size))


def imbalance(some: Iterator[Ints], samples: int) -> float:
    """The mean of χ² over batches of rows, relative to that of batches drawn at random."""
    values = []
    for rows in some:
        expected = len(rows) / CLASSES
        counts = np.bincount(rows * CLASSES // samples, minlength=CLASSES)
        values.append(((counts - expected) ** 2 / expected).sum())
        at_random = (CLASSES - 1) * (samples - len(rows)) / (samples - 1)
    return float(np.mean(values) / at_random)


def far(most: int) -> str:
    """A row of the table of large data, with another limit to the chunks."""
    order_module.MOST_CHUNKS = most
    order = build(uneven(1_000_000_000, 100_000))
    order_module.MOST_CHUNKS = MOST_CHUNKS
    begins = np.random.default_rng(0).integers(0, order.samples - max(BATCHES), 400)
    unfair = []
    for size in BATCHES:
        some = (order.rows(np.arange(begin, begin + size)) for begin in begins)
        unfair.append(f"{imbalance(some, order.samples):.2f}")
    power = f"2**{most.bit_length() - 1}" + (" (so it is)" if most == MOST_CHUNKS else "")
    return f"| {power} | {order.chunk} | " + " | ".join(unfair) + " |"


if __name__ == "__main__":
    main()

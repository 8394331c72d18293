"""A load test of ``clipkit serve`` on this machine, over a store of generated images:

    python scripts/bench_serve.py > scripts/results/bench_serve.md

The model has the sizes of configs/emoji.yaml and random weights, which cost what trained ones do.
Images are noise of 64 × 64, captions of six words; ``clipkit embed`` makes the store and
``clipkit serve`` serves it, each as a process. Clients are threads of this script, each with one
connection that stays open, and so take part of the same cores. Every text is a new one, so that
the model runs for each; more like this takes a row, and no model.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from machine import machine
from PIL import Image

WORDS = (
    *("red", "green", "blue", "yellow", "small", "large", "round", "old", "new", "wet"),
    *("cat", "dog", "house", "tree", "boat", "apple", "street", "face", "flag", "hand"),
    *("sleeping", "running", "broken", "open", "empty", "behind", "under", "beside", "two", "ten"),
)
CLIENTS = (1, 8, 32)
ANSWERS = 24  # what the page asks for


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=1_500, help="of each line of the table")
    parser.add_argument("--long", type=int, default=20_000, help="requests of the memory's table")
    args = parser.parse_args()
    print("# Serving\n")
    print(f"    python scripts/bench_serve.py {' '.join(sys.argv[1:])}\n")
    print(machine("torch", "starlette", "uvicorn", "numpy"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, args.images)
        save_model_of_the_demo(folder / "model")
        command = ["embed", folder / "model", folder / "*.tar", folder / "store"]
        subprocess.run(clipkit(*command), check=True, stdout=sys.stderr)
        with serving(folder / "store") as (port, pid):
            measure(port, pid, args)


def measure(port: int, pid: int, args: argparse.Namespace) -> None:
    """Both tables."""
    texts = (f"{words} {number}" for number, words in enumerate(captions(seed=1)))
    rows = itertools.cycle(np.random.default_rng(2).permutation(args.images).tolist())
    lock = threading.Lock()

    def text(_: int) -> str:
        with lock:
            return search(text=next(texts))

    def like(_: int) -> str:
        with lock:
            return search(like=next(rows))

    def mixed(number: int) -> str:
        """As the page asks: a text, now and then more like this, and pictures."""
        if number % 5 == 0:
            return f"/api/pictures/{number % args.images}"
        return like(number) if number % 5 == 1 else text(number)

    fastest = 0.0
    load(port, mixed, 4, 500)  # to warm up
    print(f"\n{args.images:,} images, {args.requests:,} requests a line, {ANSWERS} results each\n")
    print("| | clients | requests/s | p50 ms | p99 ms |\n|---|---|---|---|---|")
    for title, path in (("a new text", text), ("more like this", like)):
        for clients in CLIENTS:
            taken, seconds = load(port, path, clients, args.requests)
            p50, p99 = np.percentile(taken, [50, 99])
            rate = len(taken) / seconds
            fastest = max(fastest, rate) if path is text else fastest
            print(f"| {title} | {clients} | {rate:.0f} | {1e3 * p50:.1f} | {1e3 * p99:.1f} |",
                  flush=True)  # fmt: skip
    print(
        f"\n{args.long:,} requests of 8 clients: texts, more like this, and pictures, 3 : 1 : 1\n"
    )
    print("| requests | anonymous memory, MiB |\n|---|---|")
    load(port, mixed, 8, 3_000)  # the caches fill
    print(f"| before | {rss_anon(pid):.1f} |", flush=True)
    for done in range(args.long // 4, args.long + 1, args.long // 4):
        load(port, mixed, 8, args.long // 4)
        print(f"| {done:,} | {rss_anon(pid):.1f} |", flush=True)
    print(f"\n{fastest:.0f} new texts a second at most.")


def load(
    port: int, path: Callable[[int], str], clients: int, requests: int
) -> tuple[list[float], float]:
    """Seconds of each request, and of all of them.

    Args:
        port: of the server.
        path: what the n-th request asks for.
        clients: at once.
        requests: in all.
    """
    numbers = itertools.count()
    taken: list[float] = []
    faults: list[object] = []

    def visit() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            while (number := next(numbers)) < requests:
                asked = path(number)
                start = time.perf_counter()
                connection.request("GET", asked)
                answer = connection.getresponse()
                answer.read()
                taken.append(time.perf_counter() - start)
                if answer.status != 200:
                    faults.append((asked, answer.status))
        except Exception as error:
            faults.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=visit) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if faults:
        raise SystemExit(f"{len(faults)} requests failed, the first: {faults[0]}")
    return taken, seconds


def search(**parameters: object) -> str:
    """The path of a search."""
    return "/api/search?" + urllib.parse.urlencode({**parameters, "k": ANSWERS})


@contextmanager
def serving(store: Path) -> Iterator[tuple[int, int]]:
    """The port and the process of ``clipkit serve``."""
    command = clipkit("serve", store, "--port", 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield (
                int(urllib.parse.urlsplit(line.split(" is at ")[1].split()[0]).port or 0),
                (process.pid),
            )
        finally:
            process.terminate()


def clipkit(*arguments: object) -> list[str]:
    """A command line of ours."""
    return [sys.executable, "-m", "clipkit", *map(str, arguments)]


def write_shards(folder: Path, images: int) -> None:
    """Tars of 1,000 noise images and their captions."""
    rng, texts = np.random.default_rng(0), captions(seed=0)
    for first in range(0, images, 1_000):
        with tarfile.open(folder / f"{first // 1000:03d}.tar", "w") as tar:
            for number in range(first, min(first + 1_000, images)):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
                data = {"jpg": buffer.getvalue(), "txt": next(texts).encode()}
                for ending, content in data.items():
                    info = tarfile.TarInfo(f"{number:06d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def captions(seed: int) -> Iterator[str]:
    """Six words at a time, without end."""
    rng = np.random.default_rng(seed)
    while True:
        yield " ".join(rng.choice(WORDS, 6))


def save_model_of_the_demo(folder: Path) -> None:
    """Its sizes, random weights."""
    from clipkit.config import load_config
    from clipkit.data.tokenize import train_tokenizer
    from clipkit.models import build_model, save_model

    config = load_config(Path(__file__).parent.parent / "configs/emoji.yaml", [])
    texts = list(itertools.islice(captions(seed=0), 1_000))
    tokenizer = train_tokenizer(
        texts, vocab_size=2_048, context_length=config.preprocess.context_length
    )
    model = build_model(config.model, config.preprocess, tokenizer, init_temperature=0.07, seed=0)
    save_model(model, folder, config.preprocess, tokenizer)


def rss_anon(pid: int) -> float:
    """MiB of a process's own memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc has no RssAnon; this needs Linux")


if __name__ == "__main__":
    main()

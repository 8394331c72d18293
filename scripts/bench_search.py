"""Search among many vectors, ours and faiss's, in turns in one process:

    python scripts/bench_search.py [--model runs/emoji] > scripts/results/bench_search.md

Generated vectors lie around 10,000 centres: a centre has normal coordinates, a row is a centre and
0.7 of another normal vector, all at unit length, in random order; a query is a row and 0.3 of its
length in another direction. With ``--model`` there are those of a model, too: of crops of the
shipped emoji, each of 50 to 100% of a picture's area, with its name as its caption; the queries are
names. With ``--store`` those of any store, whose captions are the queries. faiss by hand: a flat
index, at the best of several ``distance_compute_blas_threshold``; the same with
``datasets.add_faiss_index``; and the very IVF index that ``clipkit index`` chose, at the lowest
nprobe that has the recall. Medians over the repeats, which run in turns.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from machine import machine
from PIL import Image
from torchvision.transforms.v2 import RandomResizedCrop

import clipkit
from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.retrieval.approximate import ApproximateIndex, build_approximate
from clipkit.retrieval.codes import build_codes
from clipkit.retrieval.index import Index
from clipkit.retrieval.plan import PART_ROWS, Plan
from clipkit.retrieval.store import EmbeddingStore
from clipkit.retrieval.writer import PartWriter, write_manifest
from clipkit.types import Item

K = 10
EMOJI = Path(__file__).resolve().parent.parent / "data/emoji"
Searcher = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--model", help="search crops of emoji by this run's model, too")
    parser.add_argument("--crops", type=int, default=200_000)
    parser.add_argument("--store", help="search a store of a model, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-approximate", action="store_true")
    args = parser.parse_args()
    print("# Search\n")
    print(f"    python scripts/bench_search.py {' '.join(sys.argv[1:])}\n")
    print(machine("torch", "faiss-cpu", "numpy", "datasets"))
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        store = generate(Path(folder) / "store", args.rows, args.dim, rng)
        x = np.concatenate(store.image_embeds)
        picked = x[rng.choice(len(x), 512, replace=False)]
        noise = unit(rng.normal(size=picked.shape))
        queries = unit(picked + 0.3 * noise).astype(np.float32)
        compare("generated", store, queries, args)
    if args.model:
        with tempfile.TemporaryDirectory() as folder:
            store = crop(Path(folder) / "store", args.model, args.crops, rng)
            compare(f"of {args.model}, crops of emoji", store, names_of(store, rng), args)
    if args.store:
        store = EmbeddingStore(args.store)
        compare(f"of a model, {args.store}", store, names_of(store, rng), args)


def names_of(store: EmbeddingStore, rng: np.random.Generator) -> np.ndarray:
    """(Q, D) captions of a store, each once."""
    texts = np.unique(np.concatenate(store.text_embeds), axis=0)
    return texts[rng.permutation(len(texts))[:512]]


def compare(
    title: str, store: EmbeddingStore, queries: np.ndarray, args: argparse.Namespace
) -> None:
    """One set of vectors: a table, and the ratios."""
    x = np.concatenate(store.image_embeds)
    build_codes(store, "image", progress=False)
    exact = Index.open(store, "image")
    flat = faiss.IndexFlatIP(x.shape[1])
    flat.add(x)
    import datasets

    table = datasets.Dataset.from_dict({"row": np.arange(len(x))})
    table.add_faiss_index_from_external_arrays(x, "x", metric_type=faiss.METRIC_INNER_PRODUCT)
    print(f"\n## {title}: {len(x):,} × {x.shape[1]}\n")
    searchers: dict[str, Searcher] = {
        "clipkit exact, codes": lambda q: exact.search(q, K)[1],
        "clipkit exact, no codes": (lambda index: lambda q: index.search(q, K)[1])(Index([x])),
        "faiss flat, tuned": lambda q: flat.search(q, K)[1],
        "datasets.add_faiss_index": lambda q: np.asarray(
            table.search_batch("x", q, k=K).total_indices
        ),
    }
    if not args.no_approximate:
        built = build_approximate(store, "image", memory=2 * 10**9, progress=False)
        near = ApproximateIndex.open(store, "image")
        hand = faiss.read_index(str(store.folder / "index/image-approximate.faiss"))
        print(f"`clipkit index --approximate`: {built.factory}, effort {built.effort}, "
              f"{K * built.refine} rows compared in full for {K}, recall {built.recall:.3f} on "
              f"{built.queries}\n")  # fmt: skip
        searchers["clipkit approximate"] = lambda q: near.search(q, K)[1]
        by_hand(hand, exact.search(queries[:256], K)[1], queries[:256])
        print(f"faiss by hand: nprobe {getattr(hand, 'nprobe', None)}\n")
        searchers["faiss by hand, same index"] = lambda q: hand.search(q, K)[1]
    truth = exact.search(queries, K)[0]
    thresholds = {batch: tune(flat, queries[:batch]) for batch in (1, 64)}
    print("| | batch | recall@10 | queries/s | p50 ms | p99 ms |\n|---|---|---|---|---|---|")
    rates: dict[tuple[str, int], float] = {}
    for batch in (1, 64):
        times: dict[str, list[float]] = {name: [] for name in searchers}
        good: dict[str, list[float]] = {name: [] for name in searchers}
        faiss.cvar.distance_compute_blas_threshold = thresholds[batch]
        count = 32 if batch == 1 else 3
        for _ in range(args.repeats):
            for name, search in searchers.items():
                for i in range(count):
                    begin = (i * batch) % (len(queries) - batch + 1)
                    some = queries[begin : begin + batch]
                    start = time.perf_counter()
                    rows = search(some)
                    times[name].append(time.perf_counter() - start)
                    vectors = x[rows.ravel()].astype(np.float64).reshape(*rows.shape, -1)
                    scores = (vectors * some[:, None]).sum(axis=2).astype(np.float32)
                    good[name].append(float((scores >= truth[begin : begin + batch, -1:]).mean()))
        for name, each in times.items():
            p50, p99 = np.percentile(each, [50, 99])
            rates[name, batch] = batch / p50
            print(f"| {name} | {batch} | {np.mean(good[name]):.3f} | {batch / p50:,.1f} "
                  f"| {1000 * p50:.2f} | {1000 * p99:.2f} |")  # fmt: skip
    print(f"\nfaiss's blas threshold: {thresholds[1]} for 1 query, {thresholds[64]} for 64.")
    pairs = [("clipkit exact, codes", "faiss flat, tuned")]
    if not args.no_approximate:
        pairs.append(("clipkit approximate", "faiss by hand, same index"))
    for ours, theirs in pairs:
        ratios = ", ".join(
            f"{rates[ours, batch] / rates[theirs, batch]:.2f} (batch {batch})" for batch in (1, 64)
        )
        print(f"\n{ours} / {theirs}, queries a second: {ratios}")
    sys.stdout.flush()


def tune(flat: faiss.Index, queries: np.ndarray) -> int:
    """The threshold that faiss is fastest with."""
    taken = {}
    for threshold in (1, 4, 20, 100, 100_000):
        faiss.cvar.distance_compute_blas_threshold = threshold
        each = []
        for _ in range(3):
            start = time.perf_counter()
            flat.search(queries, K)
            each.append(time.perf_counter() - start)
        taken[threshold] = float(np.median(each))
    return min(taken, key=lambda threshold: taken[threshold])


def by_hand(index: faiss.Index, truth: np.ndarray, queries: np.ndarray) -> None:
    """Sets the lowest nprobe with a recall of 0.95, or the highest there is."""
    if not hasattr(index, "nprobe"):
        return
    index.nprobe = 1
    while index.nprobe < index.nlist:
        found = index.search(queries, K)[1]
        hits = [len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)]
        if np.mean(hits) >= 0.95:
            return
        index.nprobe = min(max(index.nprobe + 1, index.nprobe * 5 // 4), index.nlist)


def generate(folder: Path, rows: int, dim: int, rng: np.random.Generator) -> EmbeddingStore:
    """A store of clustered vectors, images alone."""
    centres = rng.normal(size=(10_000, dim)).astype(np.float32)

    def embed(here: range) -> tuple[np.ndarray, None]:
        noise = rng.standard_normal((len(here), dim), dtype=np.float32)
        return unit(centres[rng.integers(0, len(centres), len(here))] + 0.7 * noise), None

    return write(folder, rows, dim, embed, texts=False)


def crop(folder: Path, model: str, rows: int, rng: np.random.Generator) -> EmbeddingStore:
    """A store of random crops of the shipped emoji, and of their names."""
    encoder = clipkit.load(model)
    source = open_source(SourceConfig(path=str(EMOJI / "*.tar")), progress=False)
    pairs = [source[row] for row in range(len(source))]
    images = [Image.open(io.BytesIO(pair.image or b"")).convert("RGB") for pair in pairs]
    names = [pair.caption or "" for pair in pairs]
    text_embeds = encoder.encode_text(names)
    random_crop = RandomResizedCrop(images[0].size, scale=(0.5, 1.0))

    def embed(here: range) -> tuple[np.ndarray, np.ndarray]:
        chosen = rng.integers(0, len(images), len(here))
        crops = (random_crop(images[i]) for i in chosen)
        return encoder.encode_image(crops, batch_size=512), text_embeds[chosen]

    return write(folder, rows, encoder.embed_dim, embed, texts=True)


def write(
    folder: Path,
    rows: int,
    dim: int,
    embed: Callable[[range], tuple[np.ndarray, np.ndarray | None]],
    *,
    texts: bool,
) -> EmbeddingStore:
    """A store whose vectors ``embed`` gives, of images and perhaps of captions."""
    folder.mkdir(parents=True)
    plan = Plan(
        model="none", weights_sha256="", preprocess_sha256="", dim=dim, context_length=77,
        source={"path": "generated"}, source_fingerprint="", rows=rows, images=True, texts=texts,
        max_image_pixels=1, part_rows=PART_ROWS, batch_size=PART_ROWS, dtype="float32",
        precision="fp32",
    )  # fmt: skip
    records = {}
    for number in range(plan.parts):
        here = range(number * PART_ROWS, number * PART_ROWS + plan.rows_of(number))
        image_embeds, text_embeds = embed(here)
        keys = [str(row) for row in here]
        writer = PartWriter(folder, plan, number)
        writer.add(
            keys=keys,
            source_rows=here,
            items=[Item(key, None, "generated", None, None, None, {}) for key in keys],
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )
        records[number] = writer.finish()
    write_manifest(folder, plan, records)
    return EmbeddingStore(folder)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows at unit length."""
    result: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return result


if __name__ == "__main__":
    main()

"""A store → a faiss index in STORE/index/ that finds most of what exact search finds, sooner.

Its kind follows from the number of rows and the memory it may take. What it reaches is measured
when it is built, against exact search, and its effort is raised until that is enough. The rows that
it finds are compared in full, so that scores are those of exact search.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from clipkit.display.console import progress_bar
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.codes import FOLDER, commit, open_manifest, vectors_of
from clipkit.retrieval.index import Index, check_queries, in_parts
from clipkit.retrieval.scan import read_rows

if TYPE_CHECKING:
    from clipkit.retrieval.store import EmbeddingStore

_CHUNK_BYTES = 32 * 2**20
_QUERIES = 1024  # half to choose the effort by, half to measure with
_K = 10
_LINKS = 32  # of HNSW, each way
_FEW, _SOME = 10_000, 100_000  # rows up to which nothing, or a graph, is worth it
_LEAST_SAMPLE = 64 * 2**20
# From so many queries on, and numbers in the lists' centres, is a product of our own faster.
_MANY, _LARGE = 12, 2**19
_LIST_SCORES = 2**22  # of queries with lists at a time: 16 MiB
_A_LIST = 40  # training rows: faiss warns below 39
_ONE_THREAD = threading.Lock()  # held while PyTorch has one, or another would be left with it


@dataclass(frozen=True, slots=True)
class Plan:
    """What to build.

    Attributes:
        factory: in faiss's words.
        bytes_a_row: in memory, by calculation.
        refine: times k rows are compared in full, where that is needed.
    """

    factory: str
    bytes_a_row: float
    refine: int


@dataclass(frozen=True, slots=True)
class Built:
    """What was built, and what it was measured to do.

    Attributes:
        factory: in faiss's words.
        effort: ``nprobe`` or ``efSearch``; 0 where there is none.
        refine: times k rows are compared in full.
        recall: of the 10 best, on queries that the effort was not chosen by.
        wanted: the recall that was asked for.
        queries: what these were.
        milliseconds: a query, one at a time, the median.
        exact_milliseconds: of exact search, in the same way.
        bytes: of the file, which is what it takes in memory.
    """

    factory: str
    effort: int
    refine: int
    recall: float
    wanted: float
    queries: str
    milliseconds: float
    exact_milliseconds: float
    bytes: int


def plan_index(rows: int, dim: int, memory: int) -> list[Plan]:
    """The kinds that fit in some bytes of memory, the most exact first.

    Args:
        rows: N.
        dim: D.
        memory: bytes that they may take.

    Raises:
        ConfigError: nothing is small enough.
    """
    lists = max(int(2 * math.sqrt(rows)), 1)
    ivf = 8 + 4 * dim * lists / max(rows, 1)  # a row's number; the lists' centres
    parts = next(
        m
        for m in (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
        if dim % m == 0 and 2 * m <= max(dim, 2)
    )
    plans = [Plan("Flat", 4 * dim, 1)] if rows <= _FEW else []
    if _FEW < rows <= _SOME:
        plans.append(Plan(f"HNSW{_LINKS}", 4 * dim + 8 * _LINKS + 16, 1))
    if rows > _SOME:
        plans.append(Plan(f"IVF{lists},Flat", 4 * dim + ivf, 1))
    plans.append(Plan(f"IVF{lists},SQ8", dim + ivf, 4))
    if rows >= 256 * _A_LIST:  # as many as the codebooks take
        plans.append(Plan(f"IVF{lists},PQ{parts}", parts + ivf, 32))
    if fitting := [plan for plan in plans if plan.bytes_a_row * rows <= memory]:
        return fitting
    least = min(plan.bytes_a_row for plan in plans) * rows
    raise ConfigError(
        f"--memory: {memory:,} bytes are too few for {rows:,} × {dim}; give {math.ceil(least):,} "
        "or more"
    )


def build_approximate(
    store: EmbeddingStore,
    kind: str,
    *,
    memory: int = 2 * 10**9,
    recall: float = 0.95,
    progress: bool = True,
) -> Built:
    """Builds an index and measures it. Where a graph does not reach the recall, the next kind that
    fits is tried; what reaches most is kept, and says so.

    It is trained on a sample and filled chunk by chunk, so that only itself is in memory.

    Args:
        store: whose vectors.
        kind: ``image`` or ``text``.
        memory: bytes that it may take.
        recall: of the 10 best, to be reached.
        progress: whether to show a progress bar.

    Raises:
        ConfigError: faiss is not installed, or the numbers make no sense.
        CheckpointError: there are no such vectors, or it cannot be written.
    """
    import_faiss()
    if not 0 < recall <= 1:
        raise ConfigError(f"--recall: {recall}; a share above 0, at most 1")
    exact = Index.open(store, "image" if kind == "image" else "text")
    name = f"{kind}-approximate.faiss"
    aside = store.folder / FOLDER / f".{name}.{os.getpid()}.tmp"
    best: tuple[Plan, dict[str, Any]] | None = None
    try:
        for plan in plan_index(len(store), store.dim, memory):
            index = _fill(store, kind, plan, memory, progress)
            found = ApproximateIndex(index, exact, plan.refine, 0)
            measured = _measure(found, store, kind, recall)
            if best is None or measured["recall"] > best[1]["recall"]:
                best = plan, measured
                _write(index, aside)
            # A graph may miss what lies among many copies of one vector, at any effort.
            enough = measured["recall"] >= recall or not found.is_graph
            del index, found  # before the next is filled
            if enough:
                break
        assert best is not None
        built = Built(best[0].factory, bytes=aside.stat().st_size, **best[1])
        with _writing(aside):
            commit(store, kind, "approximate", {name: aside}, {"built": asdict(built)})
    finally:
        aside.unlink(missing_ok=True)
    return built


def _write(index: Any, path: Path) -> None:
    faiss = import_faiss()
    # Through a file of ours: faiss's own takes no notice of a disk that is full at the end.
    with _writing(path), path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(exist_ok=True)
        yield
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path.parent}: cannot be written ({error})") from error


def _fill(store: EmbeddingStore, kind: str, plan: Plan, memory: int, progress: bool) -> Any:
    """faiss's index of all vectors, trained on a sample and filled chunk by chunk."""
    faiss = import_faiss()
    parts = vectors_of(store, kind)
    index = faiss.index_factory(store.dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        # Half of the budget, for it is given back before the index is filled; a little is no harm.
        lists = faiss.extract_index_ivf(index).nlist
        most = max(memory // 2, _LEAST_SAMPLE) // (4 * store.dim)
        index.train(_sample(parts, len(store), min(max(_A_LIST * lists, 10_240), most)))
    size = max(_CHUNK_BYTES // (4 * store.dim), 1)
    with progress_bar("index", len(store), "row", show=progress) as bar:
        for begin in range(0, len(store), size):
            block = read_rows(parts, begin, min(begin + size, len(store)))
            if not np.isfinite(block).all():
                raise CheckpointError(f"{store.folder}: its vectors are not finite; embed again")
            index.add(np.ascontiguousarray(block))
            bar.update(len(block))
    return index


class ApproximateIndex:
    """A faiss index whose finds are compared in full.

    Args:
        index: faiss's.
        exact: the same rows.
        refine: times k rows are compared in full.
        effort: ``nprobe`` or ``efSearch``.

    Attributes:
        is_graph: whether this is HNSW.
    """

    def __init__(self, index: Any, exact: Index, refine: int, effort: int) -> None:
        self._index, self.exact = index, exact
        self.refine, self.effort = refine, effort
        self.is_graph = hasattr(index, "hnsw")
        self._lists = int(getattr(index, "nlist", 0))

    @classmethod
    def open(cls, store: EmbeddingStore, kind: str) -> ApproximateIndex:
        """What ``clipkit index --approximate`` made.

        Its file is opened only if it is in the store's own folder and is, by its hash, what was
        written there: faiss trusts what it reads.

        Raises:
            ConfigError: faiss is not installed.
            CheckpointError: there is none; or it is damaged, of another model, or of what the
                store was before.
        """
        faiss = import_faiss()
        manifest = open_manifest(store, kind, "approximate", all_bytes=True)
        if manifest is None:
            raise CheckpointError(
                f"{store.folder}: there is no approximate index of its {kind} embeddings; make one "
                f"with clipkit index {store.folder} --approximate --kind {kind}"
            )
        name = f"{kind}-approximate.faiss"
        built = manifest.get("built")
        if (
            not isinstance(built, dict)
            or not all(_is_number(built.get(what)) for what in ("refine", "effort"))
            or list(manifest["files"]) != [name]
        ):
            raise CheckpointError(f"{store.folder / FOLDER}: broken; make the index anew")
        try:
            index = faiss.read_index(str(store.folder / FOLDER / name))
        except RuntimeError as error:
            raise CheckpointError(
                f"{store.folder / FOLDER / name}: faiss cannot read it; make the index anew"
            ) from error
        if (index.ntotal, index.d) != (len(store), store.dim):
            raise CheckpointError(f"{store.folder / FOLDER / name}: not of the store's shape")
        exact = Index.open(store, "image" if kind == "image" else "text")
        return cls(index, exact, max(built["refine"], 1), built["effort"])

    def __len__(self) -> int:
        return len(self.exact)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        """See ``Index.vectors``."""
        return self.exact.vectors(rows)

    def search(
        self, query_embeds: np.ndarray, k: int = 10, *, mask: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``Index.search``. With a mask, or where too few are found, search is exact."""
        queries = check_queries(query_embeds, self.exact.dim)
        # Of fewer than the recall was measured with, no fewer are compared in full.
        wanted = min(max(k, _K) * self.refine, len(self))
        if mask is not None or k < 1 or not len(queries):
            return self.exact.search(query_embeds, k, mask=mask)
        found = self._near(queries, wanted)
        k = min(k, len(self))
        near, of_query = found.ravel(), np.repeat(np.arange(len(queries)), wanted)
        missing = near < 0 if found[:, -1].min() < 0 else None
        if missing is not None:
            near = near.clip(0)
        full = np.empty(len(near), dtype=np.float32)
        for some in in_parts(len(near), self.exact.pairs):
            full[some] = self.exact.score(queries, of_query[some], near[some])
        if missing is not None:
            full[missing] = -np.inf
        each = full.reshape(found.shape)
        order = np.lexsort((found, -each), axis=1)[:, :k]
        lines = np.arange(len(queries))[:, None]
        scores, rows = each[lines, order], found[lines, order]
        if missing is not None:
            few = np.flatnonzero(np.isinf(scores[:, -1]))
            scores[few], rows[few] = self.exact.search(queries[few], k)
        return (scores[0], rows[0]) if np.ndim(query_embeds) == 1 else (scores, rows)

    def _near(self, queries: np.ndarray, wanted: int) -> np.ndarray:
        """(Q, wanted) rows that faiss finds, -1 where there are no more."""
        if self.is_graph:
            # With the call, as other threads may search with another k meanwhile.
            effort = max(self.effort, wanted, 1)
            params = import_faiss().SearchParametersHNSW(efSearch=effort)
            return np.asarray(self._index.search(queries, wanted, params=params)[1])
        if not self._lists:
            return np.asarray(self._index.search(queries, wanted)[1])
        self._index.nprobe = min(max(self.effort, 1), self._lists)
        # Among threads go the lists of one query, or else the queries.
        self._index.parallel_mode = 1 if len(queries) == 1 else 3
        if len(queries) < _MANY or self._lists * self._index.d < _LARGE:
            return np.asarray(self._index.search(queries, wanted)[1])
        found = np.empty((len(queries), wanted), dtype=np.int64)
        for some in in_parts(len(queries), max(_LIST_SCORES // self._lists, 1)):
            scores, nearest = self._nearest_lists(queries[some])
            found[some] = self._index.search_preassigned(queries[some], wanted, nearest, scores)[1]
        return found

    def _nearest_lists(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Q, effort) scores and numbers of lists: faiss's own product takes twice as long."""
        with _ONE_THREAD, torch.autocast("cpu", enabled=False):
            threads = torch.get_num_threads()
            # Torch's other threads would wait, busily, for more where faiss's are to go on.
            torch.set_num_threads(1)
            try:
                all_scores = torch.tensor(queries) @ self._centroids.T
                scores, nearest = all_scores.topk(self._index.nprobe)
            finally:
                torch.set_num_threads(threads)
        return scores.numpy(), nearest.numpy()

    @cached_property
    def _centroids(self) -> Tensor:
        """(lists, D), faiss's own memory."""
        faiss = import_faiss()
        flat = faiss.downcast_index(self._index.quantizer)
        values = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
        return torch.from_numpy(values.reshape(flat.ntotal, flat.d))

    @property
    def most_effort(self) -> int:
        """From where on more does not find more; 0 where everything is compared."""
        return 2048 if self.is_graph else self._lists


def _is_number(value: Any) -> bool:
    # What faiss takes; 0 for an index that has no effort.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def import_faiss() -> Any:
    """The faiss module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "approximate search takes faiss; pip install 'clipkit-pretraining[faiss]'"
        ) from error
    return faiss


def _measure(
    found: ApproximateIndex, store: EmbeddingStore, kind: str, wanted: float
) -> dict[str, Any]:
    """Raises the effort until one half of the queries reach the recall; measures with the other."""
    queries, what = _held_out(store, kind)
    if not np.isfinite(queries).all():
        raise CheckpointError(f"{store.folder}: its vectors are not finite; embed again")
    k = min(_K, len(store))
    truth, _ = found.exact.search(queries, k)
    half = len(queries) // 2

    def recalls(of: slice) -> np.ndarray:
        # By score: of equal vectors any will do.
        scores, _ = found.search(queries[of], k)
        return np.asarray((scores >= truth[of, -1:]).mean(axis=1))

    def enough() -> bool:
        # By two standard errors, so that other queries reach it as well.
        each = recalls(slice(0, half))
        return bool(each.mean() - 2 * each.std() / math.sqrt(len(each)) >= wanted)

    def milliseconds(index: Index | ApproximateIndex) -> float:
        times = []
        for query in queries[half : half + 32]:
            begin = time.perf_counter()
            index.search(query[None], k)
            times.append(time.perf_counter() - begin)
        return 1000 * float(np.median(times))

    # Few rows compared in full and more effort, or more of them and less: what is faster here.
    ways = []
    for refine in sorted({1, min(2, found.refine), found.refine}):
        found.refine = refine
        found.effort = 16 if found.is_graph else min(1, found.most_effort)
        while not (reached := enough()) and found.effort < found.most_effort:
            more = max(found.effort + 1, found.effort * 5 // 4)
            found.effort = min(more, found.most_effort)
        taken = milliseconds(found)
        ways.append(((0, taken) if reached else (1, -refine), taken, refine, found.effort))
    _, taken, found.refine, found.effort = min(ways)

    return {
        "effort": found.effort,
        "refine": found.refine,
        "recall": float(recalls(slice(half, None)).mean()),
        "wanted": wanted,
        "queries": f"{len(queries) - half} {what}",
        "milliseconds": taken,
        "exact_milliseconds": milliseconds(found.exact),
    }


def _held_out(store: EmbeddingStore, kind: str) -> tuple[np.ndarray, str]:
    """(Q, D) queries that are not in the index, and what they are."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(store), min(_QUERIES, len(store)), replace=False))
    if len(rows) == 1:
        rows = np.repeat(rows, 2)
    rng.shuffle(rows)
    if kind == "image" and store.text_embeds:
        return Index(store.text_embeds).vectors(rows), "captions of the store"
    vectors = Index(vectors_of(store, kind)).vectors(rows)
    noise = rng.normal(size=vectors.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    moved = vectors + 0.3 * np.linalg.norm(vectors, axis=1, keepdims=True) * noise
    moved /= np.linalg.norm(moved, axis=1, keepdims=True).clip(1e-12)
    return moved.astype(np.float32), f"{kind} vectors of the store, moved by 0.3 of their length"


def _sample(parts: list[np.ndarray], rows: int, wanted: int) -> np.ndarray:
    """(n, D) float32: runs of rows from all over the store, as random rows are slow to read."""
    run = 64
    if wanted >= rows:
        return read_rows(parts, 0, rows)
    starts = np.linspace(0, rows - run, max(wanted // run, 1)).astype(np.int64)
    return np.concatenate([read_rows(parts, int(s), int(s) + run) for s in starts])

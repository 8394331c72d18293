"""faiss indexes of stores: what is chosen, what they find, and what is refused."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from small_stores import cut_store
from tiny_model import noise_shard

from clipkit.cli import main
from clipkit.digest import sha256
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval import approximate
from clipkit.retrieval.approximate import ApproximateIndex, build_approximate, plan_index
from clipkit.retrieval.embed import embed
from clipkit.retrieval.index_command import byte_count
from clipkit.retrieval.store import EmbeddingStore

pytest.importorskip("faiss")


@pytest.fixture(scope="module")
def whole(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 12,000 rows of which the first 30 were embedded, the others generated."""
    folder = tmp_path_factory.mktemp("approximate")
    path = folder / "store"
    store = embed(tiny_encoder, str(noise_shard(folder / "a.tar", 30)), path, progress=False)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, store.dim))
    x = centres[rng.integers(0, 60, 12_000)] + 0.4 * rng.normal(size=(12_000, store.dim))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    import pyarrow.parquet as pq

    manifest = json.loads((path / "manifest.json").read_text())
    for name, facts in manifest["parts"].items():
        if name.endswith(".npy"):
            np.save(path / name, x if name.startswith("image") else -x[::-1])
        else:
            table = pq.read_table(path / name)
            pq.write_table(table.take(np.arange(12_000) % 30), path / name)
        facts.update(rows=12_000, bytes=(path / name).stat().st_size, sha256=sha256(path / name))
    manifest["rows"] = 12_000
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def test_the_kind_follows_from_rows_and_memory() -> None:
    for rows, memory, kind in (
        (5_000, 2e9, "Flat"),
        (50_000, 2e9, "HNSW32"),
        (1_000_000, 4e9, "IVF2000,Flat"),
        (1_000_000, 2e9, "IVF2000,SQ8"),
        (1_000_000, 2e8, "IVF2000,PQ64"),
        (5_000, 3e6, "IVF141,SQ8"),
    ):
        assert plan_index(rows, 512, int(memory))[0].factory == kind
    with pytest.raises(ConfigError, match="give 76,096,000 or more"):
        plan_index(1_000_000, 512, 10**6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("memory", "kind"),
    [
        ("1GB", "HNSW32"),
        ("1MB", "IVF219,SQ8"),
        pytest.param("0.3MB", "IVF219,PQ12", marks=pytest.mark.long),
    ],
)
def test_what_is_found_reaches_the_recall_that_was_measured(
    memory: str, kind: str, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(store), "--approximate", "--memory", memory]) == 0
    out, err = capsys.readouterr()
    assert kind in out
    assert "captions of the store" in out
    assert "NOT REACHED" not in err
    assert (store / "index/image-approximate.faiss").stat().st_size <= 1.1e9
    opened = EmbeddingStore(store)
    queries = np.concatenate(opened.text_embeds)[5::50]
    exact = opened.index().search_embeds(queries, 10)
    near = opened.index(approximate=True).search_embeds(queries, 10)
    recall = np.mean(
        [len(set(a.rows) & set(b.rows)) / 10 for a, b in zip(exact, near, strict=True)]
    )
    assert recall > 0.9
    for a, b in zip(exact, near, strict=True):
        at = dict(zip(a.rows.tolist(), a.scores.tolist(), strict=True))
        for row, score in zip(b.rows.tolist(), b.scores.tolist(), strict=True):
            assert at.get(row, score) == score  # the very number
    where = opened.index(approximate=True).search_embeds(queries[:3], 5, where="source_row=7")
    assert all(row % 30 == 7 for one in where for row in one.rows)


@pytest.mark.parametrize("own_product", [True, False])
def test_one_query_finds_what_it_finds_among_many(
    store: Path, monkeypatch: pytest.MonkeyPatch, own_product: bool
) -> None:
    if own_product:  # as with many lists
        monkeypatch.setattr(approximate, "_LARGE", 0)
    opened = EmbeddingStore(store)
    build_approximate(opened, "image", memory=10**6, progress=False)
    index = ApproximateIndex.open(opened, "image")
    queries = np.concatenate(opened.text_embeds)[5::50]
    threads = torch.get_num_threads()
    scores, rows = index.search(queries, 10)
    assert torch.get_num_threads() == threads
    assert ("_centroids" in vars(index)) == own_product
    for one in range(0, len(queries), 7):
        alone_scores, alone = index.search(queries[one], 10)
        np.testing.assert_array_equal(alone, rows[one])
        np.testing.assert_array_equal(alone_scores, scores[one])
    few, all_rows = index.search(queries, 3000)[1], np.arange(12_000)
    assert few.shape == (240, 3000)  # more than its lists hold: exact, and each row once
    assert all(len(np.intersect1d(one, all_rows)) == 3000 for one in few[::60])

    queries.flags.writeable = False  # as a store's own vectors are

    def search(_: int) -> int:
        for _ in range(5):
            np.testing.assert_array_equal(index.search(queries[:60], 10)[1], rows[:60])
        return torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(search, range(12))) == {2}
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            np.testing.assert_array_equal(index.search(queries, 10)[0], scores)
    finally:
        torch.set_num_threads(threads)


def test_a_recall_that_is_not_reached_is_said(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipkit.retrieval import approximate

    plan = approximate.Plan("IVF1,PQ1", 1, 1)  # one byte a row, and nothing compared in full
    monkeypatch.setattr(approximate, "plan_index", lambda *_: [plan])
    assert main(["index", str(store), "--approximate", "--recall", "1"]) == 0
    assert "THE RECALL OF 1.0 IS NOT REACHED" in capsys.readouterr().err
    assert (store / "index/image-approximate.json").is_file()
    # For one row as many are compared in full as for ten, with which the recall is measured.
    index = ApproximateIndex.open(EmbeddingStore(store), "image")
    queries = np.concatenate(EmbeddingStore(store).text_embeds)[:40]
    np.testing.assert_array_equal(index.search(queries, 1)[1], index.search(queries, 10)[1][:, :1])


def test_a_foreign_damaged_or_missing_index_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ["search", str(store), "red", "--approximate"]
    assert main(search) == 4
    assert "there is no approximate index" in capsys.readouterr().err
    build_approximate(EmbeddingStore(store), "image", memory=2 * 10**6, progress=False)
    file, manifest = store / "index/image-approximate.faiss", store / "index/image-approximate.json"
    data, text = file.read_bytes(), manifest.read_text()
    assert main([*search, "-k", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 6
    file.write_bytes(data[:1000])
    assert main(search) == 4
    assert "bytes, where" in capsys.readouterr().err
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert main(search) == 4
    assert "damaged" in capsys.readouterr().err
    file.write_bytes(data)
    manifest.write_text(text.replace('"weights_sha256": "', '"weights_sha256": "0'))
    assert main(search) == 4
    assert "of the model" in capsys.readouterr().err
    tree = json.loads(text)
    tree["built"]["effort"] = None
    manifest.write_text(json.dumps(tree))
    assert main(search) == 4
    assert "broken" in capsys.readouterr().err
    manifest.write_text(text)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert main(search) == 2
    assert "pip install 'clipkit-pretraining[faiss]'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="faiss"):
        build_approximate(EmbeddingStore(store), "image", memory=10**9)


def test_a_disk_that_is_full_at_the_end_leaves_no_index(store: Path) -> None:
    """faiss's own writer leaves a file without its end, and says nothing."""
    opened = EmbeddingStore(store)
    built = build_approximate(opened, "image", memory=2 * 10**6, progress=False)
    shutil.rmtree(store / "index")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (built.bytes - 1, before[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            build_approximate(opened, "image", memory=2 * 10**6, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((store / "index").iterdir()) == []


def test_numbers_that_make_no_sense_are_refused(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(store), "--approximate", "--recall", "2"]) == 2
    assert "--recall: 2.0" in capsys.readouterr().err
    assert main(["index", str(store), "--approximate", "--memory", "1KB"]) == 2
    assert "--memory: 1,000 bytes are too few" in capsys.readouterr().err
    assert byte_count("9" * 400) >= 2**62
    with pytest.raises(SystemExit):
        main(["index", str(store), "--memory", "much"])
    with pytest.raises(CheckpointError, match="no approximate index"):
        EmbeddingStore(store).index(approximate=True)


def test_where_a_graph_misses_copies_the_next_kind_is_taken_and_a_stale_one_names_its_command(
    whole: Path, tmp_path: Path
) -> None:
    opened = EmbeddingStore(whole)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10_500, 8)).astype(np.float32)
    x[::2] = x[0]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    rows = np.arange(10_500) % len(opened)
    path = cut_store(opened, tmp_path / "copies", rows, x, dim=8)
    store = EmbeddingStore(path)
    built = build_approximate(store, "image", memory=10**9, recall=0.99, progress=False)
    assert built.recall >= 0.99
    assert built.factory.startswith("IVF")
    cut_store(opened, tmp_path / "other", rows, x[::-1].copy(), dim=8)
    for file in (tmp_path / "other").iterdir():
        shutil.copy(file, path)
    with pytest.raises(CheckpointError, match=r"clipkit index .*copies --approximate, or delete"):
        ApproximateIndex.open(EmbeddingStore(path), "image")

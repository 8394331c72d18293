"""A store larger than what its search may take of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipkit.digest import sha256
from clipkit.retrieval.columns import table_schema
from clipkit.retrieval.store import FORMAT, VERSION

FULL = os.environ.get("CLIPKIT_MATRIX") == "full"
# Anonymous memory is what a process has made; pages of mapped files can be dropped at any time.
CODE = """
import sys, threading, time
import numpy as np, torch
import clipkit, clipkit.cli
from clipkit.retrieval import search, search_command, codes  # imports do not count

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) // 1024

torch.ones(64, 64) @ torch.ones(64, 64)
before = most = anonymous()
done = False

def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.005)

thread = threading.Thread(target=watch)
thread.start()
store = clipkit.EmbeddingStore(sys.argv[1])
queries = np.random.default_rng(1).normal(size=(64, store.dim))
plain = clipkit.Index.open(store).search(queries, 10)
assert clipkit.cli.main(["index", sys.argv[1]]) == 0
coded = clipkit.Index.open(store)
assert (coded.search(queries, 10)[1] == plain[1]).all()
coded.search(queries[:1], 10)
done = True
thread.join()
print("grown", most - before)
"""


def _store(folder: Path, rows: int, dim: int) -> int:
    """Writes random unit vectors as a store; returns their bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    facts = {}
    for number, begin in enumerate(range(0, rows, 65_536)):
        x = rng.standard_normal((min(65_536, rows - begin), dim), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        path = folder / f"image_embeds-{number:05d}.npy"
        np.save(path, x)
        facts[path.name] = {"rows": len(x), "bytes": path.stat().st_size, "sha256": sha256(path)}
    table = folder / "items-00000.parquet"
    keys = pa.array(np.arange(rows)).cast(pa.string())
    columns = {"key": keys, "origin": keys, "source_row": pa.array(np.arange(rows))}
    schema = table_schema({})
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in schema]
    pq.write_table(pa.table(arrays, schema=schema), table)
    facts[table.name] = {"rows": rows, "bytes": table.stat().st_size, "sha256": sha256(table)}
    manifest = {
        "format": FORMAT, "version": VERSION, "rows": rows, "dim": dim, "dtype": "float32",
        "normalised": True, "model": "none", "weights_sha256": "", "preprocess_sha256": "",
        "source": {"path": "generated"}, "skipped": {}, "num_truncated": 0, "context_length": 77,
        "columns": {}, "parts": facts,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return rows * dim * 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_index_and_search_take_little_memory_however_large_the_store(tmp_path: Path) -> None:
    size = _store(tmp_path / "store", 2_200_000 if FULL else 100_000, 512)
    if FULL:
        assert size > 4 * 2**30
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "store")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout.split("grown")[1])
    assert grown < 300, grown

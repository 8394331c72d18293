"""Writes a store of 4 GB of random vectors, part by part, and prints how much memory it took."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np

from clipkit.atomic import create_json
from clipkit.retrieval.plan import PART_ROWS, Plan
from clipkit.retrieval.store import EmbeddingStore
from clipkit.retrieval.writer import PartWriter, write_manifest
from clipkit.types import Item

DIM, BATCH = 512, 256
ROWS = 2 * 2**20


def anonymous() -> int:
    """KiB of this process's own memory; mapped files are not in it."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


folder = Path(sys.argv[1])
folder.mkdir()
plan = Plan(
    model="m", weights_sha256="", preprocess_sha256="", dim=DIM, context_length=77, source={},
    source_fingerprint="", rows=ROWS, images=True, texts=False, max_image_pixels=1,
    part_rows=PART_ROWS, batch_size=BATCH, dtype="float32", precision="fp32",
)  # fmt: skip
create_json(folder / "plan.json", plan.as_json())
begin, peak = anonymous(), [0]


def watch() -> None:
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.01)


threading.Thread(target=watch, daemon=True).start()
vectors = np.random.default_rng(0).standard_normal((BATCH, DIM), dtype=np.float32)
records = {}
for number in range(plan.parts):
    writer = PartWriter(folder, plan, number)
    for batch in plan.batches(number):
        rows = range(batch * BATCH, min((batch + 1) * BATCH, ROWS))
        writer.add(
            keys=[f"{row:09d}" for row in rows],
            source_rows=list(rows),
            items=[Item(f"a.tar, {row}", f"text {row}", "a.tar", row, 4, 3, {}) for row in rows],
            image_embeds=vectors[: len(rows)],
        )
    records[number] = writer.finish()
write_manifest(folder, plan, records)
store = EmbeddingStore(folder)
assert len(store) == ROWS
assert store.items([ROWS - 1])["source_row"].to_pylist() == [ROWS - 1]
size = sum(path.stat().st_size for path in folder.iterdir())
print(json.dumps({"bytes": size, "anonymous_mib": (peak[0] - begin) / 1024}))

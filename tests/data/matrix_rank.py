"""One rank's reading, in a process of its own that a test may kill at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from clipkit.config.load import load_config
from clipkit.data import build_train_loader
from clipkit.data.tokenize import load_tokenizer
from clipkit.training.samples import open_data
from clipkit.types import Batch


@dataclass
class Rank:
    """What to do, as another process is told.

    Attributes:
        config: of a run.
        cache: the folder for whatever is cached.
        trace: the file that gets a line a step.
        workers: of the loader.
        start: the step to begin at.
        rank: its number.
        world_size: how many there are.
        hold: steps after which it waits to be killed; None to run to the end.
    """

    config: str
    cache: str
    trace: str
    workers: int
    start: int = 0
    rank: int = 0
    world_size: int = 1
    hold: int | None = None


def run(what: Rank) -> None:
    """Writes a line a step: what a checkpoint keeps of the data, and a digest of each row."""
    os.environ |= {"XDG_CACHE_HOME": what.cache, "NO_PROXY": "127.0.0.1"}
    torch.set_num_threads(1)
    config = load_config(what.config, [f"data.workers={what.workers}"])
    reader, _ = open_data(config, progress=False)
    assert config.preprocess.tokenizer is not None
    assert config.train.steps is not None
    tokenizer = load_tokenizer(
        config.preprocess.tokenizer, context_length=config.preprocess.context_length
    )
    loader = build_train_loader(
        reader,
        config.data,
        config.preprocess,
        tokenizer,
        seed=config.seed,
        batch_size=config.train.batch_size,
        start_step=what.start,
        steps=config.train.steps,
        rank=what.rank,
        world_size=what.world_size,
    )
    with Path(what.trace).open("w") as trace:
        for number, batch in enumerate(loader):
            if number == what.hold:
                time.sleep(3600)
            pad = int(tokenizer.pad_token_id)
            rows = [_digest(batch, row, pad) for row in range(len(batch.keys))]
            state = {"step": batch.step, "data": reader.fingerprint}
            trace.write(json.dumps({"state": state, "rows": rows}) + "\n")
            trace.flush()


def _digest(batch: Batch, row: int, pad: int) -> str:
    """Of a row's key, ids, pixels and whether it counts."""
    ids = batch.input_ids[row].tolist()
    while ids and ids[-1] == pad:  # ranks pad to different lengths
        ids.pop()
    hashed = hashlib.sha256(json.dumps([batch.keys[row], ids, bool(batch.valid[row])]).encode())
    hashed.update(batch.pixel_values[row].numpy().tobytes())
    return hashed.hexdigest()[:16]

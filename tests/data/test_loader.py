"""Batches are a function of (seed, step, rank): no worker, start method or resume changes a bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sample_files import encoded, pair_members, write_shards, write_tar

from clipkit.config.schema import AugmentConfig, DataConfig, PreprocessConfig, SourceConfig
from clipkit.data import build_eval_loader, build_train_loader, open_source
from clipkit.data.tokenize import train_tokenizer
from clipkit.errors import ConfigError, DataError

BESIDE = Path(__file__).parents[3] / "shared" / "data" / "clothing"
CLOTHING = Path(os.environ.get("CLIPKIT_CLOTHING", BESIDE))
PREPROCESS = PreprocessConfig(image_size=24, context_length=16)
AUGMENT = AugmentConfig(crop_scale=(0.5, 1.0), horizontal_flip=0.5)


@pytest.fixture(scope="module")
def tokenizer():
    captions = [f"caption number {i}" for i in range(50)]
    return train_tokenizer(captions, vocab_size=600, context_length=16)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """90 pairs in three shards; one image is broken, and one caption is a long blank."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(folder, [50, 30])
    broken = [("0080.jpg", encoded()[:-300]), ("0080.txt", b"broken"), ("0081.txt", b" \t " * 30)]
    write_tar(folder / "train-002.tar", [*broken, ("0081.jpg", encoded()), *pair_members(8, 82)])
    return open_source(SourceConfig(path=str(folder)), progress=False)


def train_loader(reader, tokenizer, *, workers=0, start=0, steps=8, batch_size=30, **options):
    config = DataConfig(augment=AUGMENT, workers=workers, shuffle_chunk=4, shuffle_window=16)
    options = {"seed": 5, **options}
    return build_train_loader(
        reader, config, PREPROCESS, tokenizer,
        batch_size=batch_size, start_step=start, steps=steps, **options,
    )  # fmt: skip


def trace(batches):
    return [
        (b.step, b.keys, b.pixel_values, b.input_ids, b.valid.tolist(), sorted(map(str, b.skipped)))
        for b in batches
    ]


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def test_batches_are_the_same_with_and_without_workers(reader, tokenizer):
    here = trace(train_loader(reader, tokenizer))
    assert [step for step, *_ in here] == list(range(8))
    assert here[0][2].shape == (30, 3, 24, 24)
    assert here[0][2].dtype == torch.uint8
    assert_same(here, trace(train_loader(reader, tokenizer, workers=2)))
    assert_same(here, trace(train_loader(reader, tokenizer, workers=3, start_method="fork")))


@pytest.mark.slow
def test_spawned_workers_make_the_same_batches(reader, tokenizer, monkeypatch):
    here = trace(train_loader(reader, tokenizer))
    monkeypatch.setenv("CLIPKIT_START_METHOD", "spawn")
    assert_same(here, trace(train_loader(reader, tokenizer, workers=2)))


def test_a_start_at_any_step_continues_the_same_batches(reader, tokenizer):
    whole = trace(train_loader(reader, tokenizer))
    assert_same(whole[5:], trace(train_loader(reader, tokenizer, start=5, workers=2)))
    assert trace(train_loader(reader, tokenizer, start=8)) == []


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_have_the_rows_of_one_process(reader, tokenizer, world_size):
    pad = tokenizer.pad_token_id
    one = list(train_loader(reader, tokenizer))
    ranks = [
        list(train_loader(reader, tokenizer, rank=r, world_size=world_size))
        for r in range(world_size)
    ]
    for whole, *parts in zip(one, *ranks, strict=True):
        assert [key for part in parts for key in part.keys] == whole.keys
        assert torch.equal(torch.cat([p.pixel_values for p in parts]), whole.pixel_values)
        assert torch.equal(torch.cat([p.valid for p in parts]), whole.valid)
        width = whole.input_ids.shape[1]
        ids = [
            torch.nn.functional.pad(p.input_ids, (0, width - p.input_ids.shape[1]), value=pad)
            for p in parts
        ]
        assert torch.equal(torch.cat(ids), whole.input_ids)


def test_each_epoch_has_each_sample_once_also_where_batches_straddle_it(reader, tokenizer):
    # 90 samples in batches of 28: the epoch ends inside a batch.
    batches = list(train_loader(reader, tokenizer, batch_size=28, steps=13))
    keys = [key for batch in batches for key in batch.keys]
    everything = sorted(f"{i:04d}" for i in range(90))
    for epoch in range(4):
        assert sorted(keys[epoch * 90 : epoch * 90 + 90]) == everything


def test_large_batches_are_made_in_pieces_and_joined_in_order(reader, tokenizer):
    small = list(train_loader(reader, tokenizer, batch_size=30, steps=6))
    (large,) = train_loader(reader, tokenizer, batch_size=180, steps=1, workers=2)
    assert large.keys == [key for batch in small for key in batch.keys]
    assert torch.equal(large.pixel_values, torch.cat([b.pixel_values for b in small]))


def test_what_cannot_be_used_keeps_its_row_and_says_why(reader, tokenizer):
    batches = list(train_loader(reader, tokenizer, steps=3))
    skips = {skip.origin.split("sample ")[1]: skip.reason for b in batches for skip in b.skipped}
    assert skips == {"0080": "truncated image", "0081": "empty caption"}
    start_and_end = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    found = 0
    for batch in batches:
        for i in (~batch.valid).nonzero().flatten().tolist():
            found += 1
            assert batch.keys[i] in ("0080", "0081")
            assert not batch.pixel_values[i].any()
            ids = batch.input_ids[i].tolist()
            assert ids[:2] == start_and_end
            assert set(ids[2:]) <= {tokenizer.pad_token_id}
    assert found == 2


def test_captions_are_padded_to_the_longest_of_the_batch(tmp_path, tokenizer):
    members = pair_members(6)
    members[1] = ("0000.txt", b"number " * 40)  # longer than the context
    members[3] = ("0001.txt", b"x")
    source = SourceConfig(path=str(write_tar(tmp_path / "x.tar", members)))
    reader = open_source(source, progress=False)
    batches = list(train_loader(reader, tokenizer, batch_size=1, steps=6))
    widths = {batch.keys[0]: (batch.input_ids.shape[1], batch.truncated) for batch in batches}
    assert widths["0000"] == (16, 1)
    assert widths["0001"][0] < widths["0002"][0] < 16
    (joined,) = train_loader(reader, tokenizer, batch_size=6, steps=1)
    assert joined.input_ids.shape == (6, 16)
    assert joined.truncated == 1


def test_a_batch_that_ranks_cannot_share_is_refused(reader, tokenizer):
    with pytest.raises(ConfigError, match=r"batch_size: 30 is not divisible by 4.*use 28"):
        train_loader(reader, tokenizer, world_size=4)


def eval_loader(reader, tokenizer, **options):
    options = {"batch_size": 32, "max_image_pixels": 10**6, **options}
    return build_eval_loader(reader, PREPROCESS, tokenizer, **options)


def test_the_eval_loader_gives_all_samples_once_in_order(reader, tokenizer):
    batches = list(eval_loader(reader, tokenizer))
    assert [len(batch.keys) for batch in batches] == [32, 32, 26]
    assert [key for batch in batches for key in batch.keys] == [f"{i:04d}" for i in range(90)]
    assert sum(int((~batch.valid).sum()) for batch in batches) == 2
    assert_same(trace(batches), trace(eval_loader(reader, tokenizer, workers=2)))
    large = list(eval_loader(reader, tokenizer, batch_size=300, workers=2))
    assert len(large) == 1
    assert torch.equal(large[0].pixel_values, torch.cat([b.pixel_values for b in batches]))


@pytest.mark.parametrize("world_size", [2, 7, 100])
def test_eval_ranks_share_the_rows_without_overlap(reader, tokenizer, world_size):
    keys = []
    for rank in range(world_size):
        batches = list(eval_loader(reader, tokenizer, rank=rank, world_size=world_size))
        keys.append([key for batch in batches for key in batch.keys])
    assert [key for part in keys for key in part] == [f"{i:04d}" for i in range(90)]
    assert max(map(len, keys)) - min(map(len, keys)) <= 1


def test_evaluation_of_one_side_does_not_need_the_other(reader, tokenizer):
    images = list(eval_loader(reader, None, texts=False))
    assert [skip.reason for b in images for skip in b.skipped] == ["truncated image"]
    assert images[0].input_ids.shape == (0, 0)
    texts = list(eval_loader(reader, tokenizer, images=False))
    assert [skip.reason for b in texts for skip in b.skipped] == ["empty caption"]
    assert texts[0].pixel_values.shape == (0, 3, 24, 24)
    assert len(texts[0].keys) == 32


def test_loading_does_not_move_the_trainers_random_numbers(reader, tokenizer):
    torch.manual_seed(0)
    expected = torch.rand(4)
    for workers in (0, 2):
        torch.manual_seed(0)
        list(train_loader(reader, tokenizer, workers=workers, steps=2))
        assert torch.equal(torch.rand(4), expected)


def test_close_ends_the_workers_at_once(reader, tokenizer):
    import multiprocessing

    loader = train_loader(reader, tokenizer, workers=2, steps=10_000)
    batches = iter(loader)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 4
    assert not any(worker.is_alive() for worker in workers)


def test_a_vanished_shard_is_one_sentence_from_a_worker_too(tmp_path, tokenizer):
    pattern = write_shards(tmp_path, [20, 20])
    reader = open_source(SourceConfig(path=pattern), progress=False)
    (tmp_path / "train-001.tar").unlink()
    with pytest.raises(DataError) as caught:
        list(train_loader(reader, tokenizer, workers=2, batch_size=20))
    assert "train-001.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


SCRIPT = """
import os, signal, sys, time, multiprocessing
from pathlib import Path
from clipkit.config.schema import DataConfig, PreprocessConfig, SourceConfig
from clipkit.data import build_train_loader, open_source
from clipkit.data.tokenize import train_tokenizer
from clipkit.errors import DataError

folder, what = sys.argv[1:]
reader = open_source(SourceConfig(path=folder), progress=False)
tokenizer = train_tokenizer(reader.captions(), vocab_size=600, context_length=16)
loader = build_train_loader(
    reader, DataConfig(workers=2), PreprocessConfig(image_size=24, context_length=16), tokenizer,
    seed=0, batch_size=16, start_step=0, steps=10_000,
)
batches = iter(loader)
next(batches)
workers = multiprocessing.active_children()
print(*[worker.pid for worker in workers], flush=True)
if what == "kill":
    os.kill(workers[0].pid, signal.SIGKILL)
    began = time.monotonic()
    try:
        for batch in batches:
            pass
    except DataError as error:
        print(f"{time.monotonic() - began:.0f} s: {error}")
elif what == "group":
    signal.signal(signal.SIGTERM, lambda *_: print("asked to stop", flush=True))
    os.killpg(0, signal.SIGTERM)
    for _ in range(20):
        next(batches)
    print("still loading", flush=True)
# and ends with the workers running
"""


def run_script(folder, what):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), what],
        capture_output=True, text=True, timeout=120, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    first, _, rest = done.stdout.partition("\n")
    pids = [int(pid) for pid in first.split()]
    for pid in pids:  # whatever happened, no worker outlives the process
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    return done, rest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_killed_worker_is_a_sentence_with_cause_and_remedy(tmp_path):
    write_shards(tmp_path, [40])
    done, output = run_script(tmp_path, "kill")
    assert "ran out of memory" in output
    assert "lower data.workers" in output
    assert done.stderr == ""
    assert done.returncode == 0


FULL_PIPES = """
import multiprocessing, os, signal, time
from clipkit.data.workers import WorkerLoader

class Large:
    def __getitem__(self, i):
        return bytes(2**20)

items = iter(WorkerLoader(Large(), range(1000), workers=2, ahead=8))
next(items)
time.sleep(1)  # until what is made waits in pipes that nobody reads
print(*[worker.pid for worker in multiprocessing.active_children()], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_with_full_pipes_end_with_a_process_that_was_killed():
    done = subprocess.run([sys.executable, "-c", FULL_PIPES], stdout=subprocess.PIPE, timeout=60)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_ignore_a_signal_to_the_group_and_end_with_the_trainer(tmp_path):
    write_shards(tmp_path, [40])
    began = time.monotonic()
    done, output = run_script(tmp_path, "group")
    assert output.split("\n")[:2] == ["asked to stop", "still loading"]
    assert done.stderr == ""
    assert done.returncode == 0
    assert time.monotonic() - began < 60


@pytest.mark.skipif(not CLOTHING.is_dir(), reason="the clothing photographs are not here")
def test_photographs_load(tmp_path, tokenizer):
    # Through a link, so that the index lies here and not beside the photographs.
    (tmp_path / "v.tar").symlink_to((CLOTHING / "validation-000.tar").resolve())
    source = SourceConfig(path=str(tmp_path / "v.tar"))
    reader = open_source(source, progress=False)
    assert len(reader) == 341
    batches = list(train_loader(reader, tokenizer, batch_size=100, steps=4))
    assert not any(batch.skipped for batch in batches)
    assert all(40 < batch.pixel_values.float().mean() < 230 for batch in batches)


def test_signals_are_as_before(reader, tokenizer):
    before = signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGTERM)
    list(train_loader(reader, tokenizer, workers=1, steps=1))
    assert (signal.getsignal(signal.SIGCHLD), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("gigabytes", [1.0, 3e-5])
def test_kept_samples_change_no_bit_and_spare_decoding(reader, tokenizer, gigabytes, monkeypatch):
    """All of them, or the few that fit into 30 kB; the broken one is skipped in every epoch."""
    from clipkit.data import pieces

    decoded = []
    decode = pieces.decode_pixels

    def count(data, **options):
        decoded.append(len(data))
        return decode(data, **options)

    plain = trace(train_loader(reader, tokenizer, steps=9))
    monkeypatch.setattr(pieces, "decode_pixels", count)
    config = DataConfig(
        augment=AUGMENT, workers=0, shuffle_chunk=4, shuffle_window=16, decoded_gb=gigabytes
    )
    kept = build_train_loader(
        reader, config, PREPROCESS, tokenizer, batch_size=30, start_step=0, steps=9, seed=5
    )
    assert_same(trace(kept), plain)
    epochs, usable = 3, 88  # of 90 samples; the blank caption is not decoded
    most = epochs * (usable + 1)
    assert (
        len(decoded) == usable + epochs if gigabytes == 1 else usable + epochs < len(decoded) < most
    )

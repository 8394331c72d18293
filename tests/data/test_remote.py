"""Sources behind HTTP: the same samples, read ahead, kept in a cache, asked for again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from file_server import Server
from sample_files import encoded, pair_members, write_shards, write_tar

from clipkit.config.schema import Config, DataConfig, PreprocessConfig, SourceConfig
from clipkit.data import SampleError, build_train_loader, hold_back, open_source, remote
from clipkit.data.loader import build_order
from clipkit.data.tokenize import train_tokenizer
from clipkit.errors import ConfigError, DataError
from clipkit.training.samples import open_data


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "RETRY_WAITS", [0.01, 0.01, 0.01])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    remote.use_cache(0)
    running = Server(tmp_path)
    yield running
    running.close()


def test_a_shard_behind_http_is_the_shard(tmp_path: Path, server: Server) -> None:
    local = open_source(SourceConfig(path=write_shards(tmp_path, [4])), progress=False)
    remote = open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    assert [remote[i].image for i in range(4)] == [local[i].image for i in range(4)]
    # The index is kept: opening it again asks for its size, and reads nothing.
    server.asked.clear()
    open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    assert server.asked["/train-000.tar"] <= 4


def test_a_passing_fault_is_waited_out(tmp_path: Path, server: Server) -> None:
    write_shards(tmp_path, [4])
    reader = open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    image = reader[2].image
    server.failures = 3
    assert reader[2].image == image
    assert server.failures == 0


def test_a_lasting_fault_ends_in_a_line_that_says_how_often_it_was_tried(
    tmp_path: Path, server: Server
) -> None:
    write_shards(tmp_path, [4])
    reader = open_source(SourceConfig(path=f"{server.url}/train-000.tar"), progress=False)
    server.failures = 1000
    with pytest.raises(DataError, match=r"train-000\.tar: cannot be read .*after 4 attempts"):
        reader[2]
    server.status, before = 403, server.asked["/train-000.tar"]
    with pytest.raises(DataError, match=r"train-000\.tar: cannot be read"):
        reader[2]
    assert server.asked["/train-000.tar"] == before + 1  # a refusal is not asked again


def test_a_dead_link_costs_its_sample_alone(tmp_path: Path, server: Server) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded())
    rows = [{"url": f"{server.url}/{name}.jpg", "caption": name} for name in ("a", "gone")]
    table = tmp_path / "pairs.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = open_source(SourceConfig(path=str(table)), progress=False)
    assert reader[0].image == encoded()
    with pytest.raises(SampleError, match="missing image file"):
        reader[1]
    server.failures, server.status = 2, 403
    with pytest.raises(SampleError, match=r"(missing|unreadable) image file"):
        reader[0]


def train_hashes(path: str, workers: int, cache_gb: float = 1.0, **options: str) -> list[object]:
    """What each step of a small loader holds."""
    reader = open_source(SourceConfig(path=path, **options), progress=False, estimate=True)  # type: ignore[arg-type]
    config = DataConfig(workers=workers, shuffle_chunk=4, shuffle_window=16, cache_gb=cache_gb)
    tokenizer = train_tokenizer(["caption number 1"] * 9, vocab_size=520, context_length=16)
    preprocess = PreprocessConfig(image_size=24, context_length=16)
    loader = build_train_loader(
        reader, config, preprocess, tokenizer, seed=5, batch_size=16, start_step=0, steps=6
    )
    return [
        (
            batch.keys,
            batch.valid.tolist(),
            batch.pixel_values.sum().item(),
            batch.input_ids.tolist(),
        )
        for batch in loader
    ]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0.0, 1.0])
def test_read_ahead_and_cache_change_no_sample(
    tmp_path: Path, server: Server, workers: int, cache_gb: float
) -> None:
    local = write_shards(tmp_path, [20, 13, 7])
    shards = f"{server.url}/train-{{000..002}}.tar"
    far = train_hashes(shards, workers, cache_gb, count="index")
    assert far == train_hashes(local, 0, 0.0)


def test_reading_ahead_asks_for_many_samples_at_a_time(tmp_path: Path, server: Server) -> None:
    write_shards(tmp_path, [64])
    shard = f"{server.url}/train-000.tar"
    reader = open_source(SourceConfig(path=shard, count="index"), progress=False)
    server.delay, server.most = 0.05, 0
    assert all(reader[row].image for row in range(4))
    assert server.most == 1
    assert len(train_hashes(shard, 0, 0.0, count="index")) == 6
    assert server.most >= 8


def test_each_block_is_fetched_once_by_all_workers(tmp_path: Path, server: Server) -> None:
    write_shards(tmp_path, [20, 13, 7])
    size = sum((tmp_path / f"train-{n:03d}.tar").stat().st_size for n in range(3))
    shards = f"{server.url}/train-{{000..002}}.tar"
    remote.use_cache(1.0)
    open_source(SourceConfig(path=shards, count="index"), progress=False)  # reads all of it
    assert sum(server.sent[f"/train-{n:03d}.tar"] for n in range(3)) == size
    train_hashes(shards, 2, count="index")
    train_hashes(shards, 0, count="index")
    assert sum(server.sent[f"/train-{n:03d}.tar"] for n in range(3)) == size


def test_the_cache_keeps_to_its_limit_and_what_was_used_last(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "BLOCK", 1000)
    (tmp_path / "big").write_bytes(bytes(range(250)) * 400)  # 100,000 bytes
    whole = (tmp_path / "big").read_bytes()
    remote.use_cache(32_000 / 1e9)
    url = f"{server.url}/big"
    remote.read(url, 0, 1000)
    for begin in range(0, 100_000, 1000):
        assert remote.read(url, begin + 7, 1986) == whole[begin + 7 : begin + 1993]
        assert remote.read(url, 0, 10) == whole[:10]  # used all the time
    kept = [f for f in (tmp_path / "cache/clipkit/blocks").rglob("*-*") if f.is_file()]
    assert 20_000 <= sum(f.stat().st_size for f in kept) <= 34_000
    before = server.sent["/big"]
    remote.read(url, 0, 10)
    assert server.sent["/big"] == before


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path, server: Server) -> None:
    write_shards(tmp_path, [4])
    shard = SourceConfig(path=f"{server.url}/train-000.tar", count="index")
    remote.use_cache(1.0)
    assert open_source(shard, progress=False)[0].caption == "caption number 0"
    write_tar(tmp_path / "train-000.tar", pair_members(5, 30))
    assert open_source(shard, progress=False)[0].caption == "caption number 30"


def test_a_full_cache_disk_is_said_once_and_costs_nothing(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, [4])
    (tmp_path / "cache" / "clipkit").mkdir(parents=True)
    (tmp_path / "cache" / "clipkit" / "blocks").write_text("no folder")
    remote.use_cache(1.0)
    shard = f"{server.url}/train-000.tar"
    with pytest.warns(
        UserWarning, match=r"remote data are no longer cached .*data\.cache_gb"
    ) as said:
        last = open_source(SourceConfig(path=shard, count="index"), progress=False)[3]
    assert last.caption == "caption number 3"
    assert len(said) == 1


def sizes_json(folder: Path, sizes: list[int]) -> None:
    told = {f"train-{n:03d}.tar": size for n, size in enumerate(sizes)}
    (folder / "sizes.json").write_text(json.dumps(told))


def test_with_sizes_a_shard_is_read_when_it_is_needed(tmp_path: Path, server: Server) -> None:
    local = open_source(SourceConfig(path=write_shards(tmp_path, [4, 3, 5])), progress=False)
    for index in tmp_path.glob("*.npz"):
        index.unlink()
    sizes_json(tmp_path, [4, 3, 5])
    remote.use_cache(1.0)
    reader = open_source(SourceConfig(path=f"{server.url}/train-{{000..002}}.tar"), progress=False)
    assert (reader.shard_sizes, reader.access.estimated) == ([4, 3, 5], False)
    assert server.sent["/train-001.tar"] == server.sent["/train-002.tar"] == 0
    assert reader[5].image == local[5].image
    assert server.sent["/train-001.tar"] == (tmp_path / "train-001.tar").stat().st_size
    assert server.sent["/train-002.tar"] == 0
    assert list(reader.captions()) == list(local.captions())


def test_what_sizes_json_promises_and_a_shard_lacks_is_an_error_of_its_own(tmp_path: Path) -> None:
    path = write_shards(tmp_path, [4, 3])
    sizes_json(tmp_path, [4, 5])
    reader = open_source(SourceConfig(path=path, count="sizes"), progress=False)
    assert len(reader) == 9
    with pytest.warns(UserWarning, match="holds 3 samples; sizes.json says 5"):
        assert reader[6].caption == "caption number 6"
    with pytest.raises(SampleError, match="lost to a damaged shard"):
        reader[7]
    assert reader.locate(7) == f"{tmp_path / 'train-001.tar'}, sample number 3"
    (tmp_path / "sizes.json").unlink()
    with pytest.raises(DataError, match=r"train-000.tar: there is no sizes.json .* index"):
        open_source(SourceConfig(path=path, count="sizes"), progress=False)


def test_samples_that_sizes_json_does_not_know_are_said(tmp_path: Path) -> None:
    path = write_shards(tmp_path, [4, 3])
    sizes_json(tmp_path, [4, 1])
    reader = open_source(SourceConfig(path=path, count="sizes"), progress=False)
    assert len(reader) == 5
    with pytest.warns(UserWarning, match="holds 3 samples; sizes.json says 1, and no more"):
        assert reader[4].caption == "caption number 4"


@pytest.mark.parametrize("size", [-3, "5", 5.5, None, True, [3], 10**30])
def test_a_size_that_makes_no_sense_is_none(tmp_path: Path, server: Server, size: object) -> None:
    write_shards(tmp_path, [4, 3])
    (tmp_path / "sizes.json").write_text(json.dumps({"train-000.tar": 4, "train-001.tar": size}))
    source = SourceConfig(path=f"{server.url}/train-{{000..001}}.tar")
    reader = open_source(source, progress=False, estimate=True)
    assert reader.access.estimated
    assert len(open_source(source, progress=False)) == 7  # counted
    with pytest.raises(DataError, match=r"train-001\.tar: there is no sizes.json .* index"):
        open_source(replace(source, count="sizes"), progress=False)


def test_estimates_read_every_sample_equally_often(tmp_path: Path) -> None:
    # The second shard has more samples than its bytes suggest, and the third has fewer.
    small = [
        (f"s{i:03d}.{e}", d) for i in range(40) for e, d in (("jpg", b"x" * 400), ("txt", b"t"))
    ]
    large = [
        (f"l{i:03d}.{e}", d) for i in range(6) for e, d in (("jpg", b"x" * 9000), ("txt", b"t"))
    ]
    middle = [
        (f"m{i:03d}.{e}", d) for i in range(20) for e, d in (("jpg", b"x" * 3000), ("txt", b"t"))
    ]
    for name, members in (("a", middle), ("b", small), ("c", large)):
        write_tar(tmp_path / f"{name}.tar", members)
    config = DataConfig(shuffle_window=16)
    reader = open_source(
        SourceConfig(path=str(tmp_path / "*.tar"), count="estimate"), progress=False, estimate=True
    )
    first, second, third = reader.shard_sizes
    assert first == 20
    assert 6 < third < 20 < 40
    assert second < 40
    order = build_order(reader, config, seed=3)
    epochs = 12
    rows = order.rows(torch.arange(epochs * len(reader)).numpy())
    keys = [reader[int(row)].key for row in rows]
    assert len(set(keys)) == 66  # nothing is left out
    for letter, samples, slots in (("m", 20, first), ("s", 40, second), ("l", 6, third)):
        counts = [keys.count(key) for key in sorted(set(keys)) if key.startswith(letter)]
        assert len(counts) == samples
        assert {epochs * slots // samples, -(-epochs * slots // samples)} >= set(counts)


def test_remote_totals_are_estimates_where_nothing_tells_them(
    tmp_path: Path, server: Server
) -> None:
    write_shards(tmp_path, [40, 40, 40])
    remote.use_cache(1.0)
    source = SourceConfig(path=f"{server.url}/train-{{000..002}}.tar")
    reader = open_source(source, progress=False, estimate=True)
    assert reader.access.estimated
    assert len(reader) == pytest.approx(120, rel=0.1)
    assert server.sent["/train-002.tar"] == 0
    counted = open_source(source, progress=False)
    assert (len(counted), counted.access.estimated) == (120, False)


def test_remote_shards_have_no_hard_negatives(tmp_path: Path, server: Server) -> None:
    write_shards(tmp_path, [4, 3])
    reader = open_source(SourceConfig(path=f"{server.url}/train-{{000..001}}.tar"), progress=False)
    with pytest.raises(ConfigError, match=r"^data\.hard_negatives: http.*; copy it to a disk"):
        build_order(reader, DataConfig(hard_negatives=2), seed=0)
    config = Config(data=DataConfig(train=reader.source, hard_negatives=2))
    with pytest.raises(ConfigError, match=r"^data\.hard_negatives"):  # before a run has a folder
        open_data(config, progress=False)


def test_an_index_beside_a_remote_shard_is_used(tmp_path: Path, server: Server) -> None:
    local = open_source(SourceConfig(path=write_shards(tmp_path, [4, 3])), progress=False)
    assert len(list(tmp_path.glob("*.clipkit-index.npz"))) == 2
    sizes_json(tmp_path, [4, 3])
    reader = open_source(SourceConfig(path=f"{server.url}/train-{{000..001}}.tar"), progress=False)
    assert not reader.access.whole_shards
    assert reader[6].image == local[6].image
    assert server.sent["/train-001.tar"] < (tmp_path / "train-001.tar").stat().st_size / 2


def test_holdout_of_remote_shards_needs_their_indexes(tmp_path: Path, server: Server) -> None:
    write_shards(tmp_path, [6, 6])
    sizes_json(tmp_path, [6, 6])
    source = SourceConfig(path=f"{server.url}/train-{{000..001}}.tar")
    with pytest.raises(DataError, match="Set count of the source to index"):
        hold_back(open_source(source, progress=False), 0.25)
    source.count = "index"
    kept, back = hold_back(open_source(source, progress=False), 0.25)
    assert (len(kept), len(back)) == (9, 3)
    open_source(SourceConfig(path=str(tmp_path / "train-*.tar")), progress=False)
    source.count = "sizes"  # the indexes lie beside the shards now
    _, again = hold_back(open_source(source, progress=False), 0.25)
    assert [again[row].key for row in range(3)] == [back[row].key for row in range(3)]

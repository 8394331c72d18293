"""``clipkit embed --update``: an updated store is that of a new embedding of the source."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import ENVIRONMENT, ROOT
from test_embed import run
from tiny_model import noise_image, noise_shard, png_bytes, save_tiny_model, write_shard

import clipkit as package
from clipkit.cli import main
from clipkit.digest import sha256
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.retrieval.codes import build_codes, open_codes
from clipkit.retrieval.page import reader_of
from clipkit.retrieval.store import EmbeddingStore

Samples = dict[str, tuple[int, str]]  # key → seed of the image, caption


def folder_of(samples: Samples, out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for key, (seed, caption) in samples.items():
        noise_image(seed).save(out / f"{key}.png")
        (out / f"{key}.txt").write_text(caption)
    return out


def tar_of(samples: Samples, out: Path) -> Path:
    pairs = [(png_bytes(noise_image(seed)), caption) for seed, caption in samples.values()]
    return write_shard(out.with_suffix(".tar"), pairs)


def table_of(samples: Samples, out: Path) -> Path:
    out.mkdir(exist_ok=True)
    with (out / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "year"])
        for key, (seed, caption) in samples.items():
            noise_image(seed).save(out / f"{key}.png")
            writer.writerow([f"{key}.png", caption, 1900 + seed])
    return out / "table.csv"


def parquet_of(samples: Samples, out: Path) -> Path:
    images = [png_bytes(noise_image(seed)) for seed, _ in samples.values()]
    captions = [caption for _, caption in samples.values()]
    path = out.with_suffix(".parquet")
    pq.write_table(pa.table({"image": images, "caption": captions}), path)
    return path


def lines_of(samples: Samples, out: Path) -> Path:
    path = out.with_suffix(".txt")
    path.write_text("".join(f"{caption}\n" for _, caption in samples.values()))
    return path


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The keys of the samples that the model sees."""
    keys: list[str] = []
    encode_batches = Encoder.encode_batches

    def noting(encoder: Encoder, loader: Any, **options: Any) -> Iterator[Any]:
        for encoded in encode_batches(encoder, loader, **options):
            keys.extend(encoded.batch.keys)
            yield encoded

    monkeypatch.setattr(Encoder, "encode_batches", noting)
    return keys


def assert_like_new(store: EmbeddingStore, encoder: Encoder, source: Path, new: Path) -> None:
    """Against a store that is embedded anew."""
    fresh = run(encoder, source, new)
    assert store.table.equals(fresh.table)
    for ours, theirs in (
        (store.image_embeds, fresh.image_embeds),
        (store.text_embeds, fresh.text_embeds),
    ):
        assert len(ours) == len(theirs)
        if ours:
            np.testing.assert_allclose(np.concatenate(ours), np.concatenate(theirs), atol=2e-6)
    of_state = {"parts", "update", "generation", "cosines"}
    for name in store.manifest.keys() - of_state:
        assert store.manifest[name] == fresh.manifest[name], name
    assert reader_of(store)[1] is None
    left = {path.name for path in store.folder.iterdir() if path.is_file()}
    assert left == {"manifest.json", "plan.json", *store.manifest["parts"]}
    assert not (store.folder / "update").exists()


BEFORE: Samples = {f"k{i:02d}": (i, f"red number {i}") for i in range(14)}


@pytest.mark.parametrize("write", [folder_of, tar_of, table_of, parquet_of, lines_of])
def test_an_updated_store_is_that_of_the_source_and_only_what_changed_is_embedded(
    write: Callable[[Samples, Path], Path],
    tiny_encoder: Encoder,
    tmp_path: Path,
    embedded: list[str],
) -> None:
    source = write(BEFORE, tmp_path / "data")
    out = tmp_path / "store"
    run(tiny_encoder, source, out)
    after = {"k00a": (50, "a new one at the front"), **BEFORE, "k99": (51, "a new one at the end")}
    del after["k05"]
    after["k07"] = (7, "a caption that changed")
    is_lines = write is lines_of
    if not is_lines:
        after["k09"] = (60, after["k09"][1])  # a picture that was painted over
    write(after, tmp_path / "data")
    embedded.clear()
    store = run(tiny_encoder, source, out, update=True)
    assert len(embedded) == (3 if is_lines else 4)
    counts = store.manifest["update"]
    assert counts["kept"] == (12 if is_lines else 11)
    assert counts["new"] + counts["changed"] == len(embedded)
    assert counts["removed"] + counts["changed"] + counts["kept"] == 14
    if write in (folder_of, table_of):  # whose samples have names
        assert counts == {"new": 2, "changed": 2, "removed": 1, "kept": 11}
    assert_like_new(store, tiny_encoder, source, tmp_path / "new")
    embedded.clear()
    again = run(tiny_encoder, source, out, update=True)
    assert embedded == []
    assert again.manifest["update"] == {"new": 0, "changed": 0, "removed": 0, "kept": 15}
    assert again.manifest["parts"] == store.manifest["parts"]


def test_what_lies_before_a_change_is_not_written_again(
    tiny_encoder: Encoder, tmp_path: Path, embedded: list[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "store"
    noise_shard(data / "a.tar", 8)
    first = run(tiny_encoder, data, out)
    build_codes(first, "image", progress=False)
    before = {path: path.stat().st_ino for path in out.glob("*-0*")}
    noise_shard(data / "b.tar", 6, first=100)
    with pytest.raises(CheckpointError, match=r"the source has changed since.*give --update"):
        run(tiny_encoder, data, out)
    embedded.clear()
    store = run(tiny_encoder, data, out, update=True)
    assert len(embedded) == 6
    assert before.items() <= {path: path.stat().st_ino for path in out.glob("*-0*")}.items()
    assert_like_new(store, tiny_encoder, data, tmp_path / "new")
    assert open_codes(store, "image") is not None  # made anew for the new rows
    near = store.index().search_embeds(np.concatenate(store.image_embeds)[-1:], 1)[0]
    assert near.rows.tolist() == [13]


def test_copies_and_samples_that_cannot_be_used_are_counted_right(
    tiny_encoder: Encoder, tmp_path: Path, embedded: list[str]
) -> None:
    samples = [(png_bytes(noise_image(i % 4)), f"number {i % 4}") for i in range(9)]
    source = write_shard(tmp_path / "a.tar", samples)
    out = tmp_path / "store"
    run(tiny_encoder, source, out)
    write_shard(source, [*samples[:6], (b"broken", "no picture"), samples[0], samples[0]])
    embedded.clear()
    store = run(tiny_encoder, source, out, update=True)
    assert len(store) == 8
    assert sum(store.manifest["skipped"].values()) == 1
    assert len(embedded) == 1  # the one that could not be decoded
    assert store.manifest["update"]["kept"] == 7
    assert_like_new(store, tiny_encoder, source, tmp_path / "new")


def test_update_makes_a_store_where_there_is_none_and_says_what_it_did(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_of(BEFORE, tmp_path / "data")
    command = ["embed", str(tiny_folder), str(data), str(tmp_path / "store"), "--update"]
    assert main(command) == 0
    assert "images and captions of 14 samples" in capsys.readouterr().out
    (data / "k03.png").unlink()
    (data / "k04.txt").write_text("blue dog")
    noise_image(77).save(data / "new.png")
    (data / "new.txt").write_text("green house")
    assert main(command[:-1]) == 4
    assert "give --update to embed what has changed" in capsys.readouterr().err
    assert main(command) == 0
    said = capsys.readouterr()
    assert "1 new, 1 changed, 1 removed, 12 kept" in said.err
    assert "images and captions of 14 samples" in said.out
    assert main([*command, "--overwrite"]) == 2


def test_another_model_or_option_is_refused_and_leaves_the_store(
    tiny_encoder: Encoder, tiny_folder: Path, shard: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    run(tiny_encoder, shard, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    other = package.load(save_tiny_model(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(
        CheckpointError, match=rf"made with the model {tiny_folder}.*not with .*other"
    ):
        run(other, shard, out, update=True)
    for options, match in (
        ({"precision": "bf16"}, "precision was fp32 and is bf16"),
        ({"dtype": "float16"}, "dtype was float32 and is float16"),
        ({"texts": False}, "texts was True and is False"),
    ):
        with pytest.raises(CheckpointError, match=match):
            run(tiny_encoder, shard, out, update=True, **options)
    nothing = write_shard(tmp_path / "bad.tar", [(b"x", "cat")] * 3)
    with pytest.raises(DataError, match="none of 3 samples can be used"):
        run(tiny_encoder, nothing, out, update=True)
    others = folder_of({"x": (500, "of another source")}, tmp_path / "others")
    with pytest.raises(
        DataError, match=r"none of its 20 samples, which are of .*a\.tar, is in this"
    ):
        run(tiny_encoder, others, out, update=True)
    assert not (out / "update").exists()
    with pytest.raises(ConfigError, match="--update"):
        run(tiny_encoder, shard, out, update=True, overwrite=True)
    assert before.items() <= {p: p.read_bytes() for p in out.iterdir() if p.is_file()}.items()
    assert len(EmbeddingStore(out)) == 20
    assert run(tiny_encoder, shard, out, update=True).manifest["update"]["kept"] == 20


def test_a_store_of_the_layout_before_is_updated_once_with_all_images(
    tiny_encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tar_of(BEFORE, tmp_path / "data")
    out = tmp_path / "store"
    run(tiny_encoder, source, out)
    manifest = json.loads((out / "manifest.json").read_text()) | {"version": 2}
    for name, facts in manifest["parts"].items():
        if name.startswith("items-"):
            pq.write_table(pq.read_table(out / name).drop_columns(["image_hash"]), out / name)
            facts |= {"bytes": (out / name).stat().st_size, "sha256": sha256(out / name)}
    (out / "manifest.json").write_text(json.dumps(manifest))
    plan = json.loads((out / "plan.json").read_text()) | {"version": 2}
    del plan["generation"]
    (out / "plan.json").write_text(json.dumps(plan))
    assert EmbeddingStore(out).table.num_rows == 14
    assert len(run(tiny_encoder, source, out)) == 14  # it was complete already
    write = {**BEFORE, "k99": (51, "one more")}
    tar_of(write, tmp_path / "data")
    store = run(tiny_encoder, source, out, update=True)
    assert store.manifest["update"] == {"new": 1, "changed": 14, "removed": 0, "kept": 0}
    assert_like_new(store, tiny_encoder, source, tmp_path / "new")


def test_a_new_field_is_named_and_gets_a_column_where_it_is_asked_for(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], embedded: list[str]
) -> None:
    table = table_of(BEFORE, tmp_path / "data")
    out = tmp_path / "store"
    command = ["embed", str(tiny_folder), str(table), str(out)]
    assert main(command) == 0
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},colour", *(f"{row},blue" for row in rows)]))
    embedded.clear()
    assert main([*command, "--update"]) == 0
    assert "no column is made of colour; --columns colour,year makes one" in capsys.readouterr().err
    assert "colour" not in EmbeddingStore(out).schema.names
    assert main([*command, "--update", "--columns", "colour,year"]) == 0
    assert embedded == []
    fresh = run(package.load(tiny_folder, device="cpu"), table, tmp_path / "new")
    assert EmbeddingStore(out).table.equals(fresh.table)
    assert main(["search", str(out), "red", "--where", "colour=blue"]) == 0
    table.write_text("\n".join([header, *rows]))
    assert main([*command, "--update"]) == 0
    assert "the source has no colour any more" in capsys.readouterr().err


def test_of_a_store_of_texts_pictures_do_not_count(
    tiny_encoder: Encoder, tmp_path: Path, embedded: list[str]
) -> None:
    source, out = folder_of(BEFORE, tmp_path / "data"), tmp_path / "store"
    run(tiny_encoder, source, out, images=False)
    noise_image(99).save(source / "k03.png")
    embedded.clear()
    store = run(tiny_encoder, source, out, images=False, update=True)
    assert embedded == []
    assert store.manifest["update"] == {"new": 0, "changed": 0, "removed": 0, "kept": 14}


def dying(renames: int, encoder: Encoder, source: Path, out: Path) -> bool:
    """Updates in a process of its own that dies by SIGKILL before one rename more. Whether it
    came to that."""
    child = os.fork()
    if not child:
        left, replace = [renames], Path.replace

        def counted(path: Path, target: Path) -> Path:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return replace(path, target)

        Path.replace = counted  # type: ignore[method-assign,assignment]
        try:
            run(encoder, source, out, update=True)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_kill_at_any_rename_leaves_a_whole_store_and_the_same_command_goes_on(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    source, whole = tmp_path / "data", tmp_path / "whole"
    few = dict([*BEFORE.items()][:6])
    folder_of(few, source)
    old = run(tiny_encoder, source, whole).table
    after = {"a": (50, "new"), **few}
    del after["k03"]
    folder_of(after, source)
    new = run(tiny_encoder, source, tmp_path / "new").table
    states = set()
    for renames in chain((0, 3), count(6)):
        out = tmp_path / f"after-{renames}"
        shutil.copytree(whole, out)
        killed = dying(renames, tiny_encoder, source, out)
        store = EmbeddingStore(out)  # whole, and verified by its hashes
        states.add((killed, store.table.equals(old)))
        assert store.table.equals(old) or store.table.equals(new)
        assert len(store.index().search_embeds(np.concatenate(store.image_embeds)[:1], 3)[0]) == 3
        store = run(tiny_encoder, source, out, update=True)
        assert store.table.equals(new)
        left = {path.name for path in out.iterdir()}
        assert left == {"manifest.json", "plan.json", *store.manifest["parts"]}
        if not killed:
            break
    assert states == {(True, True), (True, False), (False, False)}


@pytest.mark.slow
def test_a_killed_command_goes_on_and_keeps_the_parts_that_are_done(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    samples = [(png_bytes(noise_image(i)), f"number {i}") for i in range(600)]
    write_shard(tmp_path / "data/a.tar", samples[:50])
    out = tmp_path / "store"
    command = [
        *(sys.executable, "-m", "clipkit", "embed", str(model), str(tmp_path / "data"), str(out)),
        *("--batch-size", "10", "--part-rows", "10", "--precision", "fp32", "--update"),
    ]
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    write_shard(tmp_path / "data/b.tar", samples[50:])
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    while len([*(out / "update").glob("part-*.json")]) < 8 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len(EmbeddingStore(out)) == 50
    done = {path.name: path.stat().st_mtime_ns for path in (out / "update").glob("*.parquet")}
    assert done
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    store = EmbeddingStore(out)
    assert len(store) == 600
    assert store.manifest["update"] == {"new": 550, "changed": 0, "removed": 0, "kept": 50}
    for name, when in done.items():
        assert (out / name).stat().st_mtime_ns == when

"""``clipkit embed --overwrite``: what is removed, when, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
from itertools import count
from pathlib import Path

import pytest
import torch
from test_embed import contents, run
from tiny_model import noise_image, noise_shard, save_tiny_model, write_shard

import clipkit as package
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.retrieval.codes import build_codes
from clipkit.retrieval.parts import remove_store
from clipkit.retrieval.store import EmbeddingStore


def killed_while_removing(folder: Path, removals: int) -> bool:
    """Removes a store in a process of its own, which dies by SIGKILL before one removal more.
    Whether it came to that."""
    child = os.fork()
    if not child:
        done, unlink = count(), Path.unlink

        def dying(path: Path, missing_ok: bool = False) -> None:
            if next(done) == removals:
                os.kill(os.getpid(), signal.SIGKILL)
            unlink(path, missing_ok=missing_ok)

        Path.unlink = dying  # type: ignore[method-assign]
        try:
            remove_store(folder)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_store_is_removed_only_when_asked_for_and_nobody_works_there(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    run(tiny_encoder, shard, out)
    small = noise_shard(tmp_path / "b.tar", 2)
    with pytest.raises(CheckpointError, match="--overwrite"):
        run(tiny_encoder, small, out)
    with pytest.raises(DataError):
        run(tiny_encoder, tmp_path / "nowhere", out, overwrite=True)
    assert len(EmbeddingStore(out)) == 20
    assert len(run(tiny_encoder, small, out, overwrite=True)) == 2
    born = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    owner = {"host": os.uname().nodename, "pid": os.getpid(), "born": born}
    (out / "claim-00000").write_text(json.dumps(owner))
    with pytest.raises(CheckpointError, match=f"process {os.getpid()} on .* embeds into this"):
        run(tiny_encoder, small, out, overwrite=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="remove the folder first"):
        run(tiny_encoder, small, out, overwrite=True)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match="RANK 2 of WORLD_SIZE 2"):
        run(tiny_encoder, small, out)


def test_overwrite_takes_the_store_alone_and_only_for_one_that_can_be_made(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    store = run(tiny_encoder, shard, out)
    build_codes(store, "image", progress=False)
    (out / "index/letter.txt").write_text("dear")
    (out / "letter.txt").write_text("dear")
    (out / "part-list.json").write_text("mine")
    noise_image(0).save(out / "mine.png")
    inner = contents(run(tiny_encoder, shard, out / "inner").folder)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    bad = write_shard(tmp_path / "bad.tar", [(b"x", "cat")] * 20)
    broken = package.load(save_tiny_model(tmp_path / "broken"), device="cpu")
    with torch.no_grad():
        broken.model.get_parameter("backbone.visual_projection.weight").fill_(torch.nan)
    for encoder, source, options, error, match in (
        (tiny_encoder, shard, {"columns": ["nosuch"]}, ConfigError, "nosuch"),
        (tiny_encoder, bad, {}, DataError, r"none of 20 samples can be used \(the first: .*bad"),
        (tiny_encoder, out, {}, ConfigError, "--overwrite: .* lies in .*store"),
        (tiny_encoder, out / "mine.png", {}, ConfigError, "--overwrite: .*mine.png lies in"),
        (broken, shard, {}, CheckpointError, "not finite"),
    ):
        with pytest.raises(error, match=match):
            run(encoder, source, out, overwrite=True, **options)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert len(run(tiny_encoder, noise_shard(tmp_path / "b.tar", 2), out, overwrite=True)) == 2
    assert {path.name for path in out.iterdir()} == {
        *("manifest.json", "plan.json", "items-00000.parquet", "image_embeds-00000.npy"),
        *("text_embeds-00000.npy", "index", "inner", "letter.txt", "part-list.json", "mine.png"),
    }
    assert [path.name for path in (out / "index").iterdir()] == ["letter.txt"]
    assert contents(out / "inner") == inner


@pytest.mark.parametrize("text", ["", '{"format": "clipkit-emb'])
def test_overwrite_mends_a_store_with_a_broken_manifest_as_the_error_says(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path, text: str
) -> None:
    out = tmp_path / "store"
    run(tiny_encoder, shard, out)
    (out / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest.json: cannot be read, .*--overwrite"):
        run(tiny_encoder, shard, out)
    assert len(run(tiny_encoder, shard, out, overwrite=True)) == 20


def test_a_kill_while_a_store_is_removed_leaves_what_the_same_command_goes_on_with(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    source, other = noise_shard(tmp_path / "a.tar", 9), noise_shard(tmp_path / "b.tar", 6)
    whole = tmp_path / "whole"
    build_codes(run(tiny_encoder, source, whole), "image", progress=False)
    (whole / "letter.txt").write_text("dear")
    new = contents(run(tiny_encoder, other, tmp_path / "new").folder)
    for removals in count():
        out = tmp_path / f"after-{removals}"
        shutil.copytree(whole, out)
        if not killed_while_removing(out, removals):
            break
        if removals:  # the first thing to go is the manifest: a part of a store is never opened
            with pytest.raises(CheckpointError, match="unfinished, 0 of 3 parts"):
                EmbeddingStore(out)
        else:
            assert len(EmbeddingStore(out)) == 9
        assert len(run(tiny_encoder, other, out, overwrite=True)) == 6
        assert (out / "letter.txt").read_text() == "dear"
        found = {name: data for name, data in flat(out).items() if name != "letter.txt"}
        assert found == new
    assert removals > 10
    assert set(flat(out)) == {"letter.txt"}


def flat(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }

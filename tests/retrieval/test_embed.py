"""``clipkit embed`` as a job: parts, ranks, kills, and what is refused.

The long form (CLIPKIT_MATRIX=full, by scripts/test_long.sh) embeds 200,000 images killed ten
times with 1, 2 and 4 ranks, and writes a store of 4 GB.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import ENVIRONMENT, ROOT, Run
from tiny_model import noise_image, noise_shard, png_bytes, save_tiny_model, write_shard

import clipkit as package
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.models.precision import Choice
from clipkit.models.products import has_int8_products
from clipkit.retrieval.embed import embed
from clipkit.retrieval.page import reader_of
from clipkit.retrieval.store import EmbeddingStore

FULL = os.environ.get("CLIPKIT_MATRIX") == "full"


def run(encoder: Encoder, source: Path, out: Path, **options: Any) -> EmbeddingStore:
    options = {"precision": "fp32", "batch_size": 4, "part_rows": 4, **options}
    return embed(encoder, str(source), out, progress=False, **options)


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.iterdir())}


def unfinish(store: Path) -> None:
    """A store of parts of 4 rows as it was the moment before its manifest was written."""
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").unlink()
    for number in range(manifest["rows"] // 4):
        names = [name for name in manifest["parts"] if f"-{number:05d}." in name]
        record = {
            "rows": 4, "skipped": {}, "example": None, "truncated": 0, "replaced": 0, "unfit": {},
            "files": {name: manifest["parts"][name] for name in names},
        }  # fmt: skip
        (store / f"part-{number:05d}.json").write_text(json.dumps(record))


def flip(path: Path) -> None:
    """One bit, in the last byte."""
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


class Ranks:
    """The real command, once a rank, started by hand: no launcher ends them together."""

    def __init__(self, count: int, *arguments: object, log: Path, env: dict[str, str]) -> None:
        self.log = log
        self.processes = []
        for rank in range(count):
            environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", **env}
            if count > 1:
                environment |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
            with log.open("a") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "clipkit", "embed", *map(str, arguments)],
                        cwd=ROOT, env=environment, stdout=file, stderr=file,
                    )
                )  # fmt: skip

    def wait(self) -> list[int]:
        return [process.wait(timeout=3000) for process in self.processes]


def wait_for(condition: Any, said: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.005)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model, a source, and the store of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("large")
    model = save_tiny_model(folder / "model")
    samples = [(png_bytes(noise_image(i)), f"number {i}") for i in range(500)]
    samples[77] = (b"broken", "number 77")
    for number in range(400 if FULL else 4):
        write_shard(folder / f"data/{number:03d}.tar", samples)
    ranks = Ranks(1, *command(model, folder / "data", folder / "whole"), log=folder / "log", env={})
    assert ranks.wait() == [0], ranks.log.read_text()
    return model, folder / "data", folder / "whole"


def command(model: Path, data: Path, out: Path) -> list[object]:
    sizes = ["--batch-size", 250, "--part-rows", 2000] if FULL else ["--batch-size", 50]
    return [model, data, out, *sizes, "--workers", 1]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 4] if FULL else [2])
def test_the_store_after_random_kills_is_that_of_an_uninterrupted_run(
    large: tuple[Path, Path, Path], tmp_path: Path, ranks: int
) -> None:
    model, data, whole = large
    out, log = tmp_path / "store", tmp_path / "log"
    draw = random.Random(ranks)
    parts = json.loads((whole / "plan.json").read_text())
    total = -(-parts["rows"] // parts["part_rows"])
    kills = 10 if FULL else 2
    for kill in range(kills):
        job = Ranks(ranks, *command(model, data, out), log=log, env={})
        before = len(list(out.glob("part-*.json")))
        wanted = before + draw.randint(0, max(1, (total - before) // (kills - kill + 1)))
        wait_for(
            lambda wanted=wanted: (
                len(list(out.glob("part-*.json"))) >= wanted and any(out.glob("claim-*"))
            ),
            log,
        )
        time.sleep(draw.random() * 0.2)
        # One dies, or all; those that live do its part, and then they die too.
        for process in draw.sample(job.processes, draw.randint(1, ranks)):
            process.kill()
        if draw.random() < 0.5:
            time.sleep(draw.random())
        for process in job.processes:
            process.kill()
            process.wait()
        assert not (out / "manifest.json").exists(), log.read_text()
        with pytest.raises(CheckpointError, match=rf"unfinished, \d+ of {total} parts are done"):
            EmbeddingStore(out)
    last = Ranks(ranks, *command(model, data, out), log=log, env={})
    assert last.wait() == [0] * ranks, log.read_text()
    assert contents(out) == contents(whole)
    rows = EmbeddingStore(out).table["source_row"].to_pylist()
    broken = {77 + 500 * i for i in range(parts["rows"] // 500)}
    assert rows == [row for row in range(parts["rows"]) if row not in broken]


@pytest.mark.slow
def test_a_rank_that_dies_costs_one_part_and_the_others_make_it(
    large: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, data, whole = large
    out, log = tmp_path / "store", tmp_path / "log"
    job = Ranks(2, *command(model, data, out), log=log, env={})
    wait_for(lambda: any(out.glob("claim-*")), log)
    os.kill(job.processes[1].pid, signal.SIGSTOP)  # alive, and it does nothing
    first, second = job.processes
    wait_for(lambda: len(list(out.glob("part-*.json"))) >= 2, log)
    second.kill()
    assert first.wait(timeout=300) == 0, log.read_text()
    assert contents(out) == contents(whole)


@pytest.mark.slow
def test_torchrun_shares_the_parts_and_sigterm_ends_with_a_word(
    clipkit: Run, large: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, data, whole = large
    out, log = tmp_path / "store", tmp_path / "log"
    job = Ranks(1, *command(model, data, out), log=log, env={})
    wait_for(lambda: any(out.glob("part-*.json")), log)
    job.processes[0].terminate()
    assert job.wait() == [75]
    assert "stopped by SIGTERM" in log.read_text()
    assert "run the same command again" in log.read_text()
    assert not list(out.glob("claim-*"))
    done = clipkit("embed", *command(model, data, out), ranks=2, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("numbers each") == 1
    assert contents(out) == contents(whole)
    again = clipkit("embed", *command(model, data, out))
    assert (again.returncode, "it was complete already" in again.stderr) == (0, True)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(
    clipkit: Run, large: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, data, whole = large
    out = tmp_path / "store"
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000)); "
        "from clipkit.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [sys.executable, "-c", code, "embed", *map(str, command(model, data, out))]
    arguments += ["--workers", "0"]  # they would need shared memory
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    full = subprocess.run(arguments, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert full.returncode == 4, full.stderr
    assert (
        "cannot be written (File too large); make room, and the same command goes on"
        in (full.stderr.splitlines()[-1])
    )
    assert {path.name for path in out.iterdir()} == {"plan.json"}
    assert clipkit("embed", *command(model, data, out)).returncode == 0
    assert contents(out) == contents(whole)


def test_a_part_that_was_cut_or_lost_is_made_again(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    out, whole = tmp_path / "store", tmp_path / "whole"
    run(tiny_encoder, shard, whole)
    run(tiny_encoder, shard, out)
    unfinish(out)
    (out / "text_embeds-00001.npy").write_bytes(b"cut")
    (out / "items-00002.parquet").unlink()
    (out / "part-00003.json").write_text("{")
    (out / "claim-00004").write_text('{"host": "elsewhere", "pid": 1, "born": "1"}')
    os.utime(out / "claim-00004", (0, 0))
    with pytest.raises(CheckpointError, match="unfinished, 2 of 5 parts are done"):
        EmbeddingStore(out)
    run(tiny_encoder, shard, out)
    assert contents(out) == contents(whole)
    unfinish(out)
    (out / "part-00003.json").write_text('{"files": {}}')
    with pytest.raises(CheckpointError, match="unfinished, 4 of 5 parts are done"):
        EmbeddingStore(out)
    run(tiny_encoder, shard, out)
    assert contents(out) == contents(whole)


def test_a_part_that_was_damaged_since_is_made_again_and_named(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, whole = tmp_path / "store", tmp_path / "whole"
    run(tiny_encoder, shard, whole)
    run(tiny_encoder, shard, out)
    unfinish(out)
    flip(out / "image_embeds-00001.npy")
    (out / "part-00003.json").unlink()
    run(tiny_encoder, shard, out)
    assert contents(out) == contents(whole)
    assert capsys.readouterr().err.count("was damaged") == 1
    unfinish(out)
    flip(out / "items-00002.parquet")
    run(tiny_encoder, shard, out)  # nothing else is missing
    assert contents(out) == contents(whole)
    assert "part 2 was damaged, and is made again" in capsys.readouterr().err


def test_a_text_that_changed_in_place_is_another_source(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    noise_image(0).save(photos / "0.png")
    (photos / "0.txt").write_text("cat")
    (tmp_path / "a.txt").write_text("cat\nbird\n")
    (tmp_path / "a.csv").write_text("image,text,year\nphotos/0.png,cat,1999\n")
    sources = {"folder": photos, "lines": tmp_path / "a.txt", "table": tmp_path / "a.csv"}
    for name, source in sources.items():
        store = run(tiny_encoder, source, tmp_path / name)
        assert reader_of(store)[1] is None
        (tmp_path / "there").mkdir()
        for each in (photos, tmp_path / "a.txt", tmp_path / "a.csv"):  # copied, it is the same
            copy = shutil.copytree if each.is_dir() else shutil.copyfile
            copy(each, tmp_path / "there" / each.name)
        run(tiny_encoder, tmp_path / "there" / source.name, tmp_path / name)
        shutil.rmtree(tmp_path / "there")
        for path in (photos / "0.txt", tmp_path / "a.txt", tmp_path / "a.csv"):
            path.write_text(path.read_text().replace("cat", "dog").replace("1999", "1998"))
        with pytest.raises(CheckpointError, match="the source has changed since, or is another"):
            run(tiny_encoder, source, tmp_path / name)
        assert "has changed" in str(reader_of(store)[1])
        for path in (photos / "0.txt", tmp_path / "a.txt", tmp_path / "a.csv"):
            path.write_text(path.read_text().replace("dog", "cat").replace("1998", "1999"))
        plan = json.loads((tmp_path / name / "plan.json").read_text())
        del plan["source_texts_sha256"]  # as an older clipkit wrote it
        (tmp_path / name / "plan.json").write_text(json.dumps(plan))
        assert len(run(tiny_encoder, source, tmp_path / name)) == len(store)


def test_vectors_that_are_not_finite_are_refused(shard: Path, tmp_path: Path) -> None:
    encoder = package.load(save_tiny_model(tmp_path / "model"), device="cpu")
    with torch.no_grad():
        encoder.model.get_parameter("backbone.visual_projection.weight").fill_(torch.nan)
    for precision in ("fp32", "bf16"):
        with pytest.raises(CheckpointError, match=r"image embeddings are not finite .*00000"):
            run(encoder, shard, tmp_path / precision, precision=precision)
        assert not (tmp_path / precision / "manifest.json").exists()
    assert len(run(encoder, shard, tmp_path / "texts", images=False)) == 20


@pytest.mark.skipif(not has_int8_products(), reason="this CPU has no int8 products")
def test_int8_is_refused_where_it_would_move_the_vectors(
    shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = package.load(save_tiny_model(tmp_path / "model"), device="cpu")
    options: dict[str, Any] = {"precision": "int8"}
    run(encoder, shard, tmp_path / "good", **options)
    # As in large trained models: one number of a token outgrows those that matter.
    layer = encoder.model.get_submodule("backbone.vision_model.encoder.layers.0")
    with torch.no_grad():
        layer.get_parameter("layer_norm2.bias")[3] = 900
        layer.get_parameter("mlp.fc1.weight")[:, 3] = 0
        layer.get_parameter("mlp.fc2.weight").mul_(1_000)
    with pytest.raises(
        ConfigError, match=r"int8: .* a cosine of -?0\.\d+ .* less than 0.999; take"
    ):
        run(encoder, shard, tmp_path / "moved", **options)
    assert not (tmp_path / "moved").exists()
    # However many samples of a source come before one to measure with.
    broken: list[tuple[bytes, str | None]] = [(b"x", "cat")] * 520
    good = png_bytes(noise_image(0)), "dog"
    late = write_shard(tmp_path / "late.tar", [*broken, good])
    with pytest.raises(ConfigError, match=r"less than 0\.999; take"):
        run(encoder, late, tmp_path / "late", **options)
    # Nor is a store gone on with that was begun where it could be.
    (tmp_path / "good/manifest.json").unlink()
    monkeypatch.setattr("clipkit.encoder.has_int8_products", lambda: False)
    encoder = package.load(tmp_path / "model", device="cpu")
    match = r"good: this store was begun in int8, and this CPU .*; go on where it can be, or"
    with pytest.raises(CheckpointError, match=match):
        run(encoder, shard, tmp_path / "good", precision="auto")
    with pytest.raises(ConfigError, match="int8: this CPU has no fast products"):
        run(encoder, shard, tmp_path / "new", **options)


def test_what_differs_from_the_plan_is_named(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    out = tmp_path / "store"
    run(tiny_encoder, shard, out)
    for finished in (True, False):
        if not finished:
            (out / "manifest.json").unlink()
        for options, match in (
            ({"dtype": "float16"}, "dtype was float32 and is float16"),
            (
                {"texts": False},
                "source.caption was None and is none; .*texts was True and is False",
            ),
            ({"batch_size": 5}, "batch_size was 4 and is 5"),
            ({"part_rows": 8}, "part_rows was 4 and is 8"),
            ({"precision": "bf16"}, "precision was fp32 and is bf16"),
            ({"max_image_pixels": 9}, "max_image_pixels was 64000000 and is 9"),
        ):
            with pytest.raises(CheckpointError, match=match):
                run(tiny_encoder, shard, out, **options)
        other = package.load(save_tiny_model(tmp_path / "other", seed=1), device="cpu")
        with pytest.raises(CheckpointError, match=r"weights_sha256 was \w{12} and is \w{12}[;)]"):
            run(other, shard, out)
        noise_shard(tmp_path / "b.tar", 21)
        with pytest.raises(CheckpointError, match="the source has changed since, or is another"):
            run(tiny_encoder, tmp_path / "b.tar", out)
    good = json.loads((out / "plan.json").read_text())
    for broken in (
        {"source": {}},
        {"dtype": "x"},
        {"precision": []},
        {"rows": True},
        {"columns": {"a": "list"}},
    ):
        (out / "plan.json").write_text(json.dumps({**good, **broken}))
        with pytest.raises(CheckpointError, match="broken"):
            run(tiny_encoder, shard, out)
    (out / "plan.json").write_text('{"format": "clipkit-embeddings-plan", "version": 9}')
    with pytest.raises(CheckpointError, match="version 9 of the format"):
        run(tiny_encoder, shard, out)
    (out / "plan.json").write_text('{"format": "clipkit-embeddings-plan", "version": 2}')
    with pytest.raises(CheckpointError, match="broken"):
        run(tiny_encoder, shard, out)


def test_a_folder_that_is_something_else_or_cannot_be_written_is_left_alone(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    for overwrite in (True, False):
        with pytest.raises(CheckpointError, match="is no store"):
            run(tiny_encoder, shard, mine, overwrite=overwrite)
        with pytest.raises(CheckpointError, match="is no store"):
            run(tiny_encoder, shard, shard, overwrite=overwrite)
    assert (mine / "letter.txt").read_text() == "dear"
    with pytest.raises(CheckpointError, match="cannot be written"):
        run(tiny_encoder, shard, shard / "store")
    (tmp_path / "link").symlink_to("disk")  # which is not there yet
    assert len(run(tiny_encoder, shard, tmp_path / "link")) == 20
    assert (tmp_path / "link").is_symlink()


def test_a_store_inside_its_source_is_no_part_of_it(tiny_encoder: Encoder, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(9):
        noise_image(i).save(photos / f"{i}.png")
    out = photos / "store"
    assert len(run(tiny_encoder, photos, out)) == 9
    (out / "manifest.json").unlink()
    for path in out.glob("*0001*"):
        path.unlink()
    assert len(run(tiny_encoder, photos, out)) == 9


def test_nothing_usable_is_said_and_leaves_nothing(tiny_encoder: Encoder, tmp_path: Path) -> None:
    bad = write_shard(tmp_path / "bad.tar", [(b"x", "cat")] * 9)
    with pytest.raises(DataError, match=r"none of 9 samples can be used \(the first: .*bad.tar"):
        run(tiny_encoder, bad, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    mine = tmp_path / "mine"
    (mine / ".git").mkdir(parents=True)
    (mine / ".env").write_text("precious")
    with pytest.raises(DataError, match="none of 9"):
        run(tiny_encoder, bad, mine)
    assert sorted(path.name for path in mine.iterdir()) == [".env", ".git"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of 9"):
        run(tiny_encoder, bad, tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()
    # A part of which nothing can be used has no files, and the others do not move.
    some = write_shard(
        tmp_path / "some.tar",
        [(b"x" if i in range(4, 8) else png_bytes(noise_image(i)), "cat") for i in range(12)],
    )
    store = run(tiny_encoder, some, tmp_path / "store")
    assert [len(part) for part in store.image_embeds] == [4, 4]
    assert store.items([4])["source_row"].to_pylist() == [8]
    assert not list((tmp_path / "store").glob("*00001*"))


def test_a_model_that_changes_meanwhile_is_refused(shard: Path, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", seed=0)
    encoder = package.load(folder, device="cpu")
    encode = encoder.encode_batches

    def encode_late(*arguments: Any, **options: Any) -> Any:
        save_tiny_model(folder, seed=1)
        return encode(*arguments, **options)

    encoder.encode_batches = encode_late  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="has changed since it was loaded"):
        run(encoder, shard, tmp_path / "store")
    assert not (tmp_path / "store/manifest.json").exists()


@pytest.mark.long
def test_a_store_of_4_gb_is_written_in_the_memory_of_a_part(tmp_path: Path) -> None:
    code = (ROOT / "tests/retrieval/write_large.py").read_text()
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    grown = json.loads(result.stdout)
    assert grown["bytes"] > 4e9
    assert grown["anonymous_mib"] < 300, grown
    shutil.rmtree(tmp_path / "store")


def test_slow_bf16_is_taken_where_it_is_asked_for_and_told(
    tiny_encoder: Encoder,
    shard: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("clipkit.retrieval.precision.measure_speed", lambda *_: 1 / 8)
    store = embed(tiny_encoder, str(shard), tmp_path / "store", precision="bf16", workers=0)
    assert store.manifest["precision"] == "bf16"
    told = "--precision bf16 is measured 8 times slower than float32 here; fp32 or auto is faster"
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("fastest", ["fp32", "bf16", "fp16"])
def test_auto_embeds_in_what_is_measured_to_be_fastest(
    tiny_encoder: Encoder,
    shard: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fastest: str,
) -> None:
    monkeypatch.setattr(
        "clipkit.retrieval.precision.fastest_precision", lambda *_, **__: Choice(fastest)
    )
    store = run(tiny_encoder, shard, tmp_path / "store", precision="auto", workers=0)
    assert store.manifest["precision"] == fastest
    assert all(cosine >= 0.999 for cosine in store.manifest["cosines"].values())

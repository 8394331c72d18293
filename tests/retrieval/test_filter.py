"""``clipkit data filter`` through the command line: the list, and who takes it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Run
from PIL import Image
from tiny_model import noise_image, png_bytes, write_shard

from clipkit.cli import main
from clipkit.config.schema import FilterConfig, SourceConfig
from clipkit.data import open_source
from clipkit.encoder import Encoder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def _soft(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    return noise_image(seed, (8, 8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """0 … 5 differ; 6 is 0 again, with its caption; 7 is 1 made smaller; 8 is broken; 9 has a long
    caption."""
    images = [png_bytes(_soft(seed)) for seed in range(6)]
    images += [images[0], png_bytes(_soft(1).resize((80, 60))), images[2][:99], png_bytes(_soft(9))]
    captions = [f"picture {i % 6}" for i in range(9)] + ["a very long caption indeed"]
    return write_shard(tmp_path / "set" / "a.tar", list(zip(images, captions, strict=True)))


def run_filter(*arguments: object) -> int:
    return main(["data", "filter", *map(str, arguments)])


def listed(path: Path) -> tuple[list[int], dict[str, Any]]:
    table = pq.read_table(path)
    return table["row"].to_pylist(), json.loads(table.schema.metadata[b"clipkit"])


@pytest.mark.parametrize(
    ("options", "rows", "dropped"),
    [
        (("--min-edge", 100), [0, 1, 2, 3, 4, 5, 6, 8, 9], {"filtered: image too small": 1}),
        (("--max-caption", 10), list(range(9)), {"filtered: caption too long": 1}),
        (("--duplicates", "exact"), [0, 1, 2, 3, 4, 5, 7, 8, 9], {"exact duplicate": 1}),
        (
            ("--duplicates", "near", "--max-caption", 10),
            [0, 1, 2, 3, 4, 5],
            {
                "filtered: caption too long": 1,
                "exact duplicate": 1,
                "near duplicate": 1,
                "truncated image": 1,
            },
        ),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_list_holds_what_stays(
    shard: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    rows: list[int],
    dropped: dict[str, int],
    workers: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "lists" / "kept.parquet"
    assert run_filter(shard, out, *options, "--workers", workers) == 0
    found, about = listed(out)
    assert found == rows
    assert about["dropped"] == dropped
    assert about["samples"] == 10
    assert about["kept"] == len(rows)
    printed = capsys.readouterr().out
    for reason, number in dropped.items():
        assert any(
            line.startswith(reason) and f" {number} " in line for line in printed.splitlines()
        )
    assert f"{len(rows)} of 10 samples" in printed

    source = SourceConfig(path=str(shard), filter=FilterConfig(list=str(out)))
    reader = open_source(source, progress=False)
    assert [reader[i].key for i in range(len(reader)) if rows[i] != 8] == [
        f"{row:05d}" for row in rows if row != 8
    ]
    assert reader.dropped == {"filtered: not in the list": 10 - len(rows)}


def scores_of(shard: Path, encoder: Encoder) -> np.ndarray:
    """The brute-force way: one pair after the other; what cannot be read is -2."""
    reader = open_source(SourceConfig(path=str(shard)), progress=False)
    scores = []
    for row in range(len(reader)):
        pair = reader[row]
        assert pair.image is not None
        assert pair.caption is not None
        try:
            image = Image.open(io.BytesIO(pair.image)).convert("RGB")
        except OSError:
            scores.append(-2.0)
            continue
        of_image = encoder.encode_image([image])
        scores.append(float((of_image * encoder.encode_text([pair.caption])).sum()))
    return np.array(scores)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_the_best_share_by_a_models_score_stays(
    shard: Path,
    tmp_path: Path,
    tiny_folder: Path,
    tiny_encoder: Encoder,
    share: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = scores_of(shard, tiny_encoder)
    out = tmp_path / "best.parquet"
    assert run_filter(shard, out, "--model", tiny_folder, "--keep", share, "--workers", 0) == 0
    number = {0.3: 3, 1.0: 9}[share]  # of the 9 that can be read, rounded up
    best = sorted(np.argsort(-scores, kind="stable")[:number].tolist())
    rows, about = listed(out)
    assert rows == best
    np.testing.assert_allclose(pq.read_table(out)["score"].to_numpy(), scores[best], atol=1e-5)
    assert about["threshold"] == pytest.approx(scores[best].min(), abs=1e-5)
    assert about["conditions"] == {"clip_keep": share}
    assert about["model"]["weights_sha256"]
    assert f"kept from {scores[best].min():.3f}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["exact", "near", "embedding"])
def test_several_captions_of_an_image_stay_or_go_together(
    kind: str, tmp_path: Path, tiny_folder: Path
) -> None:
    one, two = (png_bytes(_soft(seed)) for seed in (0, 1))
    small = png_bytes(_soft(0).resize((80, 60)))  # looks like the first
    samples = [(image, f"{word} {k}") for k in range(5)
               for image, word in ((one, "one"), (two, "two"), (small, "small"))]  # fmt: skip
    path = write_shard(tmp_path / "a.tar", [*samples, (one, "one 3")])
    out = tmp_path / "kept.parquet"
    asked = ("--model", tiny_folder, "--similarity", 0.999) if kind == "embedding" else ()
    assert run_filter(path, out, "--duplicates", kind, *asked, "--workers", 0) == 0
    rows, about = listed(out)
    near = {"near": "near duplicate", "embedding": "duplicate to the model"}.get(kind)
    assert rows == [row for row in range(15) if near is None or row % 3 != 2]
    assert about["dropped"] == {"exact duplicate": 1, **({near: 5} if near else {})}


def test_the_models_duplicates_go_before_the_share_is_taken(
    shard: Path, tmp_path: Path, tiny_folder: Path, tiny_encoder: Encoder
) -> None:
    scores = scores_of(shard, tiny_encoder)
    reader = open_source(SourceConfig(path=str(shard)), progress=False)
    images = {row: reader[row].image for row in range(10) if row != 8}
    embeds = dict(zip(images, tiny_encoder.encode_image(list(images.values())), strict=True))
    staying: list[int] = []
    for row, embed in embeds.items():
        if all(embed @ embeds[other] < 0.99 for other in staying):
            staying.append(row)
    assert 6 not in staying
    assert 2 < len(staying) < 9
    best = sorted(sorted(staying, key=lambda row: -scores[row])[: -(-len(staying) // 2)])

    out = tmp_path / "out.parquet"
    asked = ("--model", tiny_folder, "--duplicates", "embedding", "--similarity", 0.99)
    assert run_filter(shard, out, *asked, "--keep", 0.5, "--workers", 0) == 0
    rows, about = listed(out)
    assert rows == best
    assert about["dropped"] == {
        "exact duplicate": 1,
        "duplicate to the model": 8 - len(staying),
        "score too low": len(staying) - len(best),
        "truncated image": 1,
    }
    least = sum(sorted(scores)[4:6]) / 2  # between two, as the last bits depend on the batch
    asked = ("--model", tiny_folder, "--min-score", least, "--overwrite")
    assert run_filter(shard, out, *asked, "--workers", 2) == 0
    assert listed(out)[0] == [row for row in range(10) if scores[row] >= least]


def _members(folder: Path) -> list[str]:
    reader = open_source(SourceConfig(path=str(folder)), progress=False)
    return [str(reader[row].caption) for row in range(len(reader))]


def test_shards_are_made_from_a_list(shard: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert run_filter(shard, out, "--duplicates", "near", "--workers", 0) == 0
    packed = tmp_path / "packed"
    assert (
        main(["data", "pack", str(shard), str(packed), "--list", str(out), "--workers", "0"]) == 0
    )
    assert _members(packed) == [f"picture {i}" for i in range(6)] + ["a very long caption indeed"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "nothing is asked for"),
        (("--keep", 0.3), 2, "--model"),
        (("--duplicates", "embedding"), 2, "--model"),
        (("--min-caption", 9, "--max-caption", 3), 2, "--min-caption 9"),
        (("--min-edge", 0), 2, "--min-edge"),
        (("--max-aspect", 0.5), 2, "--max-aspect"),
        (("--max-aspect", "nan"), 2, "--max-aspect"),
        (("--min-edge", 9000), 3, "10 × filtered: image too small"),
        (("--duplicates", "near", "--near-bits", 99), 2, "--near-bits"),
        (("--model", "nowhere", "--keep", 0.5), 4, "nowhere"),
        (("--model", "nowhere", "--keep", 1.5), 2, "--keep"),
        (("--model", "nowhere", "--keep", "nan"), 2, "--keep"),
        (("--model", "nowhere", "--min-score", 28), 2, "--min-score"),
    ],
)
def test_what_cannot_be_done_is_refused(
    shard: Path,
    tmp_path: Path,
    options: tuple[object, ...],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.parquet"
    try:
        found = run_filter(shard, out, *options, "--workers", 0)
    except SystemExit as left:  # argparse's own
        found = int(left.code or 0)
    assert found == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not out.exists()


def test_a_list_that_is_there_stays_unless_asked(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.parquet"
    out.write_bytes(b"mine")
    assert run_filter(shard, out, "--min-edge", 100, "--workers", 0) == 4
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert run_filter(shard, out, "--min-edge", 100, "--workers", 0, "--overwrite") == 0
    assert listed(out)[0]
    assert run_filter(shard, tmp_path / "out.csv", "--min-edge", 100) == 2
    assert ".parquet" in capsys.readouterr().err


def test_a_list_of_something_else_is_refused(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out.parquet", tmp_path / "other.tar"
    assert run_filter(shard, out, "--min-edge", 100, "--workers", 0) == 0
    write_shard(other, [(png_bytes(_soft(1)), "other")])

    def refused(source: Path, path: Path, said: str) -> None:
        packed = tmp_path / "packed"
        arguments = ["data", "pack", str(source), str(packed), "--list", str(path)]
        assert main([*arguments, "--workers", "0"]) == 3
        error = capsys.readouterr().err
        assert str(path) in error
        assert said in error
        shutil.rmtree(packed, ignore_errors=True)

    refused(other, out, "other samples")
    refused(shard, tmp_path / "missing.parquet", "cannot be read")
    refused(shard, tmp_path, "cannot be read")
    (tmp_path / "text.parquet").write_text("not a table")
    refused(shard, tmp_path / "text.parquet", "is not a list")
    pq.write_table(pq.read_table(out).replace_schema_metadata({}), tmp_path / "bare.parquet")
    refused(shard, tmp_path / "bare.parquet", "is not a list")
    table = pq.read_table(out)
    for rows in (["1"] * len(table), [1.5] * len(table), [None] * len(table)):
        pq.write_table(table.set_column(0, "row", [rows]), tmp_path / "odd.parquet")
        refused(shard, tmp_path / "odd.parquet", "is not a list")
    pq.write_table(table.take(list(range(len(table)))[::-1]), tmp_path / "turned.parquet")
    refused(shard, tmp_path / "turned.parquet", "damaged")


def test_training_takes_a_list_and_a_resume_refuses_a_changed_one(
    clipkit: Run, shard: Path, tmp_path: Path
) -> None:
    pairs = [(png_bytes(_soft(i)), f"number {i} {'x' * (i % 9)}") for i in range(64)]
    shard = write_shard(tmp_path / "many.tar", pairs)
    out = tmp_path / "out.parquet"
    assert run_filter(shard, out, "--max-caption", 14, "--workers", 0) == 0
    rows, _ = listed(out)
    tower = {"width": 32, "layers": 1, "heads": 2}
    config = {
        "output": str(tmp_path / "run"),
        "data": {"train": {"path": str(shard), "filter": {"list": str(out)}}, "workers": 0},
        "preprocess": {"image_size": 16, "context_length": 16, "vocab_size": 600},
        "model": {"embed_dim": 24, "vision": {**tower, "patch_size": 8}, "text": tower},
        "train": {"batch_size": 16, "steps": 2, "save_every": 1, "precision": "fp32"},
    }
    page = tmp_path / "config.yaml"
    page.write_text(json.dumps(config))  # YAML holds JSON
    dry = clipkit("train", page, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert str(len(rows)) in dry.stdout + dry.stderr
    trained = clipkit("train", page)
    assert trained.returncode == 0, trained.stderr
    said = " ".join(trained.stderr.split())  # in lines of a hundred columns
    assert f"left out {64 - len(rows)}: {64 - len(rows)} filtered: not in the list" in said

    assert run_filter(shard, out, "--max-caption", 13, "--workers", 0, "--overwrite") == 0
    refused = clipkit("train", page, "train.steps=4", "--allow-change", "train.steps")
    assert refused.returncode == 4, refused.stderr
    assert f"{shard}: these are not the samples that" in refused.stderr


def test_a_damaged_shard_is_named_and_the_rest_is_listed(
    shard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size * 2 // 3])
    out = tmp_path / "out.parquet"
    assert run_filter(shard, out, "--duplicates", "near", "--workers", 0) == 0
    assert str(shard) in capsys.readouterr().err
    rows, _ = listed(out)
    assert 0 < len(rows) < 8

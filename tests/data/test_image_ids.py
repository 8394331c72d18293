"""image_ids: rows whose image files have the same content have the same number, in any source."""

from __future__ import annotations

import csv
import io
import json
import os
import tarfile
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
from command_line import Run
from PIL import Image
from sample_files import encoded, photo

from clipkit.config.schema import SourceConfig
from clipkit.data import MixtureReader, Reader, hold_back, open_source

# Four images for seven rows; the numbers in order of first appearance.
SHOWN = [0, 1, 0, 2, 1, 3, 0]


def image(number: int) -> bytes:
    return encoded(photo(24 + number, 24), "JPEG")


def make(kind: str, folder: Path, shown: list[int] = SHOWN) -> str:
    """A source whose row i shows image ``shown[i]``, as a file or member of its own."""
    folder.mkdir(exist_ok=True)
    if kind == "tar":
        with tarfile.open(folder / "x.tar", "w") as tar:
            for row, number in enumerate(shown):
                for name, data in ((f"{row}.jpg", image(number)), (f"{row}.txt", b"row %d" % row)):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        return str(folder / "x.tar")
    if kind in ("parquet", "saved", "paths in parquet"):
        rows = []
        for row, number in enumerate(shown):
            (folder / f"{row}.jpg").write_bytes(image(number))
            as_path = kind == "paths in parquet" or (kind == "saved" and row == 2)
            struct = {
                "bytes": None if as_path else image(number),
                "path": str(folder / f"{row}.jpg"),
            }
            as_text = kind == "paths in parquet"
            rows.append({"image": f"{row}.jpg" if as_text else struct, "caption": f"row {row}"})
        feature = datasets.Value("string") if kind == "paths in parquet" else datasets.Image()
        features = datasets.Features({"image": feature, "caption": datasets.Value("string")})
        made = datasets.Dataset.from_list(rows, features=features)
        if kind == "saved":
            made.save_to_disk(str(folder / "saved"))
            return str(folder / "saved")
        made.to_parquet(str(folder / "x.parquet"))
        return str(folder / "x.parquet")
    names = [f"{row}.jpg" for row in range(len(shown))]
    for name, number in zip(names, shown, strict=True):
        (folder / name).write_bytes(image(number))
    if kind == "folder":
        for name in names:
            (folder / name).with_suffix(".txt").write_text(f"of {name}")
        return str(folder)
    if kind == "links":
        (folder / "6.jpg").unlink()
        os.link(folder / "0.jpg", folder / "6.jpg")
        (folder / "4.jpg").unlink()
        (folder / "4.jpg").symlink_to("1.jpg")
    with (folder / "x.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((n, f"of {n}") for n in names)])
    return str(folder / "x.csv")


def opened(path: str) -> Reader:
    return open_source(SourceConfig(path=path), progress=False)


KINDS = ["tar", "parquet", "saved", "paths in parquet", "folder", "table", "links"]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_an_image_have_one_number(tmp_path: Path, kind: str) -> None:
    ids = opened(make(kind, tmp_path / "made")).image_ids()
    assert ids is not None
    assert ids.tolist() == SHOWN


@pytest.mark.parametrize("kind", KINDS)
def test_holdout_never_has_one_image_on_both_sides(tmp_path: Path, kind: str) -> None:
    shown = [row % 20 for row in range(60)]
    path = make(kind if kind != "links" else "table", tmp_path / "made", shown)
    sides = hold_back(opened(path), 0.2)
    images = [{reader[row].image for row in range(len(reader))} for reader in sides]
    assert [len(reader) for reader in sides] == [48, 12]
    assert not images[0] & images[1]
    again = hold_back(opened(path), 0.2)
    assert [reader.fingerprint for reader in again] == [reader.fingerprint for reader in sides]


def test_holdout_of_a_mixture_keeps_an_image_that_two_sources_have_on_one_side(
    tmp_path: Path,
) -> None:
    first = opened(make("tar", tmp_path / "a", list(range(30))))
    second = opened(make("parquet", tmp_path / "b", list(range(20, 50))))
    kept, back = hold_back(MixtureReader({"a": first, "b": second}, [None, None]), 0.2)
    images = [{reader[row].image for row in range(len(reader))} for reader in (kept, back)]
    assert not images[0] & images[1]
    assert len(images[0]) + len(images[1]) == 50
    assert isinstance(back, MixtureReader)
    assert [len(part) for part in back.parts] == [6, 6]


def test_images_by_url_are_told_apart_by_their_names(tmp_path: Path) -> None:
    names = [f"https://example.org/{name}.jpg" for name in "aab"]
    rows = [{"image": name, "caption": "x"} for name in names]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = opened(str(tmp_path / "x.jsonl")).image_ids()
    assert ids is not None
    assert ids.tolist() == [0, 0, 1]


def test_texts_without_images_are_all_different(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\na\nb\n")
    source = SourceConfig(path=str(tmp_path / "x.txt"), image="none")
    ids = open_source(source, progress=False).image_ids()
    np.testing.assert_array_equal(ids, [0, 1, 2])


def test_train_refuses_a_holdout_of_one_image(clipkit: Run, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"output: {tmp_path}/run\ntrain: {{batch_size: 4, steps: 1}}\n")
    source = make("tar", tmp_path / "in", [0] * 9)
    told = [f"data.train={source}", "data.holdout=0.2", "--dry-run"]
    done = clipkit("train", config, *told)
    assert done.returncode == 3
    assert "one image alone cannot be split by data.holdout" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["tar", "folder", "parquet"])
def test_png_files_of_one_size_are_told_apart(tmp_path: Path, kind: str) -> None:
    # The CRC-32 of such files has 65,536 values, as each holds the CRC-32 of its own data.
    pixels = np.random.default_rng(0).integers(0, 256, (1500, 8, 8, 3), dtype=np.uint8)
    images = []
    for each in pixels:
        buffer = io.BytesIO()
        Image.fromarray(each).save(buffer, "PNG", compress_level=0)
        images.append(buffer.getvalue())
    assert len({zlib.crc32(data) for data in images}) < 1500
    if kind == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for row, data in enumerate(images):
                for name, content in ((f"{row}.png", data), (f"{row}.txt", b"a")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    elif kind == "folder":
        for row, data in enumerate(images):
            (tmp_path / f"{row}.png").write_bytes(data)
    else:
        rows = [{"image": {"bytes": data, "path": None}, "caption": "a"} for data in images]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "x.parquet"))
    source = SourceConfig(path=str(tmp_path), caption="none" if kind == "folder" else None)
    ids = open_source(source, progress=False).image_ids()
    assert ids is not None
    assert len(np.unique(ids)) == 1500

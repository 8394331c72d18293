"""hold_back: always the same samples, and no image on both sides; fingerprints notice a change."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
from sample_files import encoded, photo

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, hold_back, open_source
from clipkit.errors import DataError


def table_of(folder: Path, images: int, captions: int) -> Reader:
    path = folder / "pairs.jsonl"
    rows = [
        {"image": f"{i}.jpg", "caption": f"{i} said in way {j}"}
        for j in range(captions)
        for i in range(images)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_source(SourceConfig(path=str(path)), progress=False)


def images_of(reader: Reader) -> set[str]:
    return {caption.split()[0] for caption in reader.captions()}


def test_all_captions_of_an_image_are_on_one_side(tmp_path: Path) -> None:
    whole = table_of(tmp_path, images=40, captions=5)
    kept, back = hold_back(whole, 0.1)
    assert len(images_of(back)) == 4
    assert len(back) == 20
    assert len(kept) == 180
    assert not images_of(kept) & images_of(back)


def test_a_parquet_table_of_paths_is_split_by_image_too(tmp_path: Path) -> None:
    rows = [{"image": f"{i % 30}.jpg", "caption": f"{i % 30} {i}"} for i in range(120)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "pairs.parquet"))
    reader = open_source(SourceConfig(path=str(tmp_path / "pairs.parquet")), progress=False)
    kept, back = hold_back(reader, 0.2)
    assert len(images_of(back)) == 6
    assert not images_of(kept) & images_of(back)


def test_one_image_alone_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"one image alone cannot be split by data\.holdout"):
        hold_back(table_of(tmp_path, images=1, captions=5), 0.5)


@pytest.mark.parametrize("kind", ["folder", "metadata", "parquet", "saved"])
def test_the_fingerprint_notices_other_data_of_the_same_names(tmp_path: Path, kind: str) -> None:
    def make(caption: str, quality: int) -> str:
        image = encoded(photo(), "JPEG", quality=quality)
        if kind in ("folder", "metadata"):
            (tmp_path / "0.jpg").write_bytes(image)
            if kind == "folder":
                (tmp_path / "0.txt").write_text(caption)
            else:
                (tmp_path / "metadata.csv").write_text(f"file_name,text\n0.jpg,{caption}\n")
            return str(tmp_path)
        features = datasets.Features(
            {"image": datasets.Image(), "caption": datasets.Value("string")}
        )
        rows = [{"image": {"bytes": image, "path": None}, "caption": caption}]
        made = datasets.Dataset.from_list(rows, features=features)
        if kind == "parquet":
            made.to_parquet(str(tmp_path / "0.parquet"))
            return str(tmp_path / "0.parquet")
        made.save_to_disk(str(tmp_path / f"saved {caption} {quality}"))
        return str(tmp_path / f"saved {caption} {quality}")

    def fingerprint(caption: str, quality: int) -> str:
        source = SourceConfig(path=make(caption, quality))
        return open_source(source, progress=False).fingerprint

    first = fingerprint("a cat", 50)
    assert fingerprint("a cat", 50) == first
    assert fingerprint("a cat", 95) != first
    assert fingerprint("a large dog" if kind == "folder" else "a dog", 50) != first

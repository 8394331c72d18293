"""What ``clipkit embed`` writes of every kind of source: vectors, columns, what was left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_embed import run
from tiny_model import noise_image, png_bytes

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError, DataError
from clipkit.models.products import has_int8_products
from clipkit.retrieval.store import EmbeddingStore


def test_texts_alone_come_from_lines_and_from_a_parquet_column(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    texts = ["red cat", "  一只猫 ", "blue house"]
    (tmp_path / "a.txt").write_text("\ufeffred cat\n\n  一只猫 \r\nblue house", encoding="utf-8")
    columns = {"text": [*texts[:2], "", texts[2]], "year": [1, 2, 3, 4]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    expected = tiny_encoder.encode_text(texts)
    of_lines = run(tiny_encoder, tmp_path / "a.txt", tmp_path / "lines")
    of_column = run(tiny_encoder, tmp_path / "a.parquet", tmp_path / "column", images=False)
    for store in (of_lines, of_column):
        assert store.image_embeds == []
        np.testing.assert_allclose(np.concatenate(store.text_embeds), expected, atol=1e-6)
        assert store.table["caption"].to_pylist() == ["red cat", "一只猫", "blue house"]
        assert store.table["width"].to_pylist() == [None] * 3
    assert of_lines.table["key"].to_pylist() == ["1", "3", "4"]
    assert of_lines.manifest["skipped"] == {"empty line": 1}
    assert of_lines.table["path"].to_pylist() == [str(tmp_path / "a.txt")] * 3
    assert of_column.table["year"].to_pylist() == [1, 2, 4]
    with pytest.raises(DataError, match="has no images; embed its texts with --only texts"):
        run(tiny_encoder, tmp_path / "a.txt", tmp_path / "other", texts=False)


def test_texts_in_no_known_encoding_are_counted(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "a.txt", tmp_path / "store"
    source.write_bytes(b"caf\x81\nred cat\n")
    command = list(map(str, ["embed", tiny_folder, source, out]))
    for _ in range(2):  # and of a store that was complete already
        assert main(command) == 0
        assert "1 captions hold � in place of bytes that are not UTF-8" in capsys.readouterr().err
    store = EmbeddingStore(out)
    assert store.manifest["num_replaced"] == 1
    assert store.table["caption"].to_pylist() == ["caf\ufffd", "red cat"]


@pytest.mark.parametrize("only", ["images --caption txt", "texts --image jpg"])
def test_a_field_that_would_not_be_read_is_refused(
    only: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "store")
    assert main(["embed", "model", "source", out, "--only", *only.split()]) == 2
    assert "is not used with --only" in capsys.readouterr().err


def test_sizes_places_and_fields_are_in_the_table(tiny_encoder: Encoder, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: 20 × 16 on disk, 16 × 20 upright
    photos = tmp_path / "photos"
    photos.mkdir()
    noise_image(0).save(photos / "a.jpg", exif=exif)
    noise_image(1, (30, 10)).save(photos / "b.png")
    (photos / "metadata.jsonl").write_text(
        '{"file_name": "a.jpg", "text": "red", "year": 1999, "key": "k", "tags": [1]}\n'
        '{"file_name": "b.png", "text": "dog", "year": 2.5, "key": 3, "tags": [2]}\n'
    )
    table = run(tiny_encoder, photos, tmp_path / "store").table
    assert table["width"].to_pylist() == [16, 30]
    assert table["height"].to_pylist() == [20, 10]
    assert table["path"].to_pylist() == [str(photos / "a.jpg"), str(photos / "b.png")]
    assert table["offset"].to_pylist() == [None, None]
    assert table["year"].to_pylist() == [1999.0, 2.5]
    assert table["meta_key"].to_pylist() == ["k", "3"]
    assert "tags" not in table.column_names
    named = run(tiny_encoder, photos, tmp_path / "named", columns=["year"])
    assert named.table.column_names[-1] == "year"
    assert "meta_key" not in named.table.column_names
    bare = run(tiny_encoder, photos, tmp_path / "bare", columns=["none"])
    assert bare.table.column_names[-2:] == ["height", "image_hash"]
    with pytest.raises(ConfigError, match=r"'yaer'; there are .*year"):
        run(tiny_encoder, photos, tmp_path / "wrong", columns=["yaer"])


def test_the_offset_leads_to_the_image_in_its_tar(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = run(tiny_encoder, shard.relative_to(tmp_path), tmp_path / "store")
    monkeypatch.chdir("/")  # from where the path leads there, too
    assert store.table["origin"][7].as_py() == "data/a.tar, sample 00007"
    item = store.items([7]).to_pylist()[0]
    png = png_bytes(noise_image(7))
    with open(item["path"], "rb") as tar:
        tar.seek(item["offset"])
        assert tar.read(len(png)) == png


def test_a_value_that_does_not_fit_its_column_is_null_and_counted(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"file_name": "a.png", "text": "red", "year": i} for i in range(1_001)]
    lines.append({"file_name": "a.png", "text": "red", "year": "about 1900"})
    noise_image(0).save(tmp_path / "a.png")
    table = tmp_path / "a.jsonl"
    table.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    command = ["embed", tiny_folder, table, tmp_path / "store", "--workers", 0, "--only", "texts"]
    assert main(list(map(str, command))) == 0
    assert "column year: 1 values are no int64, and null" in capsys.readouterr().err
    assert EmbeddingStore(tmp_path / "store").table["year"].to_pylist()[-2:] == [1_000, None]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_types_and_precision_keep_the_vectors(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path, dtype: Any, precision: Any
) -> None:
    if precision == "int8" and not has_int8_products():
        pytest.skip("this CPU has no int8 products")
    store = run(tiny_encoder, shard, tmp_path / "store", dtype=dtype, precision=precision)
    expected = tiny_encoder.encode_image([noise_image(i) for i in range(20)])
    vectors = np.concatenate(store.image_embeds)
    assert vectors.dtype == dtype
    rounded = vectors.astype(np.float32)
    assert np.linalg.norm(rounded, axis=1) == pytest.approx(1, abs=1e-3)
    cosines = (rounded * expected).sum(axis=1) / np.linalg.norm(rounded, axis=1)
    assert cosines.min() > (0.99999 if precision == "fp32" else 0.999)
    assert tiny_encoder.model.compute_dtype is None
    if precision != "fp32":
        assert store.manifest["precision"] == precision
        told = store.manifest["cosines"]["image"]
        assert told == pytest.approx(cosines.min(), abs=1e-3)
    (hit,) = store.index(model=tiny_encoder).search(image=noise_image(3), k=1)
    assert hit.source_row == 3


def test_further_captions_of_a_row_are_counted_and_said(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [png_bytes(noise_image(i)) for i in range(4)]
    captions = [[f"red {i}", f"green {i}", f"blue {i}"] for i in range(3)] + [["alone"]]
    table = tmp_path / "data.parquet"
    pq.write_table(pa.table({"image": images, "caption": captions}), table)
    assert main(["embed", str(tiny_folder), str(table), str(tmp_path / "store")]) == 0
    assert "6 further captions are not embedded, only the first of each" in capsys.readouterr().err
    store = EmbeddingStore(tmp_path / "store")
    assert store.manifest["num_other_captions"] == 6
    assert store.table["caption"].to_pylist() == ["red 0", "red 1", "red 2", "alone"]

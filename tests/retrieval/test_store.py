"""embed → a store → search: the way there and back, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_model import noise_image, noise_shard, png_bytes, save_tiny_model, write_shard

import clipkit
from clipkit.digest import sha256
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ClipkitError, ConfigError, DataError
from clipkit.retrieval import store as store_module
from clipkit.retrieval.embed import embed
from clipkit.retrieval.page import search_page
from clipkit.retrieval.store import EmbeddingStore


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return noise_shard(tmp_path / "data/a.tar", 20)


def _embed(encoder: Encoder, source: Path, out: Path, **options: object) -> EmbeddingStore:
    options = {"precision": "fp32", **options}
    return embed(encoder, str(source), out, progress=False, **options)  # type: ignore[arg-type]


def test_a_store_holds_what_the_encoder_gives(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    store = _embed(tiny_encoder, shard, tmp_path / "store", batch_size=3, part_rows=8)
    images = tiny_encoder.encode_image([noise_image(i) for i in range(20)])
    texts = tiny_encoder.encode_text(store.table["caption"].to_pylist())
    assert [len(part) for part in store.image_embeds] == [9, 9, 2]  # whole batches
    np.testing.assert_allclose(np.concatenate(store.image_embeds), images, atol=1e-6)
    np.testing.assert_allclose(np.concatenate(store.text_embeds), texts, atol=1e-6)
    assert len(store) == 20
    assert store.table["key"].to_pylist() == [f"{i:05d}" for i in range(20)]
    assert store.table["source_row"].to_pylist() == list(range(20))
    assert "a.tar" in store.table["origin"][3].as_py()
    some = store.items([19, 2, 2, 10])
    assert some["key"].to_pylist() == ["00019", "00002", "00002", "00010"]
    assert some.schema == store.table.schema == store.items([]).schema
    with pytest.raises(IndexError):
        store.items([20])
    assert isinstance(store.image_embeds[0], np.memmap)


def test_a_store_reads_without_clipkit_as_docs_store_says(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path, root: Path
) -> None:
    store = _embed(tiny_encoder, shard, tmp_path / "store", batch_size=4, part_rows=8)
    page = (root / "docs/store.md").read_text()
    code = page.split("```python")[1].split("```")[0]
    assert "clipkit" not in code
    found: dict[str, Any] = {"STORE": str(tmp_path / "store")}
    exec(code, found)
    np.testing.assert_array_equal(found["vectors"], np.concatenate(store.image_embeds))
    assert found["manifest"]["normalised"] is True
    assert found["items"].equals(store.table)
    assert found["rows"]["key"] == store.table["key"].to_pylist()
    assert found["widest"] == [(20, 20)]
    assert found["column"].type.list_size == 24
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "store"]


def test_rows_that_cannot_be_used_are_left_out_and_the_others_keep_their_pictures(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    samples = [(png_bytes(noise_image(i)), f"cat {i}") for i in range(6)]
    samples[0], samples[3] = (b"", "cat 0"), (b"<html>", "cat 3")
    path = write_shard(tmp_path / "a.tar", samples)
    store = _embed(tiny_encoder, path, tmp_path / "store", batch_size=2)
    assert store.table["source_row"].to_pylist() == [1, 2, 4, 5]
    assert store.manifest["skipped"] == {"empty file": 1, "HTML, not an image": 1}
    hits = store.index(model=tiny_encoder).search(image=noise_image(4), k=1)
    assert (hits[0].key, hits[0].source_row, hits[0].row) == ("00004", 4, 2)
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_images_without_captions_are_embedded_alone(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(3):
        noise_image(i).save(tmp_path / f"photos/{i}.png")
    store = _embed(tiny_encoder, tmp_path / "photos", tmp_path / "store")
    assert store.text_embeds == []
    assert store.table["caption"].to_pylist() == [None] * 3
    assert store.index(model=tiny_encoder).search(image=tmp_path / "photos/1.png", k=1)[0].row == 1
    assert len(store.index(model=tiny_encoder).search(text="red", k=9)) == 3


def test_captions_alone_can_be_embedded_and_searched(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    store = _embed(tiny_encoder, shard, tmp_path / "store", images=False)
    assert store.image_embeds == []
    hit = store.index(model=tiny_encoder).search(text="blue number 2", k=1)[0]
    assert (hit.caption, round(hit.score, 4)) == ("blue number 2", 1.0)
    with pytest.raises(ConfigError, match="neither"):
        _embed(tiny_encoder, shard, tmp_path / "other", images=False, texts=False)


def test_search_by_text_equals_brute_force(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    store = _embed(tiny_encoder, shard, tmp_path / "store")
    queries = tiny_encoder.encode_text(["red", "a house"])
    expected = np.argsort(-(queries @ np.concatenate(store.image_embeds).T), axis=1)[:, :4]
    found = store.index(model=tiny_encoder).search_embeds(queries, k=4)
    assert [[hit.row for hit in hits] for hits in found] == expected.tolist()
    assert [hit.row for hit in store.index(model=tiny_encoder).search("a house", k=4)] == expected[
        1
    ].tolist()
    with pytest.raises(ConfigError, match="nothing to look for"):
        store.index(model=tiny_encoder).search()


def test_another_model_is_refused_by_name(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    store = _embed(tiny_encoder, shard, tmp_path / "store")
    other = clipkit.load(save_tiny_model(tmp_path / "other", seed=1), device="cpu")
    with pytest.raises(CheckpointError, match=r"made with the model .*, not with .*other"):
        store.index(model=other).search("red")
    same = clipkit.load(save_tiny_model(tmp_path / "copy", seed=0), device="cpu")
    assert store.index(model=same).search("red")


def test_other_preprocessing_with_the_same_weights_is_refused(
    tiny_encoder: Encoder, tiny_folder: Path, shard: Path, tmp_path: Path
) -> None:
    store = _embed(tiny_encoder, shard, tmp_path / "store")
    copy = save_tiny_model(tmp_path / "other", seed=0)
    config = json.loads((copy / "preprocessor_config.json").read_text())
    config["image_mean"] = [0.5, 0.5, 0.5]
    (copy / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="preprocessing"):
        store.index(model=clipkit.load(copy, device="cpu")).search("red")


def test_what_is_no_whole_store_is_refused_in_one_line(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    _embed(tiny_encoder, shard, folder)
    manifest, part = folder / "manifest.json", folder / "image_embeds-00000.npy"
    good, vectors = manifest.read_text(), part.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(CheckpointError, match=match) as caught:
            EmbeddingStore(folder)
        assert "\n" not in str(caught.value)

    no_table = json.loads(good)
    del no_table["parts"]["items-00000.parquet"]
    manifest.write_text(json.dumps(no_table))
    refused("do not hold")
    manifest.write_text(good)
    part.write_bytes(vectors[:-100])
    refused("manifest says")
    part.unlink()
    refused("missing")
    # A pickle of the right size must not be loaded.
    np.save(part, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    facts = json.loads(good)
    facts["parts"][part.name]["bytes"] = part.stat().st_size
    facts["parts"][part.name]["sha256"] = sha256(part)
    manifest.write_text(json.dumps(facts))
    refused("not an array of numbers")
    for key, wrong in (("rows", "many"), ("dim", None), ("skipped", 3), ("source", [])):
        manifest.write_text(json.dumps({**json.loads(good), key: wrong}))
        refused(f"{key} is missing or broken")
    manifest.write_text(json.dumps({**json.loads(good), "rows": 10**30}))
    refused("rows is missing or broken")
    manifest.write_text("[" * 100_000)
    refused("cannot be read")
    facts["parts"] = {"../../etc/passwd": {"rows": 1, "bytes": 1, "sha256": ""}}
    manifest.write_text(json.dumps(facts))
    refused("parts is missing or broken")
    manifest.write_text(good.replace('"version": 3', '"version": 9'))
    refused("version 9")
    manifest.write_text('{"format": "other"}')
    refused("not the manifest of a store")
    manifest.write_text(good[:40])
    refused("cannot be read")
    manifest.unlink()
    refused("unfinished, 0 of 1 parts are done; run the same clipkit embed again")
    (folder / "plan.json").unlink()
    refused("no manifest.json")
    with pytest.raises(CheckpointError, match="no such folder"):
        EmbeddingStore(tmp_path / "nothing")


def test_the_page_shows_pictures_and_says_why_where_it_cannot(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    store = _embed(tiny_encoder, shard, tmp_path / "store")
    found = [store.index(model=tiny_encoder).search("<script>red", k=3)]
    html, fault = search_page([store], found)
    assert fault is None
    assert html.count("data:image/webp;base64,") == 3
    assert "<script>" not in html
    noise_shard(shard, 21)
    html, fault = search_page([store], found)
    assert fault is not None
    assert "has changed" in fault
    assert "data:image/webp" not in html
    shard.unlink()
    _, fault = search_page([store], found)
    assert fault is not None
    assert "no pictures can be shown" in fault


def test_a_model_in_no_folder_cannot_name_itself(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    nameless = Encoder(tiny_encoder.model, tiny_encoder.preprocess, tiny_encoder.tokenizer, "cpu")
    with pytest.raises(ClipkitError, match="has no folder"):
        _embed(nameless, shard, tmp_path / "store")


def test_damage_that_leaves_the_size_alone_is_found(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    store = _embed(tiny_encoder, shard, folder)
    assert set(store.manifest["parts"]) == {
        "items-00000.parquet",
        "image_embeds-00000.npy",
        "text_embeds-00000.npy",
    }
    for name in store.manifest["parts"]:
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(good[:-9] + b"x" + good[-8:])
        with pytest.raises(CheckpointError, match=f"{name}: damaged"):
            EmbeddingStore(folder)
        (folder / name).write_bytes(good)
    # What a large store's hashes would have told, the scores tell.
    vectors = np.load(folder / "image_embeds-00000.npy")
    vectors[7, 3] = np.nan
    np.save(folder / "image_embeds-00000.npy", vectors)
    monkeypatch.setattr(store_module, "VERIFIED_BYTES", 0)
    with pytest.raises(CheckpointError, match=f"{folder}: its vectors are not finite"):
        EmbeddingStore(folder).index(model=tiny_encoder).search("red")


def test_a_table_without_its_columns_is_refused(
    tiny_encoder: Encoder, shard: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "store"
    table = _embed(tiny_encoder, shard, folder).table
    path = folder / "items-00000.parquet"
    manifest = json.loads((folder / "manifest.json").read_text())
    for wrong, match in (
        (table.drop_columns(["caption"]), "its columns are key, origin, .*, not key, caption,"),
        (table.slice(1), "19 rows, where the manifest says 20"),
    ):
        pq.write_table(wrong, path)
        facts = {"rows": 20, "bytes": path.stat().st_size, "sha256": sha256(path)}
        manifest["parts"][path.name] = facts
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(CheckpointError, match=match):
            EmbeddingStore(folder).index(model=tiny_encoder).search("red")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "thing,words\n7,red\n"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": "red"}\n{"file_name\n'),
    ],
)
def test_captions_that_cannot_be_read_are_not_left_aside_in_silence(
    tiny_encoder: Encoder, tmp_path: Path, name: str, text: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    noise_image(0).save(photos / "0.png")
    (photos / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name}.*--caption FIELD.*--caption none"):
        _embed(tiny_encoder, photos, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_parquet_captions_under_another_name_are_asked_for(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    columns = {"image": [png_bytes(noise_image(0))], "desc_en": ["red"]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"desc_en.*--caption FIELD"):
        _embed(tiny_encoder, tmp_path / "a.parquet", tmp_path / "store")


def test_file_names_that_are_not_utf8_are_embedded_and_shown(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    photos = tmp_path / os.fsdecode(b"photos-\xff")
    photos.mkdir()
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(png_bytes(noise_image(0)))
    store = _embed(tiny_encoder, photos, photos / "store")
    assert store.table["key"].to_pylist() == ["caf?.png"]
    html, fault = search_page([store], [store.index(model=tiny_encoder).search("red", k=1)])
    assert fault is None  # although the store is inside the folder
    assert html.count("data:image/webp;base64,") == 1

"""Rows of the same image are one hit, against a ranking of all rows by brute force."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_stores import cut_store
from tiny_model import noise_image, noise_shard, png_bytes, write_shard

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.retrieval.approximate import build_approximate
from clipkit.retrieval.embed import embed
from clipkit.retrieval.search import StoreIndex
from clipkit.retrieval.store import EmbeddingStore

COLOURS = ("red", "green", "blue", "round", "square")


@pytest.fixture(scope="module")
def whole(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    folder = tmp_path_factory.mktemp("images")
    shard = noise_shard(folder / "a.tar", 40)
    return embed(tiny_encoder, str(shard), folder / "store", columns=["none"], progress=False)


def captions_of(number: int) -> list[str]:
    return [f"{colour} number {number}" for colour in COLOURS]


@pytest.fixture(scope="module")
def five(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Eight images, each in five rows with captions of their own."""
    folder = tmp_path_factory.mktemp("five")
    samples = [
        (png_bytes(noise_image(number)), caption)
        for number in range(8)
        for caption in captions_of(number)
    ]
    shard = write_shard(folder / "a.tar", samples)
    return embed(tiny_encoder, str(shard), folder / "store", precision="fp32", progress=False)


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def expected(
    x: np.ndarray, images: np.ndarray, query: np.ndarray, among: np.ndarray, k: int
) -> list[int]:
    """The best row of each of the k best images: all rows ranked, the lower first in a tie."""
    scores = (x.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    ranked = [row for row in np.lexsort((np.arange(len(x)), -scores)).tolist() if among[row]]
    found: dict[int, int] = {}
    for row in ranked:
        found.setdefault(int(images[row]), row)
    return list(found.values())[:k]


def numbers(
    index: StoreIndex, query: np.ndarray, k: int, where: str | tuple[str, ...]
) -> list[int]:
    return index.search_embeds(query[None], k, where)[0].items["number"].to_pylist()


@pytest.mark.parametrize("most", [2, 3, 30])
@pytest.mark.parametrize("sizes", [(40,), (25, 15), (1, 38, 1)])
def test_the_k_best_images_are_those_of_a_ranking_of_all_rows(
    most: int, sizes: tuple[int, ...], whole: EmbeddingStore, tmp_path: Path
) -> None:
    rng = np.random.default_rng(most)
    x = _unit(rng.normal(size=(40, whole.dim)))
    x[30:] = x[:10]  # ties, too
    images = rng.integers(0, 40 // most + 1, 40)
    stores = []
    for i, rows in enumerate(np.split(np.arange(40), np.cumsum(sizes)[:-1])):
        fields = {"number": ("int64", rows.tolist())}
        folder = tmp_path / f"store-{i}"
        stores.append(
            EmbeddingStore(cut_store(whole, folder, rows, x[rows], fields, hashes=images[rows]))
        )
    index = stores[0].index(also=stores[1:])
    for query in (*x[:3], *_unit(rng.normal(size=(3, whole.dim)))):
        for k in (1, 4, 40):
            for where, among in (((), np.ones(40, bool)), ("number>=20", np.arange(40) >= 20)):
                assert numbers(index, query, k, where) == expected(x, images, query, among, k)
    row = 2
    others = images != images[row]
    found = index.search(like=row, k=4).items["number"].to_pylist()
    assert found == expected(x, images, x[row], others, 4)
    in_rows = index.search(like=row, k=40, rows=True)
    assert len(in_rows) == 39
    assert set(in_rows.more.tolist()) == {0}


@pytest.mark.parametrize("images", [8, 2])
def test_approximate_search_finds_k_images_among_many_copies(
    images: int, whole: EmbeddingStore, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    each = _unit(rng.normal(size=(images, whole.dim)))
    of = rng.integers(0, images, 400)
    folder = cut_store(whole, tmp_path / "copies", np.arange(400) % 40, each[of], hashes=of)
    store = EmbeddingStore(folder)
    build_approximate(store, "image", memory=10**9, progress=False)
    result = store.index(approximate=True).search_embeds(each[:1], images)[0]
    assert sorted(of[result.rows].tolist()) == list(range(images))
    # Of copies faiss may find any: images and scores are those of exact search.
    right = expected(each[of], of, each[0], np.ones(400, bool), images)
    assert of[result.rows].tolist() == of[right].tolist()
    assert (result.more + 1).tolist() == np.bincount(of)[of[result.rows]].tolist()


def test_five_captions_an_image_are_one_hit_in_python_and_as_near_duplicates(
    five: EmbeddingStore,
) -> None:
    assert (five.manifest["num_images"], five.manifest["most_rows_an_image"]) == (8, 5)
    by_image = five.index()
    found = by_image.search("red number 3", k=8)
    assert sorted(row // 5 for row in found.rows.tolist()) == list(range(8))
    assert {hit.more for hit in found} == {4}
    for shown in (repr(found), found._repr_html_()):
        assert shown.count("(+4 more)") == 8
    assert len(by_image.search("red number 3", k=40, rows=True)) == 40
    best = five.index("text").search("square number 3", k=3)
    assert best.captions[0] == "square number 3"  # of the image's captions the best one
    assert len({row // 5 for row in best.rows.tolist()}) == 3
    assert list(by_image.duplicates(0.999)) == []
    groups = list(by_image.duplicates(0.999, rows=True))
    assert [len(group) for group in groups] == [5] * 8
    assert by_image.count_items() == 8


def test_the_command_line_gives_one_hit_an_image_and_each_row_where_asked(
    five: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = ["search", str(five.folder), "red number 3", "-k", "8", "--json"]
    assert main([*search, "--html", str(tmp_path / "page.html")]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert sorted(hit["row"] // 5 for hit in hits) == list(range(8))
    assert {hit["more"] for hit in hits} == {4}
    assert "image_hash" not in hits[0]["metadata"]
    assert "number 3 (+4 more)</p>" in (tmp_path / "page.html").read_text()
    assert main([*search, "--rows"]) == 0
    assert [hit["more"] for hit in json.loads(capsys.readouterr().out)["hits"]] == [0] * 8
    assert main(["search", str(five.folder), "--duplicates", "0.999"]) == 0
    assert "0 of 8 are near-duplicates" in capsys.readouterr().err
    assert main(["search", str(five.folder), "--duplicates", "0.999", "--rows"]) == 0
    assert "32 of 40 are near-duplicates, of 8 others" in capsys.readouterr().err


def test_a_store_without_hashes_tells_images_by_their_place_and_parquet_rows_by_none(
    five: EmbeddingStore, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    import pyarrow.parquet as pq

    from clipkit.digest import sha256

    old = tmp_path / "old"
    old.mkdir()
    manifest = {**five.manifest, "version": 2}
    del manifest["most_rows_an_image"], manifest["num_images"]
    for name, facts in five.manifest["parts"].items():
        (old / name).write_bytes((five.folder / name).read_bytes())
        if name.startswith("items-"):
            table = pq.read_table(five.folder / name).drop_columns(["image_hash"])
            if name == min(n for n in manifest["parts"] if n.startswith("items-")):
                table = table.set_column(
                    table.schema.get_field_index("offset"),
                    table.schema.field("offset"),
                    [[512 * (row // 5) for row in range(len(table))]],
                )
            pq.write_table(table, old / name)
            facts = {**facts, "bytes": (old / name).stat().st_size, "sha256": sha256(old / name)}
            manifest["parts"] = {**manifest["parts"], name: facts}
    (old / "manifest.json").write_text(json.dumps(manifest))
    store = EmbeddingStore(old)
    assert store.most_rows_an_image == 5
    found = store.index().search_embeds(np.concatenate(store.image_embeds)[:1], 8)[0]
    assert sorted(row // 5 for row in found.rows.tolist()) == list(range(8))


def test_texts_alone_are_rows_whatever_they_say(tiny_encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("red cat\nred cat\nblue dog\n")
    store = embed(tiny_encoder, str(tmp_path / "texts.txt"), tmp_path / "store", progress=False)
    found = store.index().search("red cat", k=3)
    assert found.captions == ["red cat", "red cat", "blue dog"]
    assert found.more.tolist() == [0, 0, 0]

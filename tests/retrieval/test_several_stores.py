"""Stores searched together against one store of all their rows, and their near-duplicates against
a comparison of all with all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_stores import cut_store
from tiny_model import noise_shard

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.retrieval import index as index_module
from clipkit.retrieval import near_duplicates
from clipkit.retrieval.approximate import build_approximate
from clipkit.retrieval.codes import build_codes
from clipkit.retrieval.embed import embed
from clipkit.retrieval.store import EmbeddingStore

SIZES = (30, 1, 9)


@pytest.fixture(scope="module")
def whole(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    folder = tmp_path_factory.mktemp("several")
    shard = noise_shard(folder / "a.tar", 40)
    return embed(tiny_encoder, str(shard), folder / "store", columns=["none"], progress=False)


def _unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def _split(
    whole: EmbeddingStore, folder: Path, x: np.ndarray, sizes: tuple[int, ...] = SIZES
) -> list[EmbeddingStore]:
    """Stores of these sizes, and last one of all their rows."""
    folder.mkdir(exist_ok=True)
    number = np.arange(len(x))
    parts = [*np.split(number, np.cumsum(sizes)[:-1]), number]
    stores = []
    for i, part in enumerate(parts):
        fields = {"number": ("int64", part.tolist())}
        path = cut_store(whole, folder / f"store-{i}", part % 40, x[part], fields)
        stores.append(EmbeddingStore(path))
    return stores


@pytest.mark.parametrize("seed", range(4))
def test_stores_together_find_what_one_store_of_all_rows_finds(
    seed: int, whole: EmbeddingStore, tmp_path: Path
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct vectors, so that there are ties within stores and across them.
    x = _unit(rng.normal(size=(12, whole.dim)))[rng.integers(0, 12, 40)]
    *stores, one = _split(whole, tmp_path, x)
    if seed % 2:
        build_codes(stores[0], "image", progress=False)
    together = stores[0].index(also=stores[1:])
    assert len(together) == 40
    queries = np.concatenate([x[:5], _unit(rng.normal(size=(4, whole.dim)))])
    for k in (1, 7, 99):
        for where in ((), "number>=25", "number=30", "number<0"):
            found = together.search_embeds(queries, k, where)
            expected = one.index().search_embeds(queries, k, where)
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_array_equal(ours.scores, theirs.scores)
                assert ours.items["number"].to_pylist() == theirs.rows.tolist()
                for hit in ours:
                    place = [str(store.folder) for store in stores].index(hit.store)
                    assert hit.metadata["number"] == sum(SIZES[:place]) + hit.row
    assert together.search(like=3, k=50).items["number"].to_pylist() == (
        one.index().search(like=3, k=50).rows.tolist()
    )


def test_columns_of_several_stores_are_joined_and_conditions_name_the_store(
    whole: EmbeddingStore, tmp_path: Path
) -> None:
    x = np.concatenate(whole.image_embeds)
    first = cut_store(whole, tmp_path / "a", np.arange(9), x[:9], {"n": ("int64", [*range(9)])})
    fields = {"n": ("string", ["x", "y"]), "more": ("float64", [0.5, None])}
    second = cut_store(whole, tmp_path / "b", np.arange(2), x[:2], fields)
    index = EmbeddingStore(first).index(also=[EmbeddingStore(second)])
    result = index.search_embeds(x[:1], 2)[0]
    assert result.rows.tolist() == [0, 0]  # the same item, found in both
    assert [hit.metadata["n"] for hit in result] == ["0", "x"]
    assert [hit.metadata["more"] for hit in result] == [None, 0.5]
    assert result.to_pandas()["store"].tolist() == [str(first), str(second)]
    # A column that one store lacks has no values there: they meet nothing but !=.
    only_second = index.search_embeds(x[:1], 11, "more>0")[0]
    assert (only_second.of_store.tolist(), only_second.rows.tolist()) == ([1], [0])
    assert len(index.search_embeds(x[:1], 11, ("more!=0.5", "key!=x"))[0]) == 10
    with pytest.raises(ConfigError, match=r"a: where: moer: no such column. Did you mean more"):
        index.search_embeds(x[:1], 2, "moer>0")


def test_approximate_indexes_of_several_stores_are_merged(
    whole: EmbeddingStore, tmp_path: Path
) -> None:
    pytest.importorskip("faiss")
    x = _unit(np.random.default_rng(0).normal(size=(40, whole.dim)))
    *stores, one = _split(whole, tmp_path, x, (25, 15))
    for store in stores:  # so few rows are in a flat index, which finds all
        build_approximate(store, "image", memory=10**9, progress=False)
    found = stores[0].index(approximate=True, also=stores[1:]).search_embeds(x[::3], 8)
    for ours, theirs in zip(found, one.index().search_embeds(x[::3], 8), strict=True):
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        assert ours.items["number"].to_pylist() == theirs.rows.tolist()


def _greedy(x: np.ndarray, least: float, among: np.ndarray) -> dict[int, tuple[int, float]]:
    """Row that goes → the first that it is near to, and their score; by comparing all with all."""
    exact = x.astype(np.float64)
    gone: dict[int, tuple[int, float]] = {}
    for row in among.tolist():
        for earlier in among[among < row].tolist():
            score = (exact[row] * exact[earlier]).sum().astype(np.float32)
            if earlier not in gone and score >= np.float32(least):
                gone[row] = earlier, float(score)
                break
    return gone


@pytest.mark.parametrize("kind", ["clusters", "copies", "chain", "half precision"])
@pytest.mark.parametrize("codes", [False, True])
def test_near_duplicates_are_those_of_a_comparison_of_all_with_all(
    kind: str,
    codes: bool,
    whole: EmbeddingStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    number = rng.integers(0, 9, 150)
    x = rng.normal(size=(9, whole.dim))[number] + 0.25 * rng.normal(size=(150, whole.dim))
    if kind == "copies":
        x = x[rng.integers(0, 12, 150)]
    elif kind == "chain":  # each is near to those beside it alone
        x = np.cumsum(0.3 * rng.normal(size=x.shape), axis=0)
    x = _unit(x)
    if kind == "half precision":
        x = x.astype(np.float16)
    *stores, _ = _split(whole, tmp_path, x, (70, 3, 77))
    if codes:
        for store in (stores[0], stores[2]):
            build_codes(store, "image", progress=False)
    monkeypatch.setattr(near_duplicates, "_ROWS", 32)
    monkeypatch.setattr(index_module, "_BLOCK_SCORES", 32 * 20)
    monkeypatch.setattr(index_module, "_PAIRS", whole.dim * 40)
    index = stores[0].index(also=stores[1:])
    edge = float((x[5].astype(np.float64) * x[140]).sum().astype(np.float32))
    just_above = float(np.nextafter(np.float32(edge), np.float32(2)))
    for least in (0.5, 0.9, 0.95, 0.9999, edge, just_above):
        if not 0 < least < 1:
            continue
        for where, among in ((), np.arange(150)), ("number>=60", np.arange(60, 150)):
            gone = {}
            sizes = []
            for group in index.duplicates(least, where=where):
                stays, *others = group.items["number"].to_pylist()
                assert group.scores[0] == 1
                assert group.scores[1:].tolist() == sorted(group.scores[1:], reverse=True)
                gone.update(zip(others, [(stays, s) for s in group.scores[1:]], strict=True))
                sizes.append(len(group))
            assert gone == _greedy(x, least, among)
            assert sizes == sorted(sizes, reverse=True)


def test_the_threshold_itself_is_near_enough(whole: EmbeddingStore, tmp_path: Path) -> None:
    x = np.zeros((3, whole.dim), dtype=np.float32)
    x[0, 0], x[1, :2], x[2, 2] = 1, (0.6, 0.8), 1
    store = EmbeddingStore(cut_store(whole, tmp_path / "a", np.arange(3), x))
    assert [group.rows.tolist() for group in store.index().duplicates(0.6)] == [[0, 1]]
    assert list(store.index().duplicates(0.6000001)) == []


def test_the_commands_of_several_stores_and_of_near_duplicates(
    whole: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.concatenate(whole.image_embeds)
    rows = np.array([0, 1, 0, 2, 0])
    again = cut_store(whole, tmp_path / "again", rows, x[rows])
    stores = ["search", str(whole.folder), "--also", str(again)]
    page = tmp_path / "page.html"
    command = [*stores, "--html", str(page)]
    assert main([*command, "--queries", str(_like(tmp_path, 39)), "-k", "99"]) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[1].split() == ["score", "caption", "key", "origin", "store"]
    assert sum(line.endswith(str(again)) for line in out.splitlines()) == 5
    assert page.read_text().count("data:image/webp;base64,") == 44

    assert main([*command, "--duplicates", "0.9999", "--json"]) == 0
    out, err = capsys.readouterr()
    groups = [
        [(hit["store"] == str(again), hit["row"]) for hit in json.loads(line)["hits"]]
        for line in out.splitlines()
    ]
    assert groups == [
        [(False, 0), (True, 0), (True, 2), (True, 4)],
        [(False, 1), (True, 1)],
        [(False, 2), (True, 3)],
    ]
    assert "5 of 45 are near-duplicates, of 3 others" in err
    assert page.read_text().count("data:image/webp;base64,") == 8
    assert main([*stores, "--duplicates", "0.9999", "--where", "source_row=0"]) == 0
    assert capsys.readouterr().out.count("near-duplicates of ") == 1

    other = cut_store(whole, tmp_path / "other", rows, x[rows], weights_sha256="0" * 64)
    for command, code, message in (
        (["search", str(whole.folder), "red", "--also", str(other)], 4, f"{other}: made with the"),
        (["search", str(whole.folder), "red", "--also", "nowhere"], 4, "no such folder"),
        ([*stores, "--duplicates", "1"], 2, "above 0 and below 1"),
        ([*stores, "--duplicates", "0.9", "red"], 2, "leave out TEXT"),
        ([*stores, "--duplicates", "0.9", "--approximate"], 2, "leave out --approximate"),
    ):
        assert main(command) == code, command
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert message in err


def _like(folder: Path, row: int) -> Path:
    path = folder / "queries.jsonl"
    path.write_text(json.dumps({"like": row}))
    return path

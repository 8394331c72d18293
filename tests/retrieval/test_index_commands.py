"""``clipkit index`` and what ``clipkit search`` makes of it, right and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_model import noise_shard, save_tiny_model

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError
from clipkit.retrieval.embed import embed
from clipkit.retrieval.store import EmbeddingStore


@pytest.fixture(scope="module")
def whole(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("index")
    embed(tiny_encoder, str(noise_shard(folder / "a.tar", 40)), folder / "store", progress=False)
    return folder / "store"


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def _search(store: Path, *options: str) -> list[dict[str, object]]:
    index = EmbeddingStore(store).index()
    return [{"row": hit.row, "score": hit.score} for hit in index.search(*options, k=7)]


def test_an_index_changes_nothing_but_the_time(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _search(store, "red cat")
    assert main(["index", str(store)]) == 0
    assert "40 image embeddings now reads" in capsys.readouterr().out
    assert _search(store, "red cat") == before
    assert sorted(path.name for path in (store / "index").iterdir()) == [
        "image-exact-centre.npy",
        "image-exact-codes.npy",
        "image-exact-rows.npy",
        "image-exact.json",
    ]
    assert main(["index", str(store)]) == 0  # again, in place
    assert main(["index", str(store), "--kind", "text"]) == 0
    assert len(EmbeddingStore(store).index("text").search("red cat", k=3)) == 3


def _edit(path: Path, **changes: object) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, **changes}))


def test_a_damaged_or_stale_index_is_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(store)]) == 0
    folder = store / "index"
    manifest, codes = folder / "image-exact.json", folder / "image-exact-codes.npy"
    text, data = manifest.read_text(), codes.read_bytes()
    capsys.readouterr()
    for damage, message in (
        (lambda: codes.write_bytes(data[:-9]), "bytes, where"),
        (lambda: codes.write_bytes(data[:-1] + b"\x55"), "damaged"),
        (lambda: codes.unlink(), "is missing"),
        (lambda: manifest.write_text(text[:50]), "cannot be read"),
        (lambda: manifest.write_text("[]"), "is not the manifest"),
        (lambda: manifest.write_text("[" * 100_000), "cannot be read"),
        (lambda: _edit(manifest, of="0"), "it has changed since"),
        (lambda: _edit(manifest, weights_sha256="0"), "of the model"),
        (lambda: _edit(manifest, files={"../x": {"bytes": 1, "sha256": ""}}), "not the manifest"),
    ):
        manifest.write_text(text)
        codes.write_bytes(data)
        damage()
        assert main(["search", str(store), "red"]) == 4, message
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert message in err
        assert "clipkit index" in err


def test_queries_of_several_parts_and_conditions(tiny_encoder: Encoder, whole: Path) -> None:
    store = EmbeddingStore(whole)
    index = store.index(model=tiny_encoder)
    x = np.concatenate(store.image_embeds)
    text, other = tiny_encoder.encode_text(["red", "dog"])
    direction = text + 0.5 * x[3] - 0.25 * other
    result = index.search("red", like=3, negative="dog", weights={"like": 0.5, "negative": 0.25})
    expected = [row for row in np.argsort(-(x @ direction)) if row != 3][:10]
    assert result.rows.tolist() == expected
    np.testing.assert_allclose(
        result.scores, x[expected] @ direction / np.linalg.norm(direction), atol=1e-6
    )
    assert [hit.key for hit in result] == result.keys
    assert result.to_pandas()["row"].tolist() == expected
    assert '"red" + row 3 − "dog"' in repr(result)
    html = result._repr_html_()
    assert html.count("data:image/webp;base64,") == 10
    assert "<script" not in index.search("<script>")._repr_html_()
    few = index.search("red", where=["source_row>=30", "caption~NUMBER 3", "key!=00031"], k=99)
    assert sorted(few.rows) == [30, *range(32, 40)]
    assert len(index.search("red", where="caption=nothing like this")) == 0
    assert len(index.search("red", where="width<99999999999999999999", k=99)) == 40
    assert index.search(like=5, k=1).rows[0] != 5
    many = index.search_many(["red", "dog"], k=2)
    assert [list(one.rows) for one in many] == [
        list(index.search(t, k=2).rows) for t in ("red", "dog")
    ]


def test_what_makes_no_sense_ends_in_one_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG broken")
    (tmp_path / "q.jsonl").write_text('{"text": "red"}\n{"txt": "blue"}\n')
    (tmp_path / "bad.jsonl").write_text("red\n")
    (tmp_path / "none.txt").write_text("\n")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "huge.jsonl").write_text('{"text": "red", "weights": {"text": %s}}' % ("9" * 400))
    for options, code, message in (
        (["red", "--model", other], 4, "made with the model"),
        (["red", "--where", "captoin=x"], 2, "captoin: no such column. Did you mean caption?"),
        (["red", "--where", "caption"], 2, "is no condition"),
        (["red", "--where", "source_row>=many"], 2, "which 'many' is not"),
        (["red", "--where", "source_row~3"], 2, "~ looks into texts"),
        (["--image", tmp_path / "broken.png"], 3, "broken.png"),
        (["--queries", tmp_path / "q.jsonl"], 3, "line 2: txt: no such part of a query"),
        (["--queries", tmp_path / "bad.jsonl"], 3, "line 1: is no JSON"),
        (["--queries", tmp_path / "none.txt"], 3, "no queries in it"),
        (["--queries", tmp_path / "deep.jsonl"], 3, "line 1: is no JSON"),
        (["--queries", tmp_path / "huge.jsonl"], 3, "a million at most"),
        (["--queries", tmp_path / "missing"], 3, "cannot be read"),
        ([" "], 2, "an empty text"),
        ([], 2, "nothing to look for"),
    ):
        assert main(["search", str(store), *map(str, options)]) == code, options
        out, err = capsys.readouterr()
        assert out == ""
        assert len(err.splitlines()) == 1, err
        assert message in err
    assert main(["search", str(store), "red", "-k", "99", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 40
    (tmp_path / "good.jsonl").write_text(
        # Begun with a byte order mark, as Windows does; JSON may hold a line separator.
        '\ufeff{"text": "red", "negative": ["dog"], "weights": {"negative": 0.1}}\n'
        '{"like": 3}\r\n{"text": "a\u2028cat"}\n'
    )
    file = str(tmp_path / "good.jsonl")
    assert main(["search", str(store), "--queries", file, "--json", "--", "-red"]) == 0
    queries = [json.loads(line)["query"] for line in capsys.readouterr().out.split("\n")[:-1]]
    assert queries == ["-red", '"red" − "dog"', "row 3", "a\u2028cat"]


def test_python_refuses_what_makes_no_sense(tiny_encoder: Encoder, whole: Path) -> None:
    index = EmbeddingStore(whole).index(model=tiny_encoder)
    for call, message in (
        (lambda: index.search(), "nothing to look for"),
        (lambda: index.search("red", k=0), "k: 0"),
        (lambda: index.search(like=40), "no row"),
        (lambda: index.search("red", weights={"txt": 1}), "no part of a query"),
        (lambda: index.search("red", weights={"text": -1}), "from 0 on"),
        (lambda: index.search("red", weights={"text": 1e308}), "a million at most"),
        (lambda: index.search("red", negative="red", weights={"negative": 1}), "cancel out"),
        (lambda: index.search_embeds(np.full((1, 24), np.nan)), "not finite"),
        (lambda: index.search_embeds(np.zeros((1, 5))), "vectors of 24"),
    ):
        with pytest.raises(ClipkitError, match=message):
            call()

"""A store as a table of LanceDB, read back with LanceDB alone."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from small_stores import cut_store
from tiny_model import noise_shard

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.retrieval import lance
from clipkit.retrieval.embed import embed
from clipkit.retrieval.store import EmbeddingStore


@pytest.fixture(scope="module")
def whole(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    folder = tmp_path_factory.mktemp("lance")
    shard = noise_shard(folder / "a.tar", 40)
    return embed(tiny_encoder, str(shard), folder / "store", columns=["none"], progress=False)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lancedb_finds_what_exact_search_finds(
    dtype: str,
    whole: EmbeddingStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lancedb = pytest.importorskip("lancedb")
    monkeypatch.setattr(lance, "_ROWS", 16)
    x = np.concatenate(whole.image_embeds).astype(dtype)
    fields = {"vector": ("string", [*"ab"] * 20), "a.b": ("int64", [*range(40)])}
    path = cut_store(whole, tmp_path / "store", np.arange(40), x, fields)
    store = EmbeddingStore(path)
    command = ["index", str(path), "--to", "lancedb", str(tmp_path / "db")]
    assert main(command) == 0
    assert "table store, 40 image embeddings" in capsys.readouterr().out
    table = lancedb.connect(str(tmp_path / "db")).open_table("store")
    rows = table.to_arrow()
    ours = store.items(np.arange(40))
    names = {"vector": "meta_vector", "a.b": "a_b"}
    assert rows.drop_columns("vector").to_pydict() == {
        names.get(name, name): ours[name].to_pylist() for name in ours.column_names
    }
    vectors = rows["vector"].combine_chunks()
    np.testing.assert_array_equal(vectors.values.to_numpy().reshape(x.shape), x)
    assert vectors.values.type == ("float" if dtype == "float32" else "halffloat")
    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    for name in ("model", "weights_sha256", "preprocess_sha256"):
        assert about[name] == store.manifest[name]
    for row in range(5):
        found = table.search(x[row].astype(np.float32)).distance_type("dot").limit(6).to_arrow()
        expected = store.index().search_embeds(x[row], 6)[0]
        assert found["a_b"].to_pylist() == expected.rows.tolist()

    assert main(command) == 4
    assert "a table store is there already" in capsys.readouterr().err
    assert main([*command, "--table", "other"]) == 0
    assert main([*command, "--overwrite"]) == 0
    assert lancedb.connect(str(tmp_path / "db")).open_table("store").count_rows() == 40


def test_a_table_that_cannot_be_written_whole_is_not_there(
    whole: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lancedb = pytest.importorskip("lancedb")
    x = np.concatenate(whole.image_embeds)
    path = cut_store(whole, tmp_path / "store", np.arange(40), x)
    database = str(tmp_path / "db")
    command = ["index", str(path), "--to", "lancedb", database]
    items = path / "items-00001.parquet"
    data = items.read_bytes()
    broken = data[:300] + b"\xff" * 300 + data[600:]
    store = EmbeddingStore(path)  # opened whole, damaged later
    items.write_bytes(broken)
    with pytest.raises(lance.CheckpointError, match=r"items-00001.parquet: cannot be read"):
        lance.write_lancedb(store, "image", database, "store", progress=False)
    assert lancedb.connect(database).list_tables().tables == []
    items.write_bytes(data)
    assert main([*command, "--table", "a/b"]) == 4
    assert "LanceDB cannot write a/b" in capsys.readouterr().err


def test_what_makes_no_sense_ends_in_one_line(
    whole: EmbeddingStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lancedb", None)
    index = ["index", str(whole.folder)]
    for options, message in (
        (["--to", "lancedb", str(tmp_path / "db")], "pip install 'clipkit-pretraining[lancedb]'"),
        (["--to", "milvus", "x"], "--to milvus: no such engine"),
        (["--to", "lancedb", "x", "--approximate"], "give one of them"),
        (["--table", "x"], "go with --to"),
    ):
        assert main([*index, *options]) == 2, options
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert message in err

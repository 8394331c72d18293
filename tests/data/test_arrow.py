"""Parquet and datasets sources: bytes stay bytes, whatever the column looks like."""

from __future__ import annotations

import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_files import encoded, photo

from clipkit.config.schema import SourceConfig
from clipkit.data import SampleError, open_source
from clipkit.errors import DataError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))


def open_path(path, **options):
    return open_source(SourceConfig(path=str(path), **options), progress=False)


def images(count):
    return [encoded(photo(30 + i, 20, seed=i)) for i in range(count)]


def write_parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_with_bytes_and_with_the_struct_of_datasets(tmp_path):
    data = images(3)
    texts = ["one", "two", "three"]
    plain = write_parquet(tmp_path / "plain.parquet", jpg=data, text=texts, score=[1, 2, 3])
    structs = [{"bytes": b, "path": f"{i}.jpg"} for i, b in enumerate(data)]
    struct = write_parquet(tmp_path / "struct.parquet", image=structs, caption=texts)
    for path in (plain, struct):
        reader = open_path(path)
        assert [reader[i].image for i in range(3)] == data
        assert [reader[i].caption for i in range(3)] == texts
        assert list(reader.captions()) == texts
        assert reader.shard_sizes == [3]
    assert open_path(plain)[2].metadata == {"score": 3}
    assert open_path(struct)[2].key == "2.jpg"
    assert open_path(struct).locate(2) == f"{struct}, row 2"


def test_parquet_readers_pickle(tmp_path):
    reader = open_path(write_parquet(tmp_path / "x.parquet", image=images(2), caption=["a", "b"]))
    assert pickle.loads(pickle.dumps(reader))[1] == reader[1]


def test_parquet_with_paths_reads_files_beside_it(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded())
    path = write_parquet(tmp_path / "x.parquet", image_path=["a.jpg", "b.jpg"], caption=["a", "b"])
    reader = open_path(path)
    assert reader[0].image == encoded()
    with pytest.raises(SampleError, match="missing image file"):
        reader[1]


def test_rows_without_caption_are_dropped_and_nothing_becomes_nan(tmp_path):
    texts = ["a", None, "", "nan", " "]
    reader = open_path(write_parquet(tmp_path / "x.parquet", image=images(5), caption=texts))
    assert list(reader.captions()) == ["a", "nan"]
    assert reader.dropped == {"no caption": 3}
    assert reader.locate(1).endswith("row 3")
    assert reader[1].image == images(5)[3]


def test_one_broken_image_does_not_stop_the_others(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    records = [
        {"image": {"bytes": b, "path": None}, "caption": "x"} for b in (b"broken", encoded())
    ]
    table = datasets.Dataset.from_list(records, features=features)
    table.to_parquet(tmp_path / "x.parquet")
    reader = open_path(tmp_path / "x.parquet")
    assert [reader[0].image, reader[1].image] == [b"broken", encoded()]


def test_lists_structs_and_class_labels_are_captions(tmp_path):
    captions = [["a cat", "a pet"], ["a dog"]]
    meta = [{"title": "cat!"}, {"title": "dog!"}]
    path = write_parquet(tmp_path / "x.parquet", image=images(2), captions=captions, meta=meta)
    assert list(open_path(path).captions()) == ["a cat", "a dog"]
    assert list(open_path(path, captions="join").captions()) == ["a cat, a pet", "a dog"]
    assert open_path(path, caption="meta.title")[1].caption == "dog!"
    names = datasets.ClassLabel(names=["golden_retriever", "cat"])
    features = datasets.Features({"pixels": datasets.Image(), "label": names})
    records = [{"pixels": {"bytes": encoded(), "path": None}, "label": i} for i in (0, 1, -1)]
    datasets.Dataset.from_list(records, features=features).save_to_disk(str(tmp_path / "saved"))
    reader = open_path(tmp_path / "saved")
    assert reader[0].caption == "a photo of a golden retriever"
    assert reader[0].image == encoded()
    assert reader[2].caption is None


def test_saved_datasets_open_by_split(tmp_path):
    def part(text):
        return datasets.Dataset.from_dict({"image": images(1), "caption": [text]})

    both = datasets.DatasetDict({"train": part("of train"), "test": part("of test")})
    both.save_to_disk(str(tmp_path / "saved"))
    assert open_path(tmp_path / "saved")[0].caption == "of train"
    assert open_path(tmp_path / "saved", split="test")[0].caption == "of test"
    with pytest.raises(DataError, match="no split 'validation'; there are train, test"):
        open_path(tmp_path / "saved", split="validation")


def test_broken_files_and_missing_columns_are_one_sentence(tmp_path):
    good = write_parquet(tmp_path / "good.parquet", image=images(3), words=["a", "b", "c"])
    with pytest.raises(DataError, match="looks like the caption; its columns are image, words"):
        open_path(good)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(good.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut\.parquet: not a Parquet file, or cut short"):
        open_path(cut)
    empty = write_parquet(
        tmp_path / "empty.parquet",
        image=pa.array([], pa.binary()),
        caption=pa.array([], pa.string()),
    )
    with pytest.raises(DataError, match="no usable row"):
        open_path(empty)


def test_a_hub_dataset_that_cannot_be_reached_is_one_sentence(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        open_path("hf://datasets/nobody/nothing")
    assert str(caught.value).startswith("hf://datasets/nobody/nothing: cannot be loaded (")
    assert "\n" not in str(caught.value)


def test_several_columns_are_captions(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet", jpg=images(3), short=["a", None, " "], long=[["b", "c"], ["d"], []]
    )
    reader = open_path(path, caption="short,long")
    assert [reader[i].caption for i in range(2)] == ["a", "d"]
    assert [reader[i].others for i in range(2)] == [["b", "c"], []]
    assert list(reader.captions())[:2] == ["a", "d"]

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


def test_rows_without_image_bytes_are_left_out_and_counted(tmp_path):
    # As img2dataset writes it, with those that could not be downloaded.
    data = [None, images(1)[0], b"", images(1)[0], None]
    texts = ["a", "b", "c", None, ""]
    reader = open_path(write_parquet(tmp_path / "x.parquet", jpg=data, caption=texts))
    assert [reader[row].caption for row in range(len(reader))] == ["b"]
    assert reader.dropped == {"no image": 3, "no caption": 1}
    structs = [
        {"bytes": images(1)[0], "path": None},
        {"bytes": None, "path": None},
        {"bytes": None, "path": ""},
        None,
    ]
    path = write_parquet(tmp_path / "y.parquet", image=structs, caption=list("abcd"))
    reader = open_path(path)
    assert reader.dropped == {"no image": 3}
    assert reader[0].image == images(1)[0]
    assert open_path(path, image="none").dropped == {}


def test_shards_whose_columns_differ_are_read_as_one(tmp_path):
    big = 2**40
    shards = [
        {"image": images(1), "caption": ["a"], "n": pa.array([1], pa.int32())},
        {"caption": ["b"], "n": pa.array([big], pa.int64()), "image": images(1), "score": [0.5]},
        {"image": images(1), "caption": pa.array(["c"], pa.large_string()), "n": [0.5]},
        {"image": images(1), "caption": ["d"], "n": [4], "score": pa.nulls(1)},
    ]
    for number, columns in enumerate(shards):
        write_parquet(tmp_path / f"{number}.parquet", **columns)
    reader = open_path(tmp_path)
    assert [reader[row].caption for row in range(4)] == list("abcd")
    assert [reader[row].metadata["n"] for row in range(4)] == [1, big, 0.5, 4]
    assert [reader[row].metadata["score"] for row in range(4)] == [None, 0.5, None, None]
    told = ["column score is missing in 2 of 4 files, null there"]
    assert reader.understood.notes == told
    write_parquet(tmp_path / "4.parquet", image=images(1), caption=[["a", "list"]])
    with pytest.raises(DataError, match=r"4\.parquet: column caption is list, and .* in .*0\.parq"):
        open_path(tmp_path)


def test_captions_that_are_objects_name_their_fields(tmp_path):
    captions = [{"en": "a dog", "de": "ein Hund"}, {"en": None, "de": "eine Katze"}]
    lists = [[{"raw": "one"}, {"raw": "two"}], []]
    path = write_parquet(tmp_path / "x.parquet", image=images(2), caption=captions, many=lists)
    with pytest.raises(DataError, match=r"one of its fields: caption\.en, caption\.de"):
        open_path(path)
    with pytest.raises(DataError, match=r"no field .fr.; .* caption\.en, capt"):
        open_path(path, caption="caption.fr")
    with pytest.raises(DataError, match=r"one of its fields: many\.raw"):
        open_path(path, caption="many")
    reader = open_path(path, caption="caption.en")
    assert list(reader.captions()) == ["a dog"]
    assert reader.dropped == {"no caption": 1}
    assert list(open_path(path, caption="caption.en,caption.de").captions()) == [
        *("a dog", "eine Katze")
    ]
    pair = open_path(path, caption="many.raw")[0]
    assert [pair.caption, *pair.others] == ["one", "two"]


def test_values_that_are_no_captions_are_dropped(tmp_path):
    numbers = write_parquet(tmp_path / "n.parquet", image=images(3), caption=[1.5, None, 2.0])
    reader = open_path(numbers)
    assert list(reader.captions()) == ["1.5", "2.0"]
    assert reader.understood.notes == ["caption holds numbers alone"]
    lists = write_parquet(
        tmp_path / "l.parquet", image=images(3), caption=["['a', 'b']", "['c']", "d"]
    )
    reader = open_path(lists)
    assert [reader[0].caption, *reader[0].others] == ["a", "b"]
    assert reader.understood.notes == ["2 cells hold a list in quotes, read as several captions"]
    flags = write_parquet(tmp_path / "f.parquet", image=images(2), caption=[True, False])
    with pytest.raises(DataError, match="no usable row: 2 with no caption"):
        open_path(flags)


def test_titles_of_articles_give_way_to_descriptions(tmp_path):
    path = write_parquet(
        tmp_path / "x.parquet", image=images(2), title=["SKU1", "SKU2"], description=["a b", "c d"]
    )
    reader = open_path(path)
    assert list(reader.captions()) == ["a b", "c d"]
    assert reader.understood.also == ["title"]


def test_parquet_is_known_by_its_first_bytes(tmp_path):
    good = write_parquet(tmp_path / "x.parquet", image=images(2), caption=["a", "b"])
    for name in ("x.csv", "x.json", "x.txt"):
        (tmp_path / name).write_bytes(good.read_bytes())
        assert list(open_path(tmp_path / name).captions()) == ["a", "b"]
    table = tmp_path / "y.parquet"
    table.write_text("image,caption\na.jpg,a dog on the hill\n")
    with pytest.raises(DataError, match=r"y\.parquet: .*it is text; call a table \.csv"):
        open_path(table)
    table.write_bytes(b"PK\x03\x04" + bytes(600))
    with pytest.raises(DataError, match="it is a zip archive or an Excel workbook"):
        open_path(table)

"""CSV, TSV and JSON tables: every text stays the text it is, and a broken line is named."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from sample_files import encoded

from clipkit.config.schema import SourceConfig
from clipkit.data import SampleError, open_source
from clipkit.display.source_line import describe
from clipkit.errors import DataError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in "abcdef":
        (tmp_path / "pictures" / f"{name}.jpg").write_bytes(encoded(quality=50 + ord(name) % 40))
    return tmp_path


def open_table(folder, name, content, **options):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source(SourceConfig(path=str(path), **options), progress=False)


def test_image_paths_are_relative_to_the_table(folder, monkeypatch):
    monkeypatch.chdir("/")
    reader = open_table(
        folder, "t.csv", "image,caption\npictures/a.jpg,first\npictures/b.jpg,second\n"
    )
    assert [reader[i].caption for i in range(2)] == ["first", "second"]
    assert reader[1].image == (folder / "pictures" / "b.jpg").read_bytes()
    assert reader[1].key == "pictures/b.jpg"
    assert reader[1].origin == reader.locate(1) == f"{folder}/t.csv, pictures/b.jpg"
    assert list(pickle.loads(pickle.dumps(reader)).captions()) == ["first", "second"]


def test_image_paths_may_start_elsewhere(folder):
    (folder / "tables").mkdir()
    content = "image,caption\na.jpg,first\n"
    reader = open_table(folder, "tables/t.csv", content, image_root=str(folder / "pictures"))
    assert reader[0].image == (folder / "pictures" / "a.jpg").read_bytes()
    assert reader.place(0) == (str(folder / "pictures" / "a.jpg"), None)


def test_captions_stay_the_text_they_are(folder):
    texts = [
        "NA",
        "null",
        "nan",
        "None",
        "007",
        "1e5",
        "2020-01-01",
        "True",
        '"quoted, text"',
        " x ",
    ]
    rows = "".join(f"pictures/a.jpg,{t}\n" for t in texts)
    reader = open_table(folder, "t.csv", "image,caption\n" + rows)
    assert list(reader.captions()) == [*texts[:-2], "quoted, text", " x "]


def test_rows_without_image_or_caption_are_dropped_and_counted(folder):
    rows = ["a.jpg,yes", "b.jpg,", "c.jpg,  ", "d.jpg"]
    content = "image,caption\n,lost\n\n" + "".join(f"pictures/{row}\n" for row in rows)
    reader = open_table(folder, "t.csv", content)
    assert list(reader.captions()) == ["yes"]
    assert reader.dropped == {"no caption": 3, "no image": 1}
    lines = [
        {"image": "pictures/a.jpg", "caption": None},
        {"image": None, "caption": "x"},
        {"caption": "x"},
    ]
    lines += [
        {"image": "pictures/b.jpg", "caption": float("nan")},
        {"image": "pictures/c.jpg", "caption": "yes"},
    ]
    reader = open_table(folder, "t.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert list(reader.captions()) == ["yes"]
    assert reader.dropped == {"no caption": 2, "no image": 2}


def test_quoted_line_breaks_commas_and_byte_order_marks_are_read(folder):
    content = '\ufeffimage,caption,id\r\npictures/a.jpg,"two\nlines, ""quoted""",1\r\n'
    content += "pictures/b.jpg,图片\u2028ünï,2\r\n"
    reader = open_table(folder, "t.csv", content)
    assert list(reader.captions()) == ['two\nlines, "quoted"', "图片\u2028ünï"]
    assert reader[1].metadata == {"id": "2"}


@pytest.mark.parametrize(
    ("name", "separator"),
    [("t.tsv", "\t"), ("t.csv", "\t"), ("t.csv", ";"), ("t.csv", "|"), ("t.csv", "| ")],
)
def test_other_separators_are_found(folder, name, separator):
    # open_clip's tables are tab-separated .csv files with these columns.
    rows = [("filepath", "title"), ("pictures/a.jpg", "red, round"), ("pictures/b.jpg", "blue")]
    reader = open_table(folder, name, "".join(separator.join(row) + "\n" for row in rows))
    assert list(reader.captions()) == ["red, round", "blue"]


def test_bars_with_spaces_as_in_flickr30k_are_read(folder):
    rows = "".join(f"{n}.jpg| {i}| A {n} , {i} .\n" for n in "ab" for i in range(2))
    content = "image_name| comment_number| comment\n" + rows + "c.jpg| 4   A dog runs .\n"
    reader = open_table(folder, "results.csv", content, image_root=str(folder / "pictures"))
    assert list(reader.captions()) == ["A a , 0 .", "A a , 1 .", "A b , 0 .", "A b , 1 ."]
    assert reader[2].key == "b.jpg"
    assert reader[2].image == (folder / "pictures" / "b.jpg").read_bytes()
    assert reader[2].metadata == {"comment_number": "0"}
    assert reader.dropped == {"no caption": 1}
    spaced = 'image, caption\npictures/a.jpg, "red, round"\n'
    assert open_table(folder, "s.csv", spaced)[0].caption == "red, round"


def test_field_paths_go_into_lists(folder):
    record = {
        "image": "pictures/a.jpg",
        "sentences": [{"raw": "one", "n": 1}, {"raw": "two"}, {"tokens": ["x"]}],
        "conversations": [{"from": "human", "value": "<image> what?"}, {"value": "a dog"}],
    }
    content = json.dumps(record) + "\n"
    for caption, wanted in [
        ("sentences.raw", ["one", "two"]),
        ("sentences.1.raw", ["two"]),
        ("conversations.1.value", ["a dog"]),
        ("conversations.1.value,sentences.raw", ["a dog", "one", "two"]),
    ]:
        pair = open_table(folder, "t.jsonl", content, caption=caption)[0]
        assert [pair.caption, *pair.others] == wanted


def test_texts_inside_objects_are_named_where_no_column_holds_captions(folder):
    said = [{"from": "human", "value": "<image> what is it?"}, {"from": "gpt", "value": "a dog"}]
    record = {"image": "pictures/a.jpg", "conversations": said, "meta": {"by": "us and them"}}
    wanted = r"Set caption of the source to conversations\.1\.value or meta\.by \(or to none\)"
    with pytest.raises(DataError, match=wanted):
        open_table(folder, "chat.jsonl", json.dumps(record) + "\n")


def test_an_image_that_is_an_object_is_read_by_its_path(folder):
    record = {"image": {"path": "pictures/a.jpg", "bytes": None}, "caption": "a"}
    pair = open_table(folder, "t.jsonl", json.dumps(record) + "\n")[0]
    assert (pair.key, pair.caption) == ("pictures/a.jpg", "a")
    assert pair.image == (folder / "pictures" / "a.jpg").read_bytes()


@pytest.mark.parametrize("name", ["t.jsonl", "t.json", "lines.json", "named.json"])
def test_json_lines_lists_and_named_records_give_the_same_rows(folder, name):
    records = [
        {
            "meta": {"tags": ["x", n]},
            "image": f"pictures/{n}.jpg",
            "text": f"caption {n} 图",
            "n": i,
        }
        for i, n in enumerate("abc")
    ]
    if name == "named.json":  # as SugarCrepe is
        named = {f'"{3 * i}': record for i, record in enumerate(records)}
        content = "\ufeff " + json.dumps(named, indent=2, ensure_ascii=False)
    elif name != "t.json":
        content = "\n" + "\n".join(
            json.dumps(r, ensure_ascii=i == 1) for i, r in enumerate(records)
        )
    else:
        content = "\ufeff " + json.dumps(records, indent=1, ensure_ascii=False)
    reader = open_table(folder, name, content)
    assert list(reader.captions()) == ["caption a 图", "caption b 图", "caption c 图"]
    assert reader[2].metadata == {"meta": {"tags": ["x", "c"]}, "n": 2}
    assert reader[2].image == (folder / "pictures" / "c.jpg").read_bytes()
    tags = open_table(folder, name, content, caption="meta.tags", captions="join")
    assert tags[1].caption == "x, b"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.jsonl", '{"image": "a", "caption": "b"}\n{"image": "a", "capt\n', "line 2"),
        ("t.jsonl", '{"image": "a", "caption": "b"}\n[1]\n', "line 2"),
        ("t.json", '[{"image": "a", "caption": "b"}, {"image"', "t.json, line"),
        ("t.csv", "image,caption\na.jpg,x\na.jpg,one, two\n", "line 3"),
        ("t.csv", 'image,caption\na.jpg,"open\n' + "x" * 2**24, "line"),
    ],
)
def test_a_broken_record_names_file_and_line(folder, name, content, said):
    with pytest.raises(DataError) as caught:
        open_table(folder, name, content)
    assert str(folder / name) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_utf_16_is_named(folder):
    with pytest.raises(DataError, match="UTF-16"):
        open_table(folder, "t.csv", "image,caption\na,b\n".encode("utf-16"))


def test_missing_columns_name_those_there_are(folder):
    with pytest.raises(DataError, match="looks like the caption; its columns are image, words"):
        open_table(folder, "t.csv", "image,words\na.jpg,x\n")
    with pytest.raises(DataError, match="no column 'alt'; its columns are image, caption"):
        open_table(folder, "t.csv", "image,caption\na.jpg,x\n", caption="alt")
    reader = open_table(folder, "t.csv", "image,words\npictures/a.jpg,x\n", caption="words")
    assert reader[0].caption == "x"
    no_captions = open_table(folder, "u.csv", "image,words\npictures/a.jpg,x\n", caption="none")
    assert no_captions[0].caption is None
    no_images = open_table(folder, "v.csv", "caption\nwords alone\n", image="none")
    assert no_images[0].image is None
    assert no_images[0].caption == "words alone"


def test_other_columns_of_one_table_have_their_own_index(folder):
    content = "image,caption,alt\npictures/a.jpg,first,\npictures/b.jpg,,second\n"
    assert list(open_table(folder, "t.csv", content).captions()) == ["first"]
    assert list(open_table(folder, "t.csv", content, caption="alt").captions()) == ["second"]
    assert list(open_table(folder, "t.csv", content).captions()) == ["first"]


def test_a_missing_image_costs_one_sample(folder):
    content = "image,caption\nnowhere.jpg,x\npictures,x\nbad\0name.jpg,x\npictures/a.jpg,y\n"
    reader = open_table(folder, "t.csv", content)
    assert reader.dropped == {"missing image file": 2}
    with pytest.raises(SampleError, match="unreadable image file"):
        reader[0]
    assert reader[1].image
    assert list(reader.captions()) == ["x", "y"]
    (folder / "pictures/a.jpg").unlink()  # in the middle of a run
    with pytest.raises(SampleError, match="missing image file"):
        reader[1]


def test_a_table_whose_images_are_all_missing_says_where_they_are_looked_for(folder):
    reader = open_table(folder, "t.csv", "image,caption\nb/nowhere.jpg,x\n")
    assert len(reader) == 1  # its texts may be all that is wanted
    told = f"the first cannot be read: {folder / 'b/nowhere.jpg'}: missing image file"
    assert told in describe(reader)


def test_several_tables_are_one_source(folder):
    open_table(folder, "t1.csv", "image,caption\npictures/a.jpg,1\npictures/b.jpg,2\n")
    reader = open_table(folder, "t2.csv", "image,caption\npictures/c.jpg,3\n")
    reader = open_source(SourceConfig(path=str(folder / "t*.csv")), progress=False)
    assert reader.shard_sizes == [2, 1]
    assert list(reader.captions()) == ["1", "2", "3"]
    (folder / "t3.csv").write_text("image,label\npictures/c.jpg,3\n")
    with pytest.raises(DataError, match=r"t3\.csv: no column 'caption'"):
        open_source(SourceConfig(path=str(folder / "t*.csv")), progress=False)


def test_a_table_with_no_usable_row_says_so(folder):
    with pytest.raises(DataError, match="no usable row: 1 with no caption"):
        open_table(folder, "t.csv", "image,caption\na.jpg,\n")
    with pytest.raises(DataError, match="no usable row"):
        open_table(folder, "u.csv", "image,caption\n")


def test_image_urls_go_through_fsspec(folder):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/pictures/m.jpg", encoded())
    try:
        content = "url,caption\nmemory://pictures/m.jpg,x\nmemory://pictures/none.jpg,x\n"
        reader = open_table(folder, "t.csv", content)
        assert reader[0].image == encoded()
        with pytest.raises(SampleError, match="image file"):
            reader[1]
    finally:
        memory.rm("/pictures", recursive=True)


def test_a_quotation_mark_in_a_tsv_swallows_no_rows(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    rows = ['"Hello" she said', "a plain one", '"quoted ""as"" CSV does"', '"never closed']
    table.write_text("image\tcaption\n" + "".join(f"{i}.png\t{r}\n" for i, r in enumerate(rows)))
    assert list(open_source(SourceConfig(path=str(table))).captions()) == [
        *('"Hello" she said', "a plain one", 'quoted "as" CSV does', '"never closed'),
    ]


@pytest.mark.parametrize(
    "text",
    [
        '[{"image": "0.png", "caption": "a"}',
        '[\n{"image": "0.png", "caption": "a"},\n',
        '[{"image": "0.png", "caption": "a"} {"image": "1.png", "caption": "b"}]',
        '{"0": {"image": "0.png", "caption": "a"}, "1": {"image": "1.png"}',
    ],
)
def test_a_json_list_that_is_cut_is_refused(tmp_path: Path, text: str) -> None:
    table = tmp_path / "pairs.json"
    table.write_text(text)
    with pytest.raises(DataError, match=r"pairs\.json, line \d+: not a valid record"):
        open_source(SourceConfig(path=str(table)))


def test_line_ends_of_old_macs_are_named(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_bytes(b"image,caption\r0.png,a\r1.png,b\r")
    with pytest.raises(DataError, match="end with CR alone"):
        open_source(SourceConfig(path=str(table)))


def test_a_long_field_is_read_in_any_process(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(f"image,caption\n0.png,{'long ' * 40_000}\n")
    reader = open_source(SourceConfig(path=str(table)))
    code = "import pickle, sys; r = pickle.load(sys.stdin.buffer); print(len(next(r.captions())))"
    spawned = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(reader), capture_output=True, check=True
    )
    assert int(spawned.stdout) == 200_000


def test_a_pipe_in_place_of_an_image_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0.png")
    table = tmp_path / "pairs.csv"
    table.write_text("image,caption\n0.png,a\n")
    reader = open_source(SourceConfig(path=str(table)))
    with pytest.raises(SampleError, match="unreadable image file"):
        reader[0]


def test_several_columns_are_captions(folder):
    rows = 'image,title,"a, b",text\npictures/a.jpg,red,comma,long red\npictures/b.jpg,,,blue\n'
    reader = open_table(folder, "t.csv", rows, caption="title,text")
    assert (reader[0].caption, reader[0].others) == ("red", ["long red"])
    assert (reader[1].caption, reader[1].others) == ("blue", [])
    assert "text" not in reader[0].metadata
    assert open_table(folder, "t.csv", rows, caption="a, b")[0].caption == "comma"
    with pytest.raises(DataError, match="no column 'titel'"):
        open_table(folder, "t.csv", rows, caption="text,titel")


def test_a_second_folder_with_the_same_names_is_told(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(encoded())
    (tmp_path / "t.csv").write_text("image,caption\n1.jpg,x\n")
    reader = open_source(str(tmp_path / "t.csv"), progress=False)
    assert f"{tmp_path / 'b'} has files of the same names" in describe(reader)

"""Tables as people have them: quotes that never close, other encodings, layouts and separators."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, open_source
from clipkit.errors import DataError


def open_table(path: Path, content: str | bytes, **options: str) -> Reader:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source(SourceConfig(path=str(path), **options), progress=False)  # type: ignore[arg-type]


def rows(count: int, separator: str = ",", begin: int = 0) -> list[str]:
    return [f"img/{n:03}.jpg{separator}a thing number {n}" for n in range(begin, begin + count)]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
@pytest.mark.parametrize(
    "closed_by",
    [
        "",  # nothing: it runs to the end of the file
        'img/500.jpg{s}a 5" disk',
        'img/500.jpg{s}"a quoted{s} one"',
        'img/500.jpg{s}the label says "open"',
    ],
)
def test_an_unclosed_quote_swallows_no_rows_and_is_told_with_its_line(
    tmp_path: Path, name: str, closed_by: str
) -> None:
    separator = "\t" if name == "t.tsv" else ","
    lines = [f"image{separator}caption", *rows(9, separator), f'img/009.jpg{separator}"a dog']
    after = rows(3000, separator, begin=10)
    if closed_by:
        after[490] = closed_by.format(s=separator)
    reader = open_table(tmp_path / name, "\n".join([*lines, *after]) + "\n")
    assert len(reader) == 3010
    captions = list(reader.captions())
    assert captions[8:11] == ["a thing number 8", '"a dog', "a thing number 10"]
    assert reader.dropped == {}
    told = f"{name}, line 11: the quote that opens column caption is not closed and was read as"
    assert reader.understood.notes == [f"{told} text"]
    # The kept index says it again.
    again = open_source(SourceConfig(path=str(tmp_path / name)), progress=False)
    assert again.understood.notes == reader.understood.notes


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ("image,caption\n" + 'a.jpg,"one\nb.jpg,two\nc.jpg,three"\n', ['"one', "two", 'three"']),
        ('image,caption\na.jpg,"one, two\n', ['"one, two']),
        ('caption,image\n"one,a.jpg\na "big" cat,b.jpg\n', ['"one', 'a "big" cat']),
        ('"image","caption"\n"a.jpg","one\n"b.jpg","two"\n', ['"one', "two"]),
        ("caption,title\n" + '"open,x\n' + "some,thing\n" * 9 + '"in, quotes",y\n', None),
    ],
)
def test_rows_after_an_unclosed_quote_are_records(
    tmp_path: Path, content: str, captions: list[str] | None
) -> None:
    image = "" if '"open' not in content else "none"
    options = {"image": image} if image else {}
    reader = open_table(tmp_path / "t.csv", content, caption="caption", **options)
    wanted = captions or ['"open', *["some"] * 9, "in, quotes"]
    assert list(reader.captions()) == wanted
    assert "line 2: the quote that opens" in reader.understood.notes[0]


@pytest.mark.parametrize("separator", [",", "\t", ";"])
@pytest.mark.parametrize(
    "caption",
    [
        "two\nlines",
        'he said ""hi"",\nand left',
        "Ingredients:\nsalt, pepper\nsugar, water\nflour, milk\nwine, oil",
        "a dog\n\nby the sea\r\n",
        "\n".join(f"line {n}, and more" for n in range(30)),
    ],
)
def test_a_caption_of_several_lines_in_quotes_is_one_field(
    tmp_path: Path, separator: str, caption: str
) -> None:
    name = "t.tsv" if separator == "\t" else "t.csv"
    for header, record in (
        (["image", "caption"], ["b.jpg", f'"{caption}"']),
        (["caption", "image"], [f'"{caption}"', "b.jpg"]),
        (["n", "caption", "image", "tags"], ["2", f'"{caption}"', "b.jpg", '"x\ny"']),
    ):
        plain = ["a.jpg" if c == "image" else "1" if c == "n" else "plain" for c in header]
        lines = [separator.join(each) for each in (header, plain, record, plain)]
        folder = tmp_path / "-".join(header)
        reader = open_table(folder / name, "\n".join(lines) + "\n")
        assert list(reader.captions()) == ["plain", caption.replace('""', '"'), "plain"]
        assert not any("quote" in note for note in reader.understood.notes)


def test_a_bare_quote_within_a_field_is_text(tmp_path: Path) -> None:
    content = 'image,caption\na.jpg,5" nails\nb.jpg,the "best" one\nc.jpg,"""Hi"" she said"\n'
    reader = open_table(tmp_path / "t.csv", content + 'd.jpg,"Hello" she said\n')
    wanted = ['5" nails', 'the "best" one', '"Hi" she said', '"Hello" she said']
    assert list(reader.captions()) == wanted
    assert reader.understood.notes == []


def test_an_unclosed_quote_whose_line_has_too_many_values_is_refused(tmp_path: Path) -> None:
    content = 'caption,image\na dog,0.jpg\n"one, two,1.jpg\na cat,2.jpg\n'
    with pytest.raises(DataError, match=r"t\.csv, line 3: .*opens column caption is not closed"):
        open_table(tmp_path / "t.csv", content)


def test_cp1252_is_read_and_told(tmp_path: Path) -> None:
    text = "image,caption\na.jpg,un café à la crème\nb.jpg,“quoted” €5\nc.jpg,plain\n"
    reader = open_table(tmp_path / "t.csv", text.encode("cp1252"))
    assert list(reader.captions()) == ["un café à la crème", "“quoted” €5", "plain"]
    assert reader.understood.notes == ["2 rows are not UTF-8, read as cp1252"]
    lines = open_table(tmp_path / "t.txt", "café\nplain\n".encode("latin-1"), image="none")
    assert list(lines.captions()) == ["café", "plain"]
    assert lines.understood.notes == ["1 line is not UTF-8, read as cp1252"]
    # Bytes that are damaged in a text of UTF-8 stay so.
    broken = open_table(tmp_path / "u.csv", "image,caption\na.jpg,café ".encode() + b"\xe9\n")
    assert next(broken.captions()) == "café \ufffd"


def test_text_of_another_encoding_is_told(tmp_path: Path) -> None:
    told = "that are no UTF-8, shown as \ufffd; save as UTF-8"
    text = "image,caption\na.jpg,一只狗在跑\nb.jpg,两只猫坐着\nc.jpg,plain\n".encode("gbk")
    reader = open_table(tmp_path / "t.csv", text)
    assert reader.understood.notes == [f"2 rows hold characters {told}"]
    records = b'{"image": "a.jpg", "caption": "' + "一只狗在跑".encode("gbk") + b'"}\n'
    assert open_table(tmp_path / "t.jsonl", records).understood.notes == [
        f"1 row holds characters {told}"
    ]
    lines = open_table(tmp_path / "t.txt", "一只狗在跑\nplain\n".encode("gbk"), image="none")
    assert lines.understood.notes == [f"1 line holds characters {told}"]


def test_columns_of_one_name_are_told_apart(tmp_path: Path) -> None:
    reader = open_table(tmp_path / "t.csv", "image,caption,caption,,\na.jpg,a dog,a cat,,\n")
    assert list(reader.captions()) == ["a dog"]
    assert reader.understood.also == ["caption_2"]
    assert reader.understood.notes == ["another column caption is called caption_2"]


@pytest.mark.parametrize(
    ("header", "values", "chosen", "also"),
    [
        ("title,description", ["SKU{},a red circle {}"], "description", ["title"]),
        ("title,description", ["A red circle {},number {}"], "title", ["description"]),
        ("title,caption", ["a red circle {},round{}"], "caption", ["title"]),
        ("text,description", ["{},a red circle {}"], "description", ["text"]),
        ("title,description", ["红色圆圈{},SKU{}"], "title", ["description"]),
        ("title,description", ["SKU{},SKU{}"], "title", ["description"]),
    ],
)
def test_the_caption_column_is_one_of_words_and_the_other_is_named(
    tmp_path: Path, header: str, values: list[str], chosen: str, also: list[str]
) -> None:
    lines = [f"{n}.jpg,{values[0].format(n, n)}" for n in range(9)]
    reader = open_table(tmp_path / "t.csv", "\n".join([f"image,{header}", *lines]) + "\n")
    assert reader.understood.captions == f"column {chosen}"
    assert reader.understood.also == also


def test_captions_that_are_numbers_alone_are_told(tmp_path: Path) -> None:
    reader = open_table(tmp_path / "t.csv", "image,caption\na.jpg,1\nb.jpg,2.5\n")
    assert reader.understood.notes == ["caption holds numbers alone"]


def test_a_list_in_quotes_is_several_captions(tmp_path: Path) -> None:
    cells = ["\"['a dog', 'a cat']\"", '"[""a dog"", ""it\'s""]"', "\"['a dog' 'a cat']\"", "[x]"]
    content = "image,caption\n" + "".join(f"{n}.jpg,{c}\n" for n, c in enumerate(cells))
    reader = open_table(tmp_path / "t.csv", content, image_root="/nowhere")
    found = [texts for _, texts, _ in reader.records()]  # type: ignore[attr-defined]
    assert found == [["a dog", "a cat"], ["a dog", "it's"], ["a dog", "a cat"], ["[x]"]]
    told = ["3 cells hold a list in quotes, read as several captions"]
    assert reader.understood.notes == told


@pytest.mark.parametrize(
    ("content", "captions", "images", "note"),
    [
        (
            "a man, a plan\thttp://x/1.jpg\nred\thttp://x/2.jpg\n",  # CC3M
            ["a man, a plan", "red"],
            ["http://x/1.jpg", "http://x/2.jpg"],
            "no header line: column 2 read as image, column 1 as caption",
        ),
        (
            "1.jpg#0\tA child .\n1.jpg#1\tA girl .\n",  # Flickr8k.token.txt
            ["A child .", "A girl ."],
            ["1.jpg", "1.jpg"],
            "no header line: column 1 read as image, column 2 as caption",
        ),
        (
            "17\timg/a.jpeg\ta dog on a hill\t0.3\n18\timg/b.jpeg\tx\t0.4\n",
            ["a dog on a hill", "x"],
            ["img/a.jpeg", "img/b.jpeg"],
            "no header line: column 2 read as image, column 3 as caption",
        ),
    ],
)
def test_a_table_without_a_header_is_read_by_place(
    tmp_path: Path, content: str, captions: list[str], images: list[str], note: str
) -> None:
    reader = open_table(tmp_path / "t.tsv", content)
    assert list(reader.captions()) == captions
    assert [name for name, _, _ in reader.records()] == images  # type: ignore[attr-defined]
    assert note in reader.understood.notes
    with pytest.raises(DataError, match="no column 'caption'; its columns are 1, 2"):
        open_table(tmp_path / "t.tsv", content, caption="caption")


_PAIRS = {"a.jpg": "a dog", "b.jpg": "a cat"}


@pytest.mark.parametrize(
    ("value", "note"),
    [
        (_PAIRS, "keys read as images"),
        ({k: [v, f"{v}!"] for k, v in _PAIRS.items()}, "keys read as images"),
        ({k: {"caption": v, "n": 1} for k, v in _PAIRS.items()}, "keys read as images"),
        ({"image": list(_PAIRS), "caption": list(_PAIRS.values())}, "JSON by columns"),
        (
            {
                "image": dict(enumerate(_PAIRS)),  # as pandas writes it
                "caption": dict(enumerate(_PAIRS.values())),
            },
            "JSON by columns",
        ),
        (
            {"columns": ["image", "caption"], "index": [0, 1], "data": list(_PAIRS.items())},
            "JSON by columns",
        ),
        (
            {"info": {}, "data": [{"image": k, "caption": v} for k, v in _PAIRS.items()]},
            "records read from the one list in the object",
        ),
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_json_by_image_and_by_column_is_read(
    tmp_path: Path, value: object, note: str, indent: int | None
) -> None:
    reader = open_table(tmp_path / "t.json", json.dumps(value, indent=indent))
    found = [(name, texts[0]) for name, texts, _ in reader.records()]  # type: ignore[attr-defined]
    assert found == list(_PAIRS.items())
    assert reader.understood.notes == [note]
    again = open_source(SourceConfig(path=str(tmp_path / "t.json")), progress=False)
    assert list(again.captions()) == list(_PAIRS.values())


def test_a_large_json_by_columns_or_by_image_is_read(tmp_path: Path) -> None:
    names = [f"{n:06}.jpg" for n in range(40_000)]
    texts = [f"a thing number {n} on a long table" for n in range(40_000)]
    columns = open_table(tmp_path / "c.json", json.dumps({"image": names, "caption": texts}))
    keyed = open_table(tmp_path / "k.json", json.dumps(dict(zip(names, texts, strict=True))))
    for reader in (columns, keyed):
        assert len(reader) == 40_000
        assert reader.locate(39_999).endswith("039999.jpg")
        assert list(reader.captions())[-1] == texts[-1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", json.dumps({f"sample {n}": "x" * 50 for n in range(5000)})),
        ("t.csv", ",".join(f"column {n}" for n in range(5000)) + "\n1\n"),
        ("t.jsonl", json.dumps({f"column {n} {'x' * 99}": "x" for n in range(5000)})),
    ],
)
def test_an_error_names_some_of_very_many_columns(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError) as caught:
        open_table(tmp_path / name, content)
    assert len(str(caught.value)) < 1500 + len(str(tmp_path))
    assert " …" in str(caught.value) or "and 4,988 more" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"\x1f\x8b\x08" + bytes(600), "is compressed by gzip"),
        ("t.csv", b"PK\x03\x04" + bytes(600), r"Excel workbook \(.xlsx\)"),
        ("t.json", b"<!DOCTYPE html><html>", "a page of a web site"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("t.json", b"image,caption\na.jpg,x\n", "no JSON: it begins with 'image,caption'"),
        (
            "t.jsonl",
            b'{"image": "a.jpg", "caption": {"en": "a", "de": "b"}}\n',
            r"caption\.en, capt",
        ),
        ("t.json", b'[{"image": "a", "text": [{"raw": "x"}]}]', r"one of its fields: text\.raw"),
    ],
)
def test_other_files_called_tables_are_refused_by_what_they_are(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        open_table(tmp_path / name, content)
    assert str(tmp_path / name) in str(caught.value)


def test_json_called_csv_is_read_as_json(tmp_path: Path) -> None:
    reader = open_table(tmp_path / "t.csv", '{"image": "a.jpg", "caption": "a dog"}\n')
    assert list(reader.captions()) == ["a dog"]


def test_paths_of_windows_and_with_dots_are_found(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/a.jpg").write_bytes(b"bytes")
    content = "image,caption\n" + "".join(
        f"{name},x\n" for name in ("..\\img\\a.jpg", "../img/a.jpg", "./../img/./a.jpg")
    )
    reader = open_table(tmp_path / "deep/t.csv", content)
    assert [reader[row].image for row in range(3)] == [b"bytes"] * 3
    ids = reader.image_ids()
    assert ids is not None
    assert ids.tolist() == [0, 0, 0]


def test_captions_that_are_no_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    values = ["null", "NaN", "true", '""', "[]", '"nan"', "7", '["", "b"]']
    content = "".join(f'{{"image": "{n}.jpg", "caption": {v}}}\n' for n, v in enumerate(values))
    reader = open_table(tmp_path / "t.jsonl", content)
    assert list(reader.captions()) == ["nan", "7", "b"]
    assert reader.dropped == {"no caption": 5}


def test_excel_first_line_and_empty_columns_at_the_end_are_read(tmp_path: Path) -> None:
    content = "sep=;\nimage;caption\na.jpg;one, two;;\nb.jpg;three\n"
    assert list(open_table(tmp_path / "t.csv", content).captions()) == ["one, two", "three"]

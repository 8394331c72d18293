"""Several captions of an image under numbered names, and in JSON files that hold a bare list."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from sample_files import encoded, photo, write_tar

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, open_source

IMAGES = {f"{name}.jpg": encoded(photo(24 + i, 24)) for i, name in enumerate("abc")}
# Ten of them, so that order by number and order by name differ.
TEXTS = {name: [f"{name[0]} seen {i} times" for i in range(11)] for name in IMAGES}
Records = list[dict[str, str]]


def opened(path: Path, **options: str) -> Reader:
    return open_source(SourceConfig(path=str(path), **options), progress=False)  # type: ignore[arg-type]


def captions(reader: Reader) -> list[list[str]]:
    return sorted([p.caption or "", *p.others] for p in (reader[i] for i in range(len(reader))))


def rows(column: str) -> Records:
    return [
        {"file_name": name, **{column.format(i): text for i, text in enumerate(texts)}}
        for name, texts in TEXTS.items()
    ]


def folder(path: Path) -> Path:
    path.mkdir()
    for name, data in IMAGES.items():
        (path / name).write_bytes(data)
    return path


def as_csv(records: Records) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(records[0]))
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def metadata(path: Path) -> Path:
    (folder(path) / "metadata.csv").write_text(as_csv(rows("caption_{}")))
    return path


def table_alone(path: Path) -> Path:
    (folder(path) / "pairs.csv").write_text(as_csv(rows("Caption {}")))
    return path / "pairs.csv"


def packed_table(path: Path) -> Path:
    images = [{"bytes": IMAGES[record.pop("file_name")], "path": None} for record in rows("text{}")]
    texts = {f"text{i}": [each[i] for each in TEXTS.values()] for i in range(11)}
    path = path.with_suffix(".parquet")
    parquet.write_table(pa.table({"image": images, **texts}), path)
    return path


def json_lines(path: Path) -> Path:
    lines = (json.dumps(record) for record in rows("captions-{}"))
    (folder(path) / "pairs.jsonl").write_text("\n".join(lines))
    return path / "pairs.jsonl"


def lists_beside(path: Path) -> Path:
    for name, texts in (folder(path), TEXTS)[1].items():
        (path / name).with_suffix(".json").write_text(json.dumps(texts))
    return path


def tar(path: Path, texts: Callable[[str, list[str]], list[tuple[str, bytes]]]) -> Path:
    members = []
    for name, data in IMAGES.items():
        members += [(name, data), *texts(name[0], TEXTS[name])]
    return write_tar(path.with_suffix(".tar"), members)


def numbered(named: str) -> Callable[[Path], Path]:
    def write(key: str, texts: list[str]) -> list[tuple[str, bytes]]:
        return [(f"{key}.{named.format(i)}", text.encode()) for i, text in enumerate(texts)]

    return lambda path: tar(path, write)


def list_in_tar(path: Path) -> Path:
    return tar(path, lambda key, texts: [(f"{key}.json", json.dumps(texts).encode())])


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (metadata, "columns caption_0, caption_1, caption_2, caption_3"),
        (table_alone, "columns Caption 0, Caption 1, Caption 2"),
        (packed_table, "columns text0, text1, text2"),
        (json_lines, "columns captions-0, captions-1"),
        (lists_beside, "field captions of NAME.json beside each image"),
        (numbered("{}.txt"), "members .0.txt, .1.txt, .2.txt, .3.txt"),
        (numbered("caption_{}.txt"), "members .caption_0.txt, .caption_1.txt"),
        (list_in_tar, "members json.captions"),
    ],
)
def test_all_are_captions_in_their_order(
    tmp_path: Path, layout: Callable[[Path], Path], told: str
) -> None:
    reader = opened(layout(tmp_path / "x"))
    assert captions(reader) == list(TEXTS.values())
    assert told in reader.understood.captions
    assert not reader.understood.unused
    assert not reader.dropped


def test_a_column_called_caption_goes_before_numbered_ones(tmp_path: Path) -> None:
    records = [{**record, "caption": "the one"} for record in rows("caption_{}")]
    (folder(tmp_path / "x") / "pairs.csv").write_text(as_csv(records))
    reader = opened(tmp_path / "x" / "pairs.csv")
    assert captions(reader) == [["the one"]] * 3
    assert "caption_0" in reader.understood.also


def test_caption_members_of_several_lines_are_said(tmp_path: Path) -> None:
    path = tar(tmp_path / "x", lambda key, texts: [(f"{key}.txt", "\n".join(texts).encode())])
    assert opened(path).understood.notes == [
        "caption members have 11 lines, read as one caption each; where each line is one, set "
        "captions of the source to lines"
    ]
    by_line = opened(path, captions="lines")
    assert captions(by_line) == list(TEXTS.values())
    assert not by_line.understood.notes

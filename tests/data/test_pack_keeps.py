"""Packing keeps all captions, classes and metadata, and other programs read what it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from sample_files import encoded, photo, write_tar

from clipkit.cli import main
from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import open_source
from clipkit.display.source_line import describe

COUNT = 6
CLASSES = ["golden_retriever", "tabby cat"]


def image(number: int) -> bytes:
    return encoded(photo(30 + number, 24, seed=number), "PNG" if number % 4 == 3 else "JPEG")


def texts(number: int) -> list[str]:
    """One to three captions."""
    return [f"caption {i} of “{number}”" for i in range(1 + number % 3)]


def _tar(folder: Path, extras: dict[str, list[Any]]) -> str:
    members = []
    for number in range(COUNT):
        members.append((f"{number}.jpg", image(number)))
        for extension, values in extras.items():
            value = values[number]
            text = json.dumps(value) if extension == "json" else str(value)
            members.append((f"{number}.{extension}", text.encode()))
    return str(write_tar(folder / "x.tar", members))


def _parquet(folder: Path, columns: dict[str, tuple[list[Any], Any]]) -> str:
    images = [{"bytes": image(number), "path": None} for number in range(COUNT)]
    columns = {"image": (images, datasets.Image()), **columns}
    features = datasets.Features({name: kind for name, (_, kind) in columns.items()})
    made = datasets.Dataset.from_dict({n: v for n, (v, _) in columns.items()}, features=features)
    made.to_parquet(str(folder / "x.parquet"))
    return str(folder / "x.parquet")


def make(kind: str, folder: Path) -> SourceConfig:
    """A source of one kind; everything that packing might lose is in one of them."""
    folder.mkdir()
    every = [texts(number) for number in range(COUNT)]
    numbers = [number % 2 for number in range(COUNT)]
    if kind == "tar, captions in fields":
        fields = [{"captions": t, "key": f"k{i}", "score": i / 7} for i, t in enumerate(every)]
        return SourceConfig(path=_tar(folder, {"json": fields}), caption="json.captions")
    if kind == "tar, text and fields":
        fields = [{"alt": t, "packed": 1, "source.x": None} for t in every]
        path = _tar(folder, {"txt": ["first"] * COUNT, "json": fields, "cls": numbers})
        return SourceConfig(path=path, caption="txt,json.alt")
    if kind == "tar, names of classes":
        return SourceConfig(path=_tar(folder, {"cls": [CLASSES[n] for n in numbers]}))
    if kind == "tar, numbers of classes":
        (folder / "names.txt").write_text("\n".join(CLASSES))
        path = _tar(folder, {"cls": numbers})
        return SourceConfig(path=path, class_names=str(folder / "names.txt"))
    if kind == "class folders":
        for number in range(COUNT):
            (folder / "images" / CLASSES[number % 2]).mkdir(parents=True, exist_ok=True)
            (folder / "images" / CLASSES[number % 2] / f"{number}.jpg").write_bytes(image(number))
        return SourceConfig(path=str(folder / "images"), templates=["a {}", "the {}"])
    if kind == "metadata.csv":
        rows = [("file_name", "text", "licence")]
        for number in range(COUNT):
            (folder / f"{number}.jpg").write_bytes(image(number))
            rows += [(f"{number}.jpg", text, "CC0") for text in every[number]]
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
        return SourceConfig(path=str(folder))
    if kind == "table":
        with (folder / "x.jsonl").open("w") as file:
            for number in range(COUNT):
                (folder / f"{number}.jpg").write_bytes(image(number))
                row = {"image": f"{number}.jpg", "caption": every[number], "also": {"deep": [1]}}
                file.write(json.dumps(row) + "\n")
        return SourceConfig(path=str(folder / "x.jsonl"))
    lists = datasets.List(datasets.Value("string"))
    label = (numbers, datasets.ClassLabel(names=CLASSES))
    if kind == "parquet, lists and labels":
        scores = ([n / 3 for n in range(COUNT)], datasets.Value("float64"))
        path = _parquet(folder, {"captions": (every, lists), "label": label, "score": scores})
        return SourceConfig(path=path)
    assert kind == "parquet, labels"
    return SourceConfig(path=_parquet(folder, {"label": label}))


KINDS = [
    "tar, captions in fields", "tar, text and fields", "tar, names of classes",
    "tar, numbers of classes", "class folders", "metadata.csv", "table",
    "parquet, lists and labels", "parquet, labels",
]  # fmt: skip


def samples(source: SourceConfig) -> list[tuple[object, ...]]:
    reader = open_source(source, progress=False)
    found = []
    for row in range(len(reader)):
        pair = reader[row]
        found.append((pair.image, pair.caption, pair.others, pair.class_name, pair.metadata))
    return found


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_samples_equal_those_of_the_source(tmp_path: Path, kind: str, format: str) -> None:
    source = make(kind, tmp_path / "in")
    out = tmp_path / "out"
    told = [source.path, str(out), "--format", format, "--shard-size", "4kB", "--workers", "0"]
    told += ["--caption", source.caption] if source.caption else []
    told += ["--class-names", source.class_names] if source.class_names else []
    assert main(["data", "pack", *told]) == 0
    assert len(list(out.glob("shard-*"))) > 1
    packed = samples(SourceConfig(path=str(out), templates=source.templates))
    expected = samples(source)
    assert [each[:4] for each in packed] == [each[:4] for each in expected]
    for (*_, fields), (*_, wanted) in zip(packed, expected, strict=True):
        assert {name: fields.get(name) for name in wanted} == wanted
        assert set(fields) - set(wanted) <= {"key"}
    if "caption" not in kind and "text" not in kind and "class" in kind:
        labels = open_source(LabelSource(path=str(out)), progress=False)
        assert list(labels.captions()) == [each[3] for each in expected]


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
@pytest.mark.parametrize("kind", ["tar, captions in fields", "class folders"])
def test_datasets_reads_what_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, format: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "hf" / "down"))
    monkeypatch.setattr(f"{__name__}.image", lambda number: encoded(photo(30 + number, 24)))
    source = make(kind, tmp_path / "in")
    out = tmp_path / "out"
    told = [source.path, str(out), "--format", format, "--shard-size", "4kB", "--workers", "0"]
    told += ["--caption", source.caption] if source.caption else []
    assert main(["data", "pack", *told]) == 0
    expected = samples(source)
    loaded = datasets.load_dataset(str(out), split="train")
    assert len(loaded) == COUNT
    if format == "parquet":
        if kind == "class folders":
            assert loaded.features["label"].names == CLASSES
        else:
            assert loaded["caption"] == [each[1] for each in expected]
            assert [each[1:] for each in loaded["captions"]] == [each[2] for each in expected]
    elif kind == "class folders":
        assert [CLASSES[number] for number in loaded["cls"]] == [each[3] for each in expected]
    else:
        assert list(loaded["txt"]) == [each[1] for each in expected]
        found = [fields["captions"] for fields in loaded["json"]]
        assert found == [[each[1], *each[2]] for each in expected]


def test_a_folder_of_tars_is_to_others_what_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "in"
    folder.mkdir()
    _tar(folder, {"txt": [texts(number)[0] for number in range(COUNT)]})
    before = {path.name for path in folder.iterdir()}
    old = folder / "x.tar.clipkit-index.npz"  # as earlier versions left it
    old.write_bytes(b"old")
    assert main(["data", "check", str(folder), "--workers", "0"]) == 0
    visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible == before
    loaded = datasets.load_dataset(str(folder), split="train")
    assert len(loaded) == COUNT


def test_a_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    source, out = make("table", tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "plan.json").write_text("{}")
    (out / "sizes.json").write_text("{}")
    assert main(["data", "pack", source.path, str(out), "--workers", "0"]) == 4


def test_captions_of_a_row_are_counted_though_other_rows_have_its_image(tmp_path: Path) -> None:
    fields = [{"captions": ["a cat", "a tabby", f"number {number}"]} for number in range(COUNT)]
    members = [
        (f"{number}.{extension}", content)
        for number in range(COUNT)
        for extension, content in (
            ("jpg", image(min(number, 3))),
            ("json", json.dumps(fields[number]).encode()),
        )
    ]
    path = write_tar(tmp_path / "x.tar", members)
    line = describe(open_source(SourceConfig(path=str(path), caption="json.captions")))
    assert "3 an image" in line
    assert "1 to 3" not in line

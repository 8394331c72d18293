"""``clipkit data tokenizer`` through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT, Run
from tiny_model import noise_image
from transformers import AutoTokenizer

from clipkit.cli import main
from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.data.reader import some_captions
from clipkit.data.tokenize import train_tokenizer

WORDS = ("red", "striped", "sleeping", "enormous", "wooden")
EMOJI = str(ROOT / "data" / "emoji" / "validation-*.tar")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run_tokenizer(*arguments: object) -> int:
    return main(["data", "tokenizer", *map(str, arguments)])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Captions without any image: two languages of one script, told apart by a field."""
    rows = [{"caption": f"the small cat number {i}", "language": "en"} for i in range(60)]
    rows += [{"caption": f"der kleine Hund Nummer {i}", "language": "de"} for i in range(30)]
    rows += [{"caption": "", "language": "de"}, {"caption": "no language"}]
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"image": "none.jpg", **row}) + "\n" for row in rows))
    return path


def cells(printed: str) -> dict[str, list[str]]:
    """The table's rows by their first cell, up to an empty line."""
    lines = printed.split("\n\n")[0].splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines[1:]}


def test_a_tokenizer_is_trained_and_training_takes_it(
    clipkit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "tokenizer"
    asked = ("--caption", "txt,json.name_zh", "--vocab-size", 700, "--context-length", 16)
    assert run_tokenizer(EMOJI, out, *asked) == 0
    printed = capsys.readouterr().out
    assert set(cells(printed)) == {"Latin", "Chinese"}
    assert cells(printed)["Chinese"][1] == "–"
    assert f"preprocess.tokenizer={out}" in printed
    loaded = AutoTokenizer.from_pretrained(out)
    assert len(loaded) == 700
    assert loaded.model_max_length == 16
    assert loaded.decode(loaded("红色的房子")["input_ids"], skip_special_tokens=True).strip()

    changes = {
        "preprocess.tokenizer": out,
        "preprocess.context_length": 16,
        "output": tmp_path / "r",
    }
    dry = clipkit(
        "train", "configs/emoji.yaml", *(f"{k}={v}" for k, v in changes.items()), "--dry-run"
    )
    assert dry.returncode == 0, dry.stderr


def test_the_vocabulary_is_that_of_the_captions(table: Path, tmp_path: Path) -> None:
    assert run_tokenizer(table, tmp_path / "t", "--vocab-size", 600) == 0
    captions = [json.loads(line)["caption"] for line in table.read_text().splitlines()]
    ours = train_tokenizer(captions, vocab_size=600, context_length=77)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert loaded.get_vocab() == ours.get_vocab()


@pytest.mark.parametrize("layout", ["a list", "columns", "rows"])
def test_the_vocabulary_is_that_of_all_captions_of_an_image(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions = [[f"{word} thing {i % 3}" for word in WORDS] for i in range(20)]
    names = [f"c{k}" for k in range(len(WORDS))]
    records: list[dict[str, Any]] = []
    for i, texts in enumerate(captions):
        if layout == "rows":
            records += [{"image": f"{i}.png", "caption": text} for text in texts]
        else:
            columns = (
                {"caption": texts} if layout == "a list" else dict(zip(names, texts, strict=True))
            )
            records.append({"image": f"{i}.png", **columns})
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    asked = ("--vocab-size", 700, *(("--caption", ",".join(names)) if layout == "columns" else ()))
    assert run_tokenizer(path, tmp_path / "t", *asked) == 0
    assert sum(int(row[0]) for row in cells(capsys.readouterr().out).values()) == 100
    flat = [text for texts in captions for text in texts]
    ours = train_tokenizer(flat, vocab_size=700, context_length=77)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert loaded.get_vocab() == ours.get_vocab()
    for word in WORDS:
        assert loaded.tokenize(word) == [f"{word}</w>"], "no word is spelled by letter"


def test_fewer_captions_than_there_are_come_from_all_of_an_image(tmp_path: Path) -> None:
    texts = [f"{word} thing" for _ in range(40) for word in WORDS]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"caption": text}) + "\n" for text in texts))
    assert run_tokenizer(path, tmp_path / "t", "--max-captions", 40, "--vocab-size", 700) == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "t")
    assert all(loaded.tokenize(word) == [f"{word}</w>"] for word in WORDS)


def test_training_takes_all_templates_and_all_captions_into_its_tokenizer(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(6):
            noise_image(i).save(tmp_path / name / f"{i}.png")
    source = SourceConfig(path=str(tmp_path), templates=["a photo of a {}", "a sketch of a {}"])
    reader = open_source(source, progress=False)
    expected = [t.format(n) for n in ("cat", "dog") for _ in range(6) for t in source.templates]
    assert sorted(some_captions(reader)) == sorted(expected)


def test_rows_are_languages_columns_and_tokenizers(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run_tokenizer(table, one, "--vocab-size", 520, "--by", "language") == 0
    found = cells(capsys.readouterr().out)
    assert {name: row[0] for name, row in found.items()} == {"en": "60", "de": "30", "–": "1"}
    assert run_tokenizer(table, two, "--vocab-size", 600, "--compare", one, "--by", "column") == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["captions", str(two), "91"],
        ["captions", str(one), "91"],
    ]
    better, worse = (float(line.split()[3]) for line in lines[1:])
    assert better < worse
    # Without a folder nothing is trained.
    before = sorted(tmp_path.iterdir())
    assert run_tokenizer(table, "--compare", one) == 0
    assert cells(capsys.readouterr().out)["Latin"][0] == "91"
    assert sorted(tmp_path.iterdir()) == before
    # Of other captions than those that were trained on; of every second one.
    assert run_tokenizer(EMOJI, "--compare", one, "--evaluate", table) == 0
    assert cells(capsys.readouterr().out)["Latin"][0] == "91"
    assert run_tokenizer(table, "--compare", one, "--max-captions", 46) == 0
    assert cells(capsys.readouterr().out)["Latin"][0] == "46"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "--compare"),
        (("out", "--vocab-size", 100), 2, "--vocab-size"),
        (("out", "--vocab-size", "many"), 2, "--vocab-size"),
        (("out", "--context-length", 2), 2, "--context-length"),
        (("out", "--caption", "none"), 2, "--caption"),
        (("out", "--caption", ","), 2, "--caption"),
        (("out", "--caption", "nix"), 3, "nix"),
        (("out", "--compare", "nowhere"), 4, "nowhere"),
        (("there",), 4, "--overwrite"),
        (("there", "--overwrite"), 4, "more than a tokenizer"),
    ],
)
def test_what_cannot_be_done_is_refused(
    table: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "photo.jpg").write_bytes(b"mine")
    try:
        found = run_tokenizer(table, *arguments)
    except SystemExit as left:  # argparse's own
        found = int(left.code or 0)
    assert found == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert (tmp_path / "there" / "photo.jpg").read_bytes() == b"mine"
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_is_replaced_when_asked(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    assert run_tokenizer(table, out, "--vocab-size", 520) == 0
    assert run_tokenizer(table, out, "--vocab-size", 530) == 4
    assert len(AutoTokenizer.from_pretrained(out)) == 520
    assert run_tokenizer(table, out, "--vocab-size", 530, "--overwrite") == 0
    assert len(AutoTokenizer.from_pretrained(out)) == 530
    hidden = [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert [name for name in hidden if not name.endswith("-index.npz")] == []


def test_an_empty_source_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty.csv"
    path.write_text('image,caption\na.jpg,""\nb.jpg," "\n')
    assert run_tokenizer(path, tmp_path / "t") == 3
    error = capsys.readouterr().err
    assert str(path) in error
    assert "no caption" in error

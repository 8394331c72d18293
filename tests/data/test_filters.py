"""Filters and several captions: what stays, what is counted, which caption is taken when."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sample_files import encoded, photo, write_tar

from clipkit.config.schema import DataConfig, FilterConfig, PreprocessConfig, SourceConfig
from clipkit.data import Reader, build_eval_loader, build_train_loader, open_source
from clipkit.data.tokenize import train_tokenizer
from clipkit.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def table_of(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def shard_of(folder: Path) -> str:
    """Images of 20 … 29 × 40 pixels, with scores 0.0 … 0.9 and captions of 1 … 10 letters."""
    members = []
    for i in range(10):
        members.append((f"{i}.jpg", encoded(photo(20 + i, 40))))
        fields = {"caption": "x" * (i + 1), "similarity": i / 10}
        members.append((f"{i}.json", json.dumps(fields).encode()))
    return str(write_tar(folder / "x.tar", members))


def kept(path: str, **wanted: Any) -> tuple[list[str], dict[str, int]]:
    source = SourceConfig(path=path, filter=FilterConfig(**wanted))
    reader = open_source(source, progress=False)
    again = open_source(source, progress=False)  # from the rows that were kept
    keys = [reader[row].key for row in range(len(reader))]
    assert [again[row].key for row in range(len(again))] == keys
    assert again.dropped == reader.dropped
    assert again.fingerprint == reader.fingerprint
    return keys, reader.dropped


@pytest.mark.parametrize(
    ("wanted", "keys", "dropped"),
    [
        ({}, "0123456789", {}),
        ({"min_edge": 25}, "56789", {"filtered: image too small": 5}),
        ({"max_aspect": 1.6}, "56789", {"filtered: image too long": 5}),
        ({"min_caption": 3}, "23456789", {"filtered: caption too short": 2}),
        ({"max_caption": 3}, "012", {"filtered: caption too long": 7}),
        ({"score": "similarity", "min_score": 0.75}, "89", {"filtered: score too low": 8}),
        (
            {"score": "similarity", "min_score": 0.2, "max_caption": 5, "min_edge": 23},
            "34",
            {
                "filtered: caption too long": 5,
                "filtered: score too low": 2,
                "filtered: image too small": 1,
            },
        ),
    ],
)
def test_a_filter_keeps_what_it_says(
    tmp_path: Path, wanted: dict[str, Any], keys: str, dropped: dict[str, int]
) -> None:
    assert kept(shard_of(tmp_path), **wanted) == (list(keys), dropped)


def test_a_filter_that_leaves_nothing_or_asks_for_no_score_is_named(tmp_path: Path) -> None:
    path = shard_of(tmp_path)
    with pytest.raises(DataError, match="its filter leaves no sample"):
        kept(path, min_caption=99)
    with pytest.raises(DataError, match=r"filter\.score: no sample has 'likeness'"):
        kept(path, score="likeness", min_score=0.3)


def test_a_score_without_its_threshold_is_refused(tmp_path: Path) -> None:
    from clipkit.config import load_config

    config = tmp_path / "c.yaml"
    config.write_text(f"data: {{train: {{path: {shard_of(tmp_path)}}}}}\ntrain: {{steps: 1}}\n")
    load_config(config, ["data.train.filter.score=similarity", "data.train.filter.min_score=-0.1"])
    with pytest.raises(ConfigError, match=r"data\.train\.filter: score and min_score belong"):
        load_config(config, ["data.train.filter.score=similarity"])


def ids_a_step(reader: Reader, steps: range, workers: int = 0) -> list[list[str]]:
    captions = [text for row in range(len(reader)) for text in all_captions(reader, row)]
    tokenizer = train_tokenizer(iter(captions), vocab_size=600, context_length=12)
    preprocess = PreprocessConfig(image_size=16, context_length=12)
    loader = build_train_loader(
        reader, DataConfig(workers=workers), preprocess, tokenizer,
        seed=3, batch_size=8, start_step=steps.start, steps=steps.stop,
    )  # fmt: skip
    return [
        [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in batch.input_ids]
        for batch in loader
    ]


def all_captions(reader: Reader, row: int) -> list[str]:
    pair = reader[row]
    return [str(pair.caption), *pair.others]


def several(folder: Path, captions: str) -> Reader:
    (folder / "a.jpg").write_bytes(encoded())
    rows = [{"image": "a.jpg", "captions": [f"way {j} of {i}" for j in range(4)]} for i in range(8)]
    source = SourceConfig(path=table_of(folder, rows), captions=captions)  # type: ignore[arg-type]
    return open_source(source, progress=False)


def test_of_several_captions_one_is_drawn_by_position(tmp_path: Path) -> None:
    reader = several(tmp_path, "random")
    assert len(reader) == 8
    seen = ids_a_step(reader, range(12))
    drawn = [caption.split()[1] for step in seen for caption in step]
    assert {drawn.count(way) > 12 for way in "0123"} == {True}  # 24 of 96 each, about
    assert ids_a_step(reader, range(5, 12), workers=2) == seen[5:]


def test_several_captions_are_first_or_joined_where_asked(tmp_path: Path) -> None:
    assert all_captions(several(tmp_path, "first"), 1) == ["way 0 of 1"]
    joined = "way 0 of 1, way 1 of 1, way 2 of 1, way 3 of 1"
    assert all_captions(several(tmp_path, "join"), 1) == [joined]


def test_evaluation_takes_the_first_caption(tmp_path: Path) -> None:
    reader = several(tmp_path, "random")
    tokenizer = train_tokenizer(reader.captions(), vocab_size=600, context_length=12)
    loader = build_eval_loader(
        reader, PreprocessConfig(image_size=16, context_length=12), tokenizer,
        batch_size=8, max_image_pixels=10_000,
    )  # fmt: skip
    (batch,) = loader
    texts = [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in batch.input_ids]
    assert texts == [f"way 0 of {i}" for i in range(8)]


def test_an_image_with_a_row_for_each_caption_is_one_sample(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded())
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,one\na.jpg,two\na.jpg,three\n")
    reader = open_source(SourceConfig(path=str(tmp_path)), progress=False)
    assert len(reader) == 1
    assert all_captions(reader, 0) == ["one", "two", "three"]


def test_captions_in_no_known_encoding_are_counted(tmp_path: Path) -> None:
    members = []
    for i in range(4):
        text = b"caf\x81 number" if i % 2 else "café number".encode()
        members += [(f"{i}.jpg", encoded()), (f"{i}.txt", text)]
    reader = open_source(SourceConfig(path=str(write_tar(tmp_path / "x.tar", members))))
    tokenizer = train_tokenizer(reader.captions(), vocab_size=600, context_length=12)
    loader = build_eval_loader(
        reader, PreprocessConfig(image_size=16, context_length=12), tokenizer,
        batch_size=4, max_image_pixels=10_000,
    )  # fmt: skip
    (batch,) = loader
    assert batch.replaced == 2
    assert batch.valid.all()

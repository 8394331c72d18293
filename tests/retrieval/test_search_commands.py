"""``clipkit embed`` and ``clipkit search``, and both through the real command line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import remarks
from small_stores import cut_store
from tiny_model import noise_image, noise_shard, save_tiny_model

from clipkit.cli import main
from clipkit.errors import ConfigError
from clipkit.retrieval.store import EmbeddingStore


@pytest.fixture
def store(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    data = noise_shard(tmp_path / "a.tar", 9)
    command = ["embed", str(tiny_folder), str(data), str(tmp_path / "store"), "--workers", "0"]
    assert main([*command, "--precision", "fp32"]) == 0
    out, _ = capsys.readouterr()
    assert out == f"{tmp_path / 'store'}: images and captions of 9 samples, 24 numbers each\n"
    return tmp_path / "store"


def test_search_prints_a_table_a_query(
    tiny_folder: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(store), "red", "一只猫", "-k", "3"]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == ['"red"', '"一只猫"']
    header, *rows = blocks[0].splitlines()[1:]
    assert header.split() == ["score", "caption", "key", "origin"]
    assert len(rows) == 3
    scores = [float(row.split()[0]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert "a.tar, sample 0000" in rows[0]


def test_a_store_finds_its_model_and_pictures_from_any_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model(tmp_path / "model")
    noise_shard(tmp_path / "a.tar", 2)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "model", "a.tar", "store", "--workers", "0"]) == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["search", "../store", "red", "--html", "page.html"]) == 0, capsys.readouterr().err
    assert Path("page.html").read_text().count("data:image/webp;base64,") == 2


def test_search_by_picture_as_json_and_as_a_page(
    tiny_folder: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise_image(4).save(tmp_path / "asked.png")
    page = tmp_path / "page.html"
    command = ["search", str(store), "--image", str(tmp_path / "asked.png")]
    assert main([*command, "-k", "99", "--json", "--html", str(page)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert len(record["hits"]) == 9
    assert record["hits"][0]["key"] == "00004"
    assert record["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert page.read_text().count("data:image/webp;base64,") == 10  # the question as well


def test_another_model_and_other_mistakes_end_in_one_line(
    tiny_folder: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=1)
    (tmp_path / "empty").mkdir()
    for command, code, message in (
        (["search", store, "--model", other, "red"], 4, "made with the model"),
        (["search", tmp_path / "nothing", "red"], 4, "no such folder"),
        (["search", store], 2, "nothing to look for"),
        (["search", store, " "], 2, "search: an empty text"),
        (["search", store, "red", " "], 2, "queries[1]: an empty text"),
        (["search", store, "--image", "x.png"], 3, "x.png: no such file"),
        (["embed", tiny_folder, tmp_path / "nothing", tmp_path / "out"], 3, "nothing"),
        (["embed", tiny_folder, tmp_path / "empty", tmp_path / "out"], 3, "empty"),
        (["embed", tiny_folder, tmp_path / "a.tar", store, "--dtype", "float16"], 4, "--overwrite"),
        (["embed", tiny_folder, tmp_path / "a.tar", tmp_path / "other"], 4, "is no store"),
    ):
        assert main(list(map(str, command))) == code, command
        out, err = capsys.readouterr()
        assert out == ""
        assert len(remarks(err)) == 1, err
        assert message in err
    assert not (tmp_path / "out").exists()


def test_images_alone_can_be_embedded_on_demand(
    tiny_folder: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["embed", str(tiny_folder), str(tmp_path / "a.tar"), str(store), "--overwrite"]
    assert main([*command, "--caption", "none", "--workers", "0"]) == 0
    assert capsys.readouterr().out.endswith(": images of 9 samples, 24 numbers each\n")


def test_embed_says_what_it_left_out_or_cut_and_why(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        noise_image(i).save(photos / f"{i}\x1b.png")

    def embed() -> str:
        command = ["embed", str(tiny_folder), str(photos), str(tmp_path / "store")]
        assert main([*command, "--overwrite", "--workers", "0"]) == 0
        return capsys.readouterr().err

    assert "no captions are there, so the store is of images only" in embed()
    assert main(["search", str(tmp_path / "store"), "red"]) == 0
    assert "\x1b" not in capsys.readouterr().out
    (photos / "0\x1b.txt").write_text("cat " * 40)
    (photos / "1\x1b.txt").write_text("dog")
    err = embed()
    assert "left out 1 × no caption; --caption none embeds all images" in err
    assert "1 of 2 captions are longer than 16 tokens and were cut" in err
    assert "images only" not in err


@pytest.mark.slow
def test_the_real_command_line_embeds_and_searches(
    clipkit: Callable[..., Any], tiny_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model").symlink_to(tiny_folder)
    data = noise_shard(tmp_path / "a.tar", 300)
    done = clipkit(
        "embed", "run", data, "store", "--workers", 2, "--precision", "fp32", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    # A bar is there where it took longer than some seconds.
    assert all(line.startswith("embed: ") for line in remarks(done.stderr)), done.stderr
    done = clipkit("search", "store", "red number 3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 8
    done = clipkit("search", "run", "store", "red", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the store comes first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": " "}', "text: an empty text; leave it out"),
        ('{"text": "a", "negative": ["b", ""]}', "negative: an empty text; leave it out"),
        ('{"like": 99}', "like: 99 is no row of"),
        ('{"image": "nope.png"}', "image: nope.png: no such file"),
        ('{"text": "a", "text": "b"}', "text stands in it twice"),
        ('{"text": "a", "weights": {"image": 5}}', "weights: image is no part of this query"),
        (
            '{"text": "a", "negative": [], "weights": {"negative": 1}}',
            "weights: negative is no part of this query",
        ),
        ('{"text": "\\u0000"}', "text: an empty text"),
        (
            '{"text": "a", "negative": "a", "weights": {"negative": 1}}',
            '"a" − "a": the parts cancel out',
        ),
        (json.dumps({"image": __file__}), "the image cannot be decoded"),
    ],
)
def test_a_mistake_in_a_file_of_queries_is_named_with_its_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_text(f'{{"text": "red"}}\n\n{line}\n')
    assert main(["search", str(store), "--queries", str(path)]) == 3
    assert f"{path}, line 3: " in (err := capsys.readouterr().err)
    assert said in err


@pytest.mark.parametrize(
    "command",
    [
        ["search", "STORE", "--duplicates", "0.9", "-k", "1"],
        ["search", "STORE", "--duplicates", "0.9", "--model", "elsewhere"],
        ["search", "STORE", "--duplicates", "0.99999999999"],
        ["index", "STORE", "--recall", "0.1"],
        ["index", "STORE", "--memory", "1GB"],
        ["index", "STORE", "--to", "lancedb", "elsewhere", "--memory", "1GB"],
    ],
)
def test_what_would_do_nothing_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([str(store) if word == "STORE" else word for word in command]) == 2
    err = capsys.readouterr().err
    assert "leave out" in err or "go with --approximate" in err or "below 1" in err


def test_numbers_that_are_not_finite_are_null_and_columns_called_as_ours_get_other_names(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = EmbeddingStore(store)
    x = np.concatenate(opened.image_embeds)
    fields = {"score": ("float64", [math.nan, math.inf, *map(float, range(7))])}
    path = cut_store(opened, tmp_path / "odd", np.arange(9), x, fields)
    assert main(["search", str(path), "red", "-k", "9", "--json"]) == 0

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert sorted(str(hit["metadata"]["score"]) for hit in found["hits"])[-2:] == ["None", "None"]
    index = EmbeddingStore(path).index()
    frame = index.search("red", k=9).to_pandas()
    assert list(frame.columns[:2]) == ["row", "score"]
    assert set(frame["metadata_score"].dropna()) == {math.inf, *map(float, range(7))}
    with pytest.raises(ConfigError, match="kind: 'images'; give auto, image or text"):
        EmbeddingStore(path).index(kind="images")


def test_whole_numbers_and_fractions_of_two_stores_are_kept_exactly(
    store: Path, tmp_path: Path
) -> None:
    opened = EmbeddingStore(store)
    x = np.concatenate(opened.image_embeds)
    kinds: dict[str, tuple[str, list[Any]]] = {
        "large": ("int64", [2**60 + i for i in range(9)]),
        "small": ("int64", list(range(9))),
        "half": ("float64", [i + 0.5 for i in range(9)]),
    }
    large, small, half = (
        EmbeddingStore(cut_store(opened, tmp_path / name, np.arange(9), x, {"id": kinds[name]}))
        for name in kinds
    )
    ids = {hit.metadata["id"] for hit in large.index(also=[half]).search("red", k=18)}
    assert str(2**60 + 1) in ids
    ids = {hit.metadata["id"] for hit in small.index(also=[half]).search("red", k=18)}
    assert ids == {i / 2 for i in range(18)}

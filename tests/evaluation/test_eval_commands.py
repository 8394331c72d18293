"""``clipkit eval`` and ``clipkit classify``: results on stdout, remarks on stderr, exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from command_line import remarks
from tiny_model import noise_image, noise_shard, png_bytes, write_shard

from clipkit.cli import main
from clipkit.evaluation.prompts import TEMPLATES


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "more/b.png"):
        noise_image(len(name)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"<html>no such page</html>")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_eval_prints_both_directions_and_writes_numbers_and_page(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = noise_shard(tmp_path / "a-000.tar", 12)
    extra = noise_shard(tmp_path / "b.tar", 8, first=12)
    numbers, page = tmp_path / "e.json", tmp_path / "e.html"
    command = ["eval", str(tiny_folder), str(tmp_path / "a-*.tar"), "--workers", "0"]
    outputs = ["--json", str(numbers), "--html", str(page)]
    code = main([*command, "--gallery", str(extra), str(data), *outputs])
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == [
        *("R@1", "R@5", "R@10", "median", "rank", "chance", "images", "texts"),
    ]
    assert lines[1].startswith("text → image")
    assert lines[2].startswith("image → text")
    assert lines[1].split()[-3:] == ["0.0500", "20", "12"]
    metrics = json.loads(numbers.read_text())["metrics"]
    assert f"{metrics['text_to_image_R@5']:.3f}" == lines[1].split()[4]
    assert page.read_text().count('class="query"') == 8
    assert "the page is" in err


def test_eval_by_another_field(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = noise_shard(tmp_path / "a.tar", 4)
    command = ["eval", str(tiny_folder), str(data), "--workers", "0", "--caption"]
    assert main([*command, "json.words", "--captions", "join"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "4"
    assert main([*command, "json.words"]) == 0  # of a list, each word is a text
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "9"
    assert main([*command, "json.nothing"]) == 3
    assert len(remarks(capsys.readouterr().err)) == 1


def test_eval_says_what_it_left_out(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = png_bytes(noise_image(0))
    other = (png_bytes(noise_image(1)), "house")
    samples = [(good, "cat"), (b"<html>", "dog"), (good, None), other]
    data = write_shard(tmp_path / "a.tar", samples)
    assert main(["eval", str(tiny_folder), str(data), "--workers", "0"]) == 0
    err = capsys.readouterr().err
    assert "left out 1: 1 no caption" in err
    assert "1 samples skipped; " in err
    assert "HTML, not an image" in err


def test_eval_tells_of_captions_that_were_cut_and_names_what_was_asked(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [(png_bytes(noise_image(i)), f"cat {i} " * (20 if i < 2 else 1)) for i in range(5)]
    data = write_shard(tmp_path / "held-out-000.tar", samples)
    numbers, page = tmp_path / "e.json", tmp_path / "e.html"
    command = ["eval", str(tiny_folder), str(tmp_path / "held-out-*.tar"), "--workers", "0"]
    options = ["--caption", "json.words", "--captions", "join"]
    options += ["--gallery", str(noise_shard(tmp_path / "b.tar", 9))]
    assert main([*command, *options, "--json", str(numbers), "--html", str(page)]) == 0
    err = capsys.readouterr().err
    assert "clipkit: 2 of 5 captions are longer than 16 tokens and were cut\n" in err
    assert json.loads(numbers.read_text())["metrics"]["num_truncated"] == 2
    images = json.loads(numbers.read_text())["metrics"]["num_images"]
    assert (
        f"held-out, json.words, join, among {images} images: text → image R@1" in page.read_text()
    )
    assert data.exists()


def test_classify_takes_globs_and_escapes_what_would_steer_a_terminal(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise_image(0).save(tmp_path / "a\x1b[31m.png")
    os.link(tmp_path / "a\x1b[31m.png", os.fsencode(tmp_path / "b") + b"\xff.png")
    (tmp_path / "c\n.png").write_bytes(b"")
    command = ["classify", str(tiny_folder), "--labels", "cat,dog"]
    assert main([*command, str(tmp_path / "*.png")]) == 0
    out, err = capsys.readouterr()
    assert [Path(line.split("  ")[0]).name for line in out.splitlines()] == [
        "a\\x1b[31m.png",
        "b\\udcff.png",
    ]
    assert f"{tmp_path}/c\\n.png: the image cannot be decoded (empty file)" in err
    assert main([*command, str(tmp_path / "*.gif")]) == 3
    assert "no file matches" in capsys.readouterr().err


def test_classify_takes_images_after_options_too(
    tiny_folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", str(tiny_folder), str(pictures / "a.png"), "--labels", "cat,dog"]
    assert main([*command, str(pictures / "more/b.png")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_classify_takes_files_and_folders_and_names_what_it_cannot_read(
    tiny_folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(pictures / "gone.png")
    command = ["classify", str(tiny_folder), str(pictures), missing, "--labels", "cat, red house"]
    assert main([*command, "-k", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [Path(line.split("  ")[0]).name for line in lines] == ["a.png", "b.png"]
    assert all("red house" in line and "cat" in line and "%" in line for line in lines)
    assert "broken.jpg: the image cannot be decoded (HTML, not an image)" in err
    assert "gone.png: no such file" in err
    assert "2 of 4 images cannot be read and were skipped" in err

    assert main([*command, "--json", "--templates", "a {}"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(label["score"] for label in records[0]["labels"]) == pytest.approx(1)
    assert records[0]["label"] == records[0]["labels"][0]["label"]

    assert main([*command, "--json", "--templates", "photo", "--other", "1"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["label"] for record in records] == ["other", "other"]


def test_classify_takes_labels_with_commas_and_a_file_of_them(
    tiny_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", str(tiny_folder), str(pictures / "a.png"), "--json", "--labels"]
    labels = tmp_path / "labels.txt"
    labels.write_text("salt, pepper\nmug\n\ncat\nmug\n")
    assert main([*command, '"salt, pepper",mug']) == 0
    first = json.loads(capsys.readouterr().out)
    assert {each["label"] for each in first["labels"]} == {"salt, pepper", "mug"}

    assert main([*command, str(labels), "-k", "4"]) == 0
    out, err = capsys.readouterr()
    scores = {each["label"]: each["score"] for each in json.loads(out)["labels"]}
    assert set(scores) == {"salt, pepper", "mug", "cat", "mug (3)"}
    assert scores["mug"] == scores["mug (3)"]
    assert "left out 1 empty line" in err
    assert "named twice, so that they tie: mug" in err

    assert main([*command, str(tmp_path / "gone.txt")]) == 3
    assert "gone.txt: --labels cannot be read" in capsys.readouterr().err


def test_classify_names_all_sets_of_templates(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["classify", "--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    assert f"the name of a set: {', '.join(TEMPLATES)}" in help_text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["IMAGES/broken.jpg"], 3, "not one of 1 images can be read"),
        (["IMAGES/empty"], 3, "no images are in this folder"),
        (["IMAGES/a.png", "--labels", " , "], 2, "labels: there are none"),
        (["IMAGES/a.png", "--labels", "cat"], 2, "give at least two"),
        (["IMAGES/a.png", "--labels", "cat,cat"], 2, "'cat' stands there twice"),
        (["IMAGES/a.png", "--templates", "photos"], 2, "did you mean photo?"),
        (["IMAGES/a.png", "--other", "0.5"], 2, "give a number above 0.5"),
        (["IMAGES/a.png", "--model", "x"], 2, "--model: no such option"),
    ],
)
def test_a_mistake_ends_in_one_line_and_its_code(
    arguments: list[str],
    code: int,
    message: str,
    tiny_folder: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (pictures / "empty").mkdir()
    arguments = [a.replace("IMAGES", str(pictures)) for a in arguments]
    if "--labels" not in arguments:
        arguments += ["--labels", "cat,dog"]
    assert main(["classify", str(tiny_folder), *arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_a_model_that_is_not_there_is_exit_code_4(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(pictures / "nothing"), str(pictures), "--labels", "a,b"]
    assert main(["classify", *command]) == 4
    assert "no such folder" in capsys.readouterr().err


def test_numbers_below_one_are_a_mistake_in_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("0", "-3", "many"):
        with pytest.raises(SystemExit) as caught:
            main(["classify", "model", "image", "--labels", "a", "-k", wrong])
        assert caught.value.code == 2
        assert "is not a whole number from 1 on" in capsys.readouterr().err

"""``clipkit eval MODEL SOURCE`` where the source has classes: the accuracy of a suite's task."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from command_line import Run
from tiny_model import noise_image, png_bytes, write_shard

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.suite import build_task

CLASSES = ("blue", "dog", "house", "red_cat", "tiny", "square")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 30 labelled images as folders, as a table, and as a tar of class numbers."""
    here = tmp_path_factory.mktemp("classes")
    rows = ["image,label"]
    with tarfile.open(here / "numbers.tar", "w") as tar:
        for i in range(30):
            name = CLASSES[i % len(CLASSES)]
            path = here / "folders" / name / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise_image(i).save(path)
            rows.append(f"{path},{name}")
            for end, content in (
                ("png", path.read_bytes()),
                ("cls", str(i % len(CLASSES)).encode()),
            ):
                info = tarfile.TarInfo(f"{i:03d}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    (here / "table.csv").write_text("\n".join(rows))
    (here / "names.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (here / "few" / "cat").mkdir(parents=True)
    (here / "few" / "dog").mkdir(parents=True)
    for i in range(6):
        noise_image(i).save(here / "few" / ("cat", "dog")[i % 2] / f"{i}.png")
    return here


def measured(path: Path) -> dict[str, object]:
    record: dict[str, object] = json.loads(path.read_text())
    return record


@pytest.mark.parametrize(
    "arguments",
    [
        ["folders"],
        ["folders", "--templates", "photo"],
        ["table.csv"],
        ["numbers.tar", "--class-names", "names.txt"],
    ],
)
def test_the_numbers_are_those_of_a_suite(
    data: Path,
    tiny_folder: Path,
    tiny_encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(data)
    command = [
        "eval",
        str(tiny_folder),
        *arguments,
        "--workers",
        "0",
        "--json",
        f"{tmp_path}/e.json",
    ]
    assert main(command) == 0
    out, err = capsys.readouterr()
    options = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    keys = {name.removeprefix("--").replace("-", "_"): value for name, value in options.items()}
    task = build_task("x", {"kind": "zero_shot", "data": arguments[0], **keys})
    task.open()
    expected = task.run(Job(tiny_encoder))
    assert expected is not None
    # Batches are formed alike, but threads may add up in another order.
    assert measured(tmp_path / "e.json")["metrics"] == pytest.approx(expected.metrics, abs=1e-6)
    lines = out.splitlines()
    assert lines[0].split() == ["value", "95%", "interval", "images", "classes"]
    assert lines[1].split()[:2] == ["top-1", f"{expected.metrics['top1']:.3f}"]
    assert all(line.split()[-2:] == ["30", "6"] for line in lines[1:])
    assert lines[2].startswith("top-5")
    assert "zero-shot classification into 6 classes (" in err
    assert "--task retrieval measures retrieval instead" in err


def test_top_5_of_two_classes_is_not_printed_and_the_page_shows_the_classes(
    data: Path, tiny_folder: Path, tmp_path: Path, clipkit: Run
) -> None:
    page = tmp_path / "page.html"
    result = clipkit("eval", tiny_folder, data / "few", "--workers", 0, "--html", page)
    assert result.returncode == 0, result.stderr
    assert "top-1" in result.stdout
    assert "top-5" not in result.stdout
    assert "guessing is right in 50.0%" in result.stderr
    html = page.read_text()
    assert "Results of few" in html
    assert "Confusion, few" in html


def test_captions_mean_retrieval_and_the_other_is_named(
    data: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_shard(tmp_path / "a.tar", [(png_bytes(noise_image(i)), f"{i}") for i in range(4)])
    command = ["eval", str(tiny_folder)]
    assert main([*command, str(shard), "--workers", "0"]) == 0
    out, err = capsys.readouterr()
    assert "text → image" in out
    assert "--task zero_shot measures classification instead" in err
    assert main([*command, str(data / "table.csv"), "--task", "retrieval"]) == 3
    assert "none of its columns looks like the caption" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--caption", "x", "--label", "y"], 2, "--caption: goes with --task retrieval"),
        (["--task", "retrieval", "--label", "x"], 2, "--label: goes with --task zero_shot"),
        (["--class-names", "gone.txt"], 3, "gone.txt: class_names cannot be read"),
        (["--class-names", "names.txt"], 2, "there are 6, and 2 folders with images"),
        (["--templates", "fotos"], 2, "did you mean photo?"),
    ],
)
def test_mistakes_end_in_one_line(
    data: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(data)
    (data / "other" / "ibis").mkdir(parents=True, exist_ok=True)
    source = "few" if "names.txt" not in arguments else "ibises"
    for name in ("ibis", "emu"):
        (data / "ibises" / name).mkdir(parents=True, exist_ok=True)
        noise_image(1).save(data / "ibises" / name / "a.png")
    assert main(["eval", str(tiny_folder), source, *arguments]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_classes_called_by_numbers_are_said(
    data: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tiny_folder), str(data / "numbers.tar"), "--workers", "0"]) == 0
    assert "called by numbers (0, 1, 2" in capsys.readouterr().err


def test_classes_that_the_tokenizer_does_not_tell_apart_are_said(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        path = tmp_path / "classes" / f"{i}"
        path.mkdir(parents=True)
        noise_image(i).save(path / "a.png")
    names = tmp_path / "names.txt"
    names.write_text("big dog\nCat\nCAT\nhouse\n")
    command = ["eval", str(tiny_folder), str(tmp_path / "classes"), "--workers", "0"]
    assert main([*command, "--class-names", str(names), "--templates", "photo"]) == 0
    said = capsys.readouterr().err
    assert "2 of 4 classes have the same tokens as another" in said
    assert "is right: Cat, CAT" in said
    names.write_text("big dog\ncat\nred\nhouse\n")
    assert main([*command, "--class-names", str(names)]) == 0
    assert "the same tokens" not in capsys.readouterr().err

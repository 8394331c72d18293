"""``clipkit data check``, through the command line: what it counts, and its exit codes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Run, remarks
from sample_files import encoded, pair_members, photo, write_tar

from clipkit.cli import main
from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.data.check import check_source
from clipkit.data.tokenize import train_tokenizer


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten good pairs of which two repeat others, and four bad ones."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.jpg").write_bytes(encoded(photo(40 + i, 30, seed=i)))
        (folder / f"{i}.txt").write_text(f"caption number {i}")
    (folder / "8.jpg").write_bytes((folder / "0.jpg").read_bytes())
    (folder / "8.txt").write_text("  caption  number 1\n")
    (folder / "9.png").write_bytes(encoded(photo(100, 90), "PNG"))
    (folder / "9.txt").write_text("<script>alert(1)</script>")
    (folder / "bad0.jpg").write_bytes((folder / "1.jpg").read_bytes()[:-300])
    (folder / "bad1.jpg").write_bytes(b"<html>not found</html>")
    (folder / "bad2.jpg").write_bytes((folder / "2.jpg").read_bytes())
    (folder / "bad3.jpg").write_bytes(b"")
    for i, text in enumerate(["cut", "page", " \n", "nothing"]):
        (folder / f"bad{i}.txt").write_text(text)
    (folder / "alone.jpg").write_bytes(b"x")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_findings_are_the_same_with_any_workers(photos: Path, workers: int) -> None:
    done: list[int] = []
    found = check_source(
        open_source(SourceConfig(path=str(photos))), workers=workers, advance=done.append
    )
    assert (found.samples, len(found.rows), sum(done)) == (14, 10, 14)
    assert found.formats == {"JPEG": 9, "PNG": 1}
    assert found.sizes.tolist() == [*([40 + i, 30] for i in range(8)), [40, 30], [100, 90]]
    assert found.characters.tolist() == [16] * 9 + [25]
    assert {reason: fault.count for reason, fault in found.bad.items()} == {
        "truncated image": 1,
        "HTML, not an image": 1,
        "empty caption": 1,
        "empty file": 1,
    }
    assert found.bad["empty caption"].examples == [str(photos / "bad2.jpg")]
    # The image of row 0 stands in row 8 with another caption: it has two, and is no duplicate.
    assert (found.same_samples.extra, found.same_samples.examples) == (0, [])
    assert (found.other_captions.extra, found.other_captions.examples) == (1, [(2, 0, 8)])
    assert sorted(found.an_image.tolist()) == [*[1] * 8, 2]
    assert (found.same_captions.extra, found.same_captions.examples) == (1, [(2, 1, 8)])


def test_many_repeats_are_counted_as_a_dictionary_would(tmp_path: Path) -> None:
    picked = np.random.default_rng(0).integers(0, 40, 300)
    images = [encoded(photo(8, 8, seed=i), "PNG") for i in range(40)]
    members = []
    for i, number in enumerate(picked):
        members += [
            (f"{i:03d}.png", images[number]),
            (f"{i:03d}.txt", f"text {number % 7}".encode()),
        ]
    reader = open_source(SourceConfig(path=str(write_tar(tmp_path / "a.tar", members))))
    found = check_source(reader, workers=0)
    hashes = [hashlib.sha256(images[number]).digest() for number in picked]
    assert found.same_samples.extra == 300 - len(set(hashes))
    assert found.other_captions.extra == 0
    assert found.an_image.tolist() == [1] * len(set(hashes))
    assert found.same_captions.extra == 300 - 7
    copies = np.bincount(picked)
    assert [example[0] for example in found.same_samples.examples] == sorted(copies)[::-1][:3]
    for count, first, second in found.same_samples.examples:
        rows = np.flatnonzero(picked == picked[first])
        assert (count, first, second) == (len(rows), *rows[:2])


def test_the_real_command_line_prints_tables_and_a_page(
    clipkit: Run, photos: Path, tmp_path: Path
) -> None:
    train_tokenizer(["caption number"] * 9, vocab_size=600, context_length=8).save_pretrained(
        tmp_path / "tokenizer"
    )
    done = clipkit(
        "data", "check", "photos", "--tokenizer", "tokenizer", "--workers", 1,
        "--html", "page.html", cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, remarks(done.stderr)) == (
        0,
        [
            "clipkit: the page is page.html",
            "clipkit: photos: 5 of 15 samples (33.3%) cannot be used (1 no caption, 1 truncated "
            "image, 1 HTML, not an image, 1 empty caption)",
        ],
    )
    lines = [re.split(r"  +", line) for line in done.stdout.splitlines()]
    for expected in (
        ["samples", "14"],
        ["usable", "10 (71.4%)"],
        ["formats", "9 JPEG, 1 PNG"],
        ["width, pixels", "40", "44", "100"],
        ["caption, characters", "16", "16", "25"],
        ["captions longer than 8 tokens", "1 (10.0%)"],
        ["truncated image", "1", "7.1%", "photos/bad0.jpg"],
        ["different images", "9"],
        ["captions", "10"],
        ["captions an image", "1", "1", "2"],
        ["image and captions", "0", "0.0%"],
        [
            "rows with the image of an earlier one",
            "1",
            "10.0%",
            "2 × photos/0.jpg = photos/8.jpg",
        ],
        ["captions", "1", "10.0%", '2 × "caption number 1"'],
        ["no caption", "1"],
    ):
        assert expected in lines, done.stdout
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/webp;base64,") == 10
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"""(src|href)=(?!"data:)|url\(|https?:""", page)


def test_a_damaged_shard_is_exit_3_after_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_tar(tmp_path / "whole.tar", pair_members(20)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) * 2 // 3])
    assert main(["data", "check", str(tmp_path / "cut.tar"), "--workers", "0"]) == 3
    out, err = capsys.readouterr()
    assert "samples" in out
    assert "cut.tar: it " in out
    assert "damaged at 1 place(s)" in err.splitlines()[-1]


def test_images_alone_and_mistakes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "check", str(photos), "--workers", "0"]
    assert main([*command, "--caption", "none"]) == 0
    out = capsys.readouterr().out
    assert "caption, characters" not in out
    assert "2 × " in out
    (tmp_path / "empty").mkdir()
    for arguments, code, message in (
        ([str(tmp_path / "nothing")], 3, "nothing: no such file or folder"),
        ([str(tmp_path / "empty")], 3, "the folder is empty"),
        ([str(photos), "--tokenizer", str(tmp_path / "empty")], 4, "empty"),
        ([str(photos), "--html", str(tmp_path / "no/page.html")], 4, "cannot be written"),
    ):
        assert main(["data", "check", *arguments, "--workers", "0"]) == code, arguments
        err = capsys.readouterr().err
        assert len(remarks(err)) == 1, err
        assert message in err


@pytest.mark.parametrize("a_row", [1, 5])
def test_all_captions_are_counted_in_one_row_or_in_five(
    a_row: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(photo(8, 8, seed=i), "PNG"))
        texts = [f"view {k} of thing {i}{' that is long' * k}" for k in range(5)]
        for begin in range(0, 5, a_row):
            part = texts[begin : begin + a_row]
            lines.append(json.dumps({"image": f"{i}.png", "caption": part}))
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    command = ["data", "check", str(tmp_path / "t.jsonl"), "--workers", "0"]
    assert main(command) == 0
    out = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    for expected in (
        ["different images", "6"],
        ["captions", "30"],
        ["captions an image", "5", "5", "5"],
        ["caption, characters", "17", "43", "69"],
        ["image and captions", "0", "0.0%"],
    ):
        assert expected in out


def test_a_source_of_which_nothing_is_usable_is_exit_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"<html>gone</html>")
        (tmp_path / f"{i}.txt").write_text(f"caption {i}")
    assert main(["data", "check", str(tmp_path), "--workers", "0"]) == 3
    out, err = capsys.readouterr()
    assert "usable" in out
    assert "not one of 3 samples can be used (3 HTML, not an image)" in err

"""``clipkit data pack``: what goes in comes out, and a kill costs nothing but time."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, Run, remarks
from PIL import Image
from sample_files import encoded, pair_members, photo, write_shards, write_tar

from clipkit.cli import main
from clipkit.config.schema import SourceConfig
from clipkit.data import open_source


def _pairs(path: Path | str) -> list[tuple[bytes | None, str | None]]:
    reader = open_source(SourceConfig(path=str(path)), progress=False)
    assert reader.damage == []
    return [(reader[row].image, reader[row].caption) for row in range(len(reader))]


def _contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def _write_source(kind: str, folder: Path) -> str:
    folder.mkdir()
    if kind == "tar":
        return write_shards(folder, [7, 5])
    captions = {}
    for i, format in enumerate(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"] * 2):
        name = f"{i:02d}.{format.lower()}"
        (folder / name).write_bytes(encoded(photo(30 + i, 20, seed=i), format))
        captions[name] = f'a "caption", ünï {i} 🎈'
    if kind == "folder":
        for name, caption in captions.items():
            (folder / name).with_suffix(".txt").write_text(caption)
        return str(folder)
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "licence"])
        writer.writerows([name, caption, "CC0"] for name, caption in captions.items())
    return str(folder / "pairs.csv")


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
@pytest.mark.parametrize("kind", ["folder", "csv", "tar"])
def test_what_goes_in_comes_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, format: str
) -> None:
    source, out = _write_source(kind, tmp_path / "in"), tmp_path / "out"
    command = ["data", "pack", source, str(out), "--format", format, "--shard-size", "5kB"]
    assert main([*command, "--workers", "0"]) == 0
    assert "12 samples in " in capsys.readouterr().out
    indexes = len(list(out.glob("*.clipkit-index.npz")))
    assert indexes == (len(list(out.glob("*.tar"))) if format == "webdataset" else 0)
    assert _pairs(out) == _pairs(source)
    sizes = json.loads((out / "sizes.json").read_text())
    assert sum(shard["samples"] for shard in sizes.values()) == 12
    assert len(sizes) > 1
    for name, shard in sizes.items():
        data = (out / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert set(_contents(out)) == {*sizes, "README.md", "sizes.json"}


def test_names_headers_and_metadata_of_a_tar(tmp_path: Path) -> None:
    source, out = _write_source("csv", tmp_path / "in"), tmp_path / "out"
    assert main(["data", "pack", source, str(out), "--workers", "0"]) == 0
    with tarfile.open(out / "shard-000000.tar") as tar:
        members = tar.getmembers()
        fields = json.load(tar.extractfile("000000002.json"))
    assert [m.name for m in members][6:12] == [
        *("000000002.webp", "000000002.txt", "000000002.json"),
        *("000000003.gif", "000000003.txt", "000000003.json"),
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
    assert (fields["licence"], fields["key"]) == ("CC0", "02.webp")


def test_resize_makes_larger_images_smaller_and_keeps_the_others(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    large = encoded(photo(90, 60), exif=turned)
    small = encoded(photo(50, 32), "PNG")
    members = [("a.jpg", large), ("a.txt", b"a"), ("b.png", small), ("b.txt", b"b")]
    source, out = write_tar(tmp_path / "a.tar", members), tmp_path / "out"
    command = ["data", "pack", str(source), str(out), "--resize", "32", "--workers", "0"]
    assert main(command) == 0
    reader = open_source(SourceConfig(path=str(out)))
    assert reader[1].image == small
    (out / "large.jpg").write_bytes(reader[0].image or b"")
    with Image.open(out / "large.jpg") as image:
        assert (image.format, image.size, image.getexif().get(0x0112)) == ("JPEG", (32, 48), None)


def test_bad_samples_are_left_out_and_counted_also_the_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = pair_members(6)
    members[2] = (members[2][0], members[2][1][:-300])
    members[7] = (members[7][0], b" ")
    source, out = write_tar(tmp_path / "a.tar", members), tmp_path / "out"
    command = ["data", "pack", str(source), str(out), "--shard-size", "1", "--workers", "0"]
    for again in (False, True):
        assert main(command) == 0
        stdout, err = capsys.readouterr()
        assert "4 samples in 5 shards" in stdout
        assert "left out 1 × truncated image" in err
        assert "left out 1: 1 empty caption" in err
        assert ("a.tar, sample 0001" in err) is not again
        assert ("5 of 5 shards were there already" in err) is again
    assert [row.image for row in open_source(SourceConfig(path=str(out)))] == [
        data
        for name, data in members
        if name[:4] in ("0000", "0002", "0004", "0005") and "jpg" in name
    ]


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(clipkit: Run, tmp_path: Path) -> None:
    source = write_tar(tmp_path / "a.tar", pair_members(600))
    command = ["data", "pack", source, "--shard-size", "60kB", "--resize", "20", "--workers", "2"]
    done = clipkit(*command[:3], tmp_path / "whole", *command[3:])
    # A slow machine shows progress.
    said = [line for line in remarks(done.stderr) if not line.startswith("pack: ")]
    assert (done.returncode, said) == (0, []), done.stderr
    expected = _contents(tmp_path / "whole")
    out = tmp_path / "killed"
    again = [*command[:3], out, *command[3:]]
    kills = 0
    for wait_for in (2, 6):
        process = subprocess.Popen(
            [sys.executable, "-m", "clipkit", *map(str, again)],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
        )
        while process.poll() is None and len(list(out.glob("shard-*.tar"))) < wait_for:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert process.stderr is not None
        process.stderr.close()
        there = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.glob("*.tar")}
        assert there.items() <= expected.items()  # no half shard has a shard's name
        assert len(there) < len(expected) - 2
    assert kills == 2
    done = clipkit(*again)
    assert done.returncode == 0
    assert "shards were there already" in done.stderr
    assert _contents(out) == expected
    (out / "shard-000003.tar").unlink()  # what is lost later is written again
    assert clipkit(*again).returncode == 0
    assert _contents(out) == expected


def test_mistakes_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_tar(tmp_path / "in/a.tar", pair_members(4))
    out, other = tmp_path / "out", tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    base = ["data", "pack", "--workers", "0"]
    assert main([*base, str(source), str(out)]) == 0
    capsys.readouterr()
    changed = write_tar(tmp_path / "b.tar", pair_members(5))
    empty = write_tar(tmp_path / "c.tar", [("a.jpg", b""), ("a.txt", b"a")])
    for arguments, code, message in (
        ([tmp_path / "nothing", tmp_path / "new"], 3, "no such file or folder"),
        ([tmp_path / "in", tmp_path / "in/packed"], 2, "is inside the source"),
        ([tmp_path / "in", tmp_path / "in"], 2, "is inside the source"),
        ([source, tmp_path / "in"], 4, "is not empty"),
        ([source, other], 4, "is not empty"),
        ([source, other / "file"], 4, "is a file"),
        ([source, other / "file/out"], 4, "file"),
        ([source, "/proc/out"], 4, "/proc/out: "),
        ([source, out, "--resize", "9"], 4, "made with resize None, not 9"),
        ([source, out, "--format", "parquet"], 4, "made with format webdataset, not parquet"),
        ([changed, out], 4, "of another source"),
        ([source, tmp_path / "new", "--quality", "9"], 2, "--resize"),
        ([empty, tmp_path / "empty"], 3, "no sample can be used (1 × empty file)"),
    ):
        assert main([*base, *map(str, arguments)]) == code, arguments
        stdout, err = capsys.readouterr()
        assert (stdout, len(remarks(err))) == ("", 1), err
        assert message in err
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit, match="2"):
        main([*base, str(source), str(out), "--shard-size", "many"])
    assert "'many' is not a size" in capsys.readouterr().err

"""Which members of a tar are one sample, where names come again, hold dots, or are links."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from command_line import Run
from sample_files import encoded, photo, write_tar

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, open_source
from clipkit.data.tar_samples import UNCLEAR
from clipkit.errors import DataError


def image(number: int) -> bytes:
    return encoded(photo(24 + number, 24))


NUMBERS = {image(number): number for number in range(12)}


def opened(path: Path | str, **options: object) -> Reader:
    return open_source(SourceConfig(path=str(path), **options), progress=False)  # type: ignore[arg-type]


def shown(reader: Reader) -> list[tuple[int, str | None]]:
    """The number of each row's image, and its caption."""
    return [(NUMBERS[reader[row].image or b""], reader[row].caption) for row in range(len(reader))]


def write(path: Path, members: str) -> Path:
    """``a.jpg:1 a.txt:1`` → members a.jpg, showing image 1, and a.txt, saying ``1``."""
    made = []
    for member in members.split():
        name, _, number = member.partition(":")
        data = image(int(number)) if name.endswith(("jpg", "png")) else number.encode()
        made.append((name, data))
    return write_tar(path, made)


def right(*numbers: int) -> list[tuple[int, str]]:
    return [(number, str(number)) for number in numbers]


# Members, the numbers of the pairs that must come out, samples that cannot be told.
PAIRS = {
    "by name": ("a.jpg:1 a.txt:1 b.jpg:2 b.txt:2", [1, 2], 0),
    "by extension": ("a.jpg:1 b.jpg:2 a.txt:1 b.txt:2", [1, 2], 0),
    "whole again": ("a.jpg:1 a.txt:1 b.jpg:2 b.txt:2 a.jpg:3 a.txt:3", [1, 2, 3], 0),
    "whole again, the other way": ("a.jpg:1 a.txt:1 a.txt:3 a.jpg:3", [1, 3], 0),
    "whole again, one without fields": ("a.jpg:1 a.json:1 a.txt:1 a.jpg:3 a.txt:3", [1, 3], 0),
    "by extension, twice": ("a.jpg:1 b.jpg:2 a.jpg:3 b.jpg:4 a.txt:1 b.txt:2 a.txt:3 b.txt:4",
                            [1, 2, 3, 4], 0),
    "captions first": ("a.txt:1 b.txt:2 a.txt:3 a.jpg:1 b.jpg:2 a.jpg:3", [1, 2, 3], 0),
    "one caption for two images": ("a.jpg:1 b.jpg:2 a.jpg:3 a.txt:3 b.txt:2", [2], 2),
    "two captions, one image, others twice": (
        "a.jpg:1 b.jpg:2 b.jpg:3 a.txt:1 a.txt:9 b.txt:2 b.txt:3", [2, 3], 2),
    "jpg here, png there": ("a.jpg:1 a.png:2 a.txt:1 a.txt:2 b.jpg:3 b.txt:3", [3], 2),
    "fields of one only, apart": (
        "a.jpg:1 b.jpg:2 a.json:1 a.txt:1 b.txt:2 a.jpg:3 b.jpg:4 a.txt:3 b.txt:4",
        [2, 4], 2),
    "a caption again": ("a.jpg:1 a.txt:9 b.jpg:2 b.txt:2 a.txt:1", [1, 2], 0),
    "a caption twice again": ("a.jpg:1 b.jpg:2 a.txt:8 b.txt:2 a.txt:9 a.txt:1", [1, 2], 0),
    "an image again": ("a.jpg:9 a.txt:1 b.jpg:2 b.txt:2 a.jpg:1", [1, 2], 0),
    "with and without ./": ("./a.jpg:1 ./a.txt:9 b.jpg:2 b.txt:2 a.txt:1", [1, 2], 0),
    "part of a sample that is there whole": (
        "a.jpg:1 a.txt:1 b.jpg:2 b.txt:2 a.jpg:3 a.txt:3 b.jpg:4", [1, 3], 2),
    "dots": ("v1.0.jpg:1 v1.0.txt:1 v1.3.jpg:2 v1.3.txt:2 b.jpg:3 b.txt:3", [1, 2, 3], 0),
    "dots, by extension": ("v1.0.jpg:1 v1.3.jpg:2 v1.0.txt:1 v1.3.txt:2", [1, 2], 0),
    "dots, a caption again": ("v1.0.jpg:1 v1.0.txt:9 v1.3.jpg:2 v1.3.txt:2 v1.0.txt:1", [1, 2], 0),
    "many dots": ("2019.05.03.jpg:1 2019.05.03.txt:1 2019.05.04.jpg:2 2019.05.04.txt:2", [1, 2], 0),
    "kinds of image": ("a.jpg:1 a.seg.png:9 a.txt:1 b.seg.png:9 b.jpg:2 b.txt:2", [1, 2], 0),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_members_are_never_paired_across_samples(tmp_path: Path, case: str) -> None:
    members, numbers, unclear = PAIRS[case]
    reader = opened(write(tmp_path / "x.tar", members))
    assert sorted(shown(reader)) == right(*numbers)
    assert reader.dropped.get(UNCLEAR, 0) == unclear
    assert not reader.damage


def test_what_was_done_about_names_is_said(tmp_path: Path) -> None:
    def notes(members: str) -> list[str]:
        path = write(tmp_path / "x.tar", members)
        return list(opened(path).understood.notes)

    assert notes("a.jpg:1 a.txt:1") == []
    assert notes("a.jpg:1 a.txt:9 a.txt:1") == ["1 member replaced by a later one of its name"]
    assert notes("a.jpg:1 a.txt:1 a.jpg:2 a.txt:2") == ["1 sample has the key of an earlier one"]
    assert notes("a.1.jpg:1 a.1.txt:1 a.2.jpg:2 a.2.txt:2") == [
        "2 keys hold dots and go up to the last"
    ]


def test_extensions_with_dots_are_found_where_they_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", "a.left.jpg:1 a.left.txt:1 b.left.jpg:2 b.left.txt:2")
    assert shown(opened(path)) == right(1, 2)
    assert opened(path)[0].key == "a.left"
    named = opened(path, image="left.jpg", caption="left.txt")
    assert shown(named) == right(1, 2)
    assert named[0].key == "a"
    assert not named.understood.notes
    several = write(tmp_path / "y.tar", "a.left.png:1 a.right.png:2 a.txt:1")
    with pytest.raises(DataError, match=r"\.left\.png \(1\), \.right\.png \(1\)"):
        opened(several)


def test_archives_end_to_end_are_read_one_by_one(tmp_path: Path) -> None:
    parts = []
    for number, zeros in enumerate((1024, 3072, 10_240)):
        data = write(tmp_path / "x.tar", f"a.jpg:{number} a.txt:{number} b.txt:9").read_bytes()
        end = len(data.rstrip(b"\0"))
        parts.append(data[: end + -end % 512] + bytes(zeros))
    path = tmp_path / "x.tar"
    path.write_bytes(b"".join(parts))
    reader = opened(path)
    assert shown(reader) == right(0, 1, 2)
    assert (reader.damage, reader.lost) == ([], 0)
    assert reader.dropped == {"no image": 3}
    assert reader.understood.notes == ["1 tar holds several archives end to end"]


def test_zeros_in_the_middle_of_an_archive_are_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", " ".join(f"{n}.jpg:{n} {n}.txt:{n}" for n in range(12)))
    data = bytearray(path.read_bytes())
    data[3_100:7_000] = bytes(3_900)
    path.write_bytes(data)
    reader = opened(path)
    assert reader.damage
    assert reader.lost > 0


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
def test_tar_r_corrects_a_caption(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(image(number))
        (tmp_path / f"{number}.txt").write_text(str(number))
    names = sorted(path.name for path in tmp_path.iterdir())
    subprocess.run(["tar", "-cf", "x.tar", *names], cwd=tmp_path, check=True)
    (tmp_path / "2.txt").write_text("corrected")
    subprocess.run(["tar", "-rf", "x.tar", "2.txt"], cwd=tmp_path, check=True)
    reader = opened(tmp_path / "x.tar")
    assert shown(reader) == [(0, "0"), (1, "1"), (2, "corrected"), (3, "3")]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
def test_a_corrected_caption_is_not_paired_with_an_image_of_an_appended_tar(tmp_path: Path) -> None:
    write(tmp_path / "x.tar", "a.jpg:1 a.txt:1 b.jpg:2 b.txt:2 a.txt:11")
    write(tmp_path / "y.tar", "a.jpg:3 a.txt:3 b.jpg:4 b.txt:4 a.jpg:5")
    subprocess.run(["tar", "-A", "-f", "x.tar", "y.tar"], cwd=tmp_path, check=True)
    reader = opened(tmp_path / "x.tar")
    assert shown(reader) == right(2, 4)
    assert reader.dropped == {UNCLEAR: 3}


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_hard_links_are_followed_and_other_members_counted(tmp_path: Path, format: int) -> None:
    long = "a/" + "x" * 120 + ".jpg"
    with tarfile.open(tmp_path / "x.tar", "w", format=format) as tar:
        for name, data in ((long, image(1)), (long[:-3] + "txt", b"1"), ("b.txt", b"1"),
                           ("e.txt", b"1")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, target in (
            ("b.jpg", tarfile.LNKTYPE, "./" + long),
            ("e.jpg", tarfile.LNKTYPE, "b.jpg"),  # a link to a link
            ("c.jpg", tarfile.LNKTYPE, "not-there.jpg"),
            ("d.jpg", tarfile.SYMTYPE, long),
            ("folder", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
        for name in ("README", "e.pkl", ".hidden.jpg", "f.pkl"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    reader = opened(tmp_path / "x.tar")
    assert shown(reader) == right(1, 1, 1)
    assert dict(reader.understood.unused) == {
        "hard link to a file that is not in the tar": 1,
        "symbolic link": 1,
        "file without an extension": 1,
        "hidden file": 1,
        "member .pkl": 2,
    }


def test_empty_captions_are_left_out_before_the_run(tmp_path: Path) -> None:
    texts = [b"1", b"", b" \n", b"\xef\xbb\xbf\r\n", "\u3000".encode(), b"2", b"  3 "]
    members = [
        member
        for number, text in enumerate(texts)
        for member in ((f"{number}.jpg", image(number)), (f"{number}.txt", text))
    ]
    reader = opened(write_tar(tmp_path / "x.tar", members))
    assert [caption for _, caption in shown(reader)] == ["1", "2", "  3 "]
    assert reader.dropped == {"empty caption": 4}
    assert len(opened(tmp_path / "x.tar", caption="none")) == 7


def test_one_text_beside_many_fields_is_not_the_caption(tmp_path: Path) -> None:
    members = [("README.jpg", image(0)), ("README.txt", b"about")]
    for number in range(1, 6):
        fields = b'{"caption": "%d"}' % number if number > 1 else b'{"caption": null}'
        members += [(f"{number}.jpg", image(number)), (f"{number}.json", fields)]
    reader = opened(write_tar(tmp_path / "x.tar", members))
    assert shown(reader) == right(2, 3, 4, 5)
    assert reader.dropped == {"no caption": 1, "empty caption": 1}
    assert reader.understood.captions == "members json.caption"
    assert list(reader.understood.also) == [".txt"]


def test_the_first_shard_says_where_the_captions_are(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", "a.jpg:1 a.txt:1")
    write_tar(tmp_path / "1.tar", [("b.jpg", image(2)), ("b.json", b'{"caption": "other"}')])
    reader = opened(tmp_path)
    assert shown(reader) == right(1)
    assert reader.dropped == {"no caption": 1}


def test_a_compressed_file_called_tar_is_named_with_the_command(
    clipkit: Run, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.tar", "a.jpg:1 a.txt:1")
    path.write_bytes(gzip.compress(path.read_bytes()))
    done = clipkit("data", "check", path)
    assert done.returncode == 3
    assert f"{path}: is compressed with gzip" in done.stderr
    assert "gunzip -c x.tar > x-plain.tar" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_field_that_no_json_has_is_told_and_the_others_are_named(tmp_path: Path) -> None:
    fields = (("a.jpg", image(1)), ("a.json", b'{"title": "T", "words": "one"}'))
    path = write_tar(tmp_path / "x.tar", list(fields))
    (note,) = opened(path, caption="json.nix").understood.notes
    assert "has a field 'nix'; their fields are title, words" in note
    assert opened(path, caption="json.words")[0].caption == "one"

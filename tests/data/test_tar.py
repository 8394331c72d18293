"""The tar listing: tarfile's names and places, and every kind of damage named."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from sample_files import write_tar

from clipkit.data.tar import list_tar


def listing(data: bytes):
    return list_tar(lambda offset, size: data[offset : offset + size], len(data), lambda _: None)


def contents(data: bytes) -> dict[str, bytes]:
    return {n.decode(): data[at : at + size] for n, at, size in listing(data).members}


LONG = "folder/" * 30 + "x" * 80 + ".jpg"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_listing_equals_tarfile(tmp_path, format):
    names = ["a.txt", "./b/c.jpg", "d" * 60 + "/" + "e" * 90 + ".txt", "f.empty"]
    if format != tarfile.USTAR_FORMAT:
        names += [LONG, "ünï-图.txt"]
    rng = np.random.default_rng(0)
    members = [(name, rng.bytes(int(rng.integers(0, 3000)))) for name in names]
    members[3] = ("f.empty", b"")
    data = write_tar(tmp_path / "x.tar", members, format).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name.encode(), m.offset_data, m.size) for m in tar]
    assert listing(data).members == expected
    assert contents(data) == dict(members)
    assert not listing(data).damage


def test_only_plain_files_are_listed():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in [
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("device.jpg", tarfile.CHRTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
            ("folder", tarfile.DIRTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("real.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert contents(buffer.getvalue()) == {"real.jpg": b"abc"}


def test_a_member_beyond_eight_gigabytes_is_found():
    # GNU writes such sizes in base 256, pax as a record; only the headers are looked at.
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("huge.bin")
        info.size = 9 * 2**30
        header = info.tobuf(format)
        size = len(header) + info.size + 1024
        listed = list_tar(
            lambda at, n, h=header, s=size: (
                h + bytes(max(0, n - len(h))) if at == 0 else bytes(max(0, min(n, s - at)))
            ),
            size,
            lambda _: None,
        )
        assert listed.members == [(b"huge.bin", len(header), 9 * 2**30)]
        assert not listed.damage


def cut_places(data: bytes) -> dict[str, tuple[bytes, int, str]]:
    """Kind of damage → (bytes, members before it, what is said)."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = list(tar)
    third = members[2]
    at = third.offset
    return {
        "inside data": (data[: third.offset_data + 100], 2, "cut short at byte"),
        "at a member's edge": (data[:at], 2, "without an end mark"),
        "inside a header": (data[: at + 100], 2, "cut short inside a header"),
        "zero blocks": (data[:at] + bytes(len(data) - at), 2, "behind an end mark"),
        "garbage blocks": (
            data[:at] + np.random.default_rng(0).bytes(len(data) - at),
            2,
            "no valid header",
        ),
    }


@pytest.mark.parametrize(
    "kind",
    ["inside data", "at a member's edge", "inside a header", "zero blocks", "garbage blocks"],
)
def test_damage_is_named_and_what_stands_before_it_kept(tmp_path, kind):
    members = [(f"{i}.jpg", bytes([i]) * 30_000) for i in range(6)]
    whole = write_tar(tmp_path / "x.tar", members).read_bytes()
    data, kept, said = cut_places(whole)[kind]
    found = listing(data)
    assert [name.decode() for name, _, _ in found.members] == [f"{i}.jpg" for i in range(kept)]
    assert len(found.damage) == 1
    assert said in found.damage[0]
    assert contents(data)["1.jpg"] == members[1][1]


def test_what_stands_behind_a_damage_is_kept(tmp_path):
    members = [(f"{i}.jpg", bytes([i]) * 30_000) for i in range(6)]
    whole = write_tar(tmp_path / "x.tar", members).read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        third, fourth = list(tar)[2:4]
    garbage = np.random.default_rng(0).bytes(7_000)
    cases = {
        "a header overwritten": (
            whole[: third.offset] + garbage[:512],
            whole[third.offset + 512 :],
        ),
        "a stretch overwritten": (
            whole[: third.offset_data] + garbage,
            whole[third.offset_data + 7_000 :],
        ),
        "bytes missing": (whole[: third.offset_data + 99], whole[third.offset_data + 1000 :]),
        "bytes too many": (whole[: fourth.offset] + garbage, whole[fourth.offset :]),
        "an end mark in the middle": (whole[: fourth.offset] + bytes(1024), whole[fourth.offset :]),
    }
    kept = {
        "a header overwritten": [0, 1, 3, 4, 5],
        "a stretch overwritten": [0, 1, 2, 3, 4, 5],  # found by its picture, not by the tar
        "bytes missing": [0, 1, 3, 4, 5],
        "bytes too many": [0, 1, 2, 3, 4, 5],
        "an end mark in the middle": [0, 1, 2, 3, 4, 5],
    }
    for case, (before, after) in cases.items():
        found = listing(before + after)
        names = [name.decode() for name, _, _ in found.members]
        assert names == [f"{i}.jpg" for i in kept[case]], case
        harmless = ("a stretch overwritten", "an end mark in the middle")
        assert bool(found.damage) == (case not in harmless), case
        assert contents(before + after)["5.jpg"] == members[5][1], case


def test_two_archives_laid_end_to_end_are_both_read(tmp_path):
    first = write_tar(tmp_path / "x.tar", [("0.txt", b"a")]).read_bytes()
    second = write_tar(tmp_path / "y.tar", [("1.txt", b"b")]).read_bytes()
    assert contents(first + second) == {"0.txt": b"a", "1.txt": b"b"}


def test_the_whole_file_is_accounted_for_in_progress(tmp_path):
    data = write_tar(tmp_path / "x.tar", [(f"{i}", bytes(2**19)) for i in range(9)]).read_bytes()
    steps: list[int] = []
    list_tar(lambda at, n: data[at : at + n], len(data), steps.append)
    assert sum(steps) == len(data)
    assert len(steps) > 2

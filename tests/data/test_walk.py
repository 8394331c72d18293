"""files.walk: links to folders are followed, each real folder once."""

from __future__ import annotations

import os

import pytest

from clipkit.data.files import walk


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_links_to_folders_are_followed(tmp_path):
    other = write(tmp_path / "other", "deep/1.jpg", "2.jpg")
    folder = write(tmp_path / "photos", "0.jpg", "real/3.jpg")
    (folder / "linked").symlink_to(other)
    (folder / "one.jpg").symlink_to(other / "2.jpg")
    assert walk(str(folder)) == [
        *("0.jpg", "linked/2.jpg", "linked/deep/1.jpg", "one.jpg", "real/3.jpg"),
    ]
    (tmp_path / "all").symlink_to(folder)
    assert walk(str(tmp_path / "all")) == walk(str(folder))


def test_each_real_folder_is_read_once_by_its_own_name(tmp_path):
    folder = write(tmp_path / "photos", "real/cat/1.jpg", "real/dog/2.jpg")
    (folder / "a_link").symlink_to("real")  # before it in the alphabet
    (folder / "z_link").symlink_to(folder / "real" / "cat")
    assert walk(str(folder)) == ["real/cat/1.jpg", "real/dog/2.jpg"]


def test_links_that_lead_in_a_circle_or_above_end(tmp_path):
    folder = write(tmp_path / "photos", "cat/1.jpg")
    write(tmp_path, "beside/2.jpg")
    (folder / "cat" / "back").symlink_to(folder)
    (folder / "above").symlink_to(tmp_path)
    (folder / "itself").symlink_to("itself")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    # A link that leads nowhere is a file that cannot be read, and is told as one.
    assert walk(str(folder)) == ["cat/1.jpg", "gone", "itself"]


def test_a_folder_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    folder = write(tmp_path / "photos", "a/1.jpg", "closed/2.jpg")
    scan = os.scandir

    def refuse(path):  # whoever runs the tests may be allowed everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.warns(UserWarning, match=r"closed: the folder cannot be read \(Permission denied"):
        assert walk(str(folder)) == ["a/1.jpg"]

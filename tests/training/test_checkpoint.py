from __future__ import annotations

import errno
from pathlib import Path

import pytest

from clipkit.errors import CheckpointError
from clipkit.training.checkpoint import find_checkpoint, save_checkpoint


def _write(text: str):  # type: ignore[no-untyped-def]
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(text)
        (folder / "state.json").write_text("{}")

    return write


def test_the_newest_checkpoints_are_kept_and_found(tmp_path: Path) -> None:
    for step in (5, 10, 15, 100000000):
        save_checkpoint(tmp_path, step, _write(str(step)), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000015", "step-100000000"]
    assert (tmp_path / "latest").read_text().strip() == "step-100000000"
    assert find_checkpoint(tmp_path) == (tmp_path / "step-100000000", [])


def test_a_damaged_newer_one_pushes_no_good_one_out(tmp_path: Path) -> None:
    for step in (10, 12):
        save_checkpoint(tmp_path, step, _write(str(step)), keep=2)
    (tmp_path / "step-000012" / "state.json").write_text("damaged")
    save_checkpoint(tmp_path, 11, _write("eleven"), keep=1)
    found, damaged = find_checkpoint(tmp_path)
    assert found == tmp_path / "step-000011"
    assert len(damaged) == 1
    save_checkpoint(tmp_path, 12, _write("twelve"), keep=1)
    assert find_checkpoint(tmp_path) == (tmp_path / "step-000012", [])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000012"]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "checkpoints") == (None, [])


def test_one_left_half_written_is_passed_over(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, _write("five"), keep=2)
    (tmp_path / "step-000010.tmp").mkdir()
    assert find_checkpoint(tmp_path) == (tmp_path / "step-000005", [])
    save_checkpoint(tmp_path, 10, _write("ten"), keep=2)
    assert find_checkpoint(tmp_path) == (tmp_path / "step-000010", [])


@pytest.mark.parametrize(
    "damage", ["flip", "delete", "no manifest", "", "[" * 100_000, '{"files": {}}']
)
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, _write("weights"), keep=2)
    newest = tmp_path / "step-000010"
    if damage == "flip":
        data = bytearray((newest / "model" / "weights").read_bytes())
        data[3] ^= 1
        (newest / "model" / "weights").write_bytes(data)
    elif damage == "delete":
        (newest / "state.json").unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text(damage)
    found, damaged = find_checkpoint(tmp_path)
    assert found == tmp_path / "step-000005"
    assert len(damaged) == 1
    assert "step-000010" in damaged[0]
    # Saving that step again replaces the damaged one.
    save_checkpoint(tmp_path, 10, _write("weights"), keep=2)
    assert find_checkpoint(tmp_path) == (newest, [])


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EROFS, "Make that folder writable"),
        (errno.EIO, "Mend that"),
    ],
)
def test_what_to_do_is_told_by_what_went_wrong(tmp_path: Path, number: int, remedy: str) -> None:
    def write(folder: Path) -> None:
        raise OSError(number, "no")

    with pytest.raises(CheckpointError, match=remedy):
        save_checkpoint(tmp_path, 5, write, keep=2)


def test_training_never_starts_from_scratch_where_all_are_damaged(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, _write("five"), keep=2)
    (tmp_path / "step-000005" / "state.json").write_text("changed")
    with pytest.raises(CheckpointError, match=r"state\.json is not as it was written"):
        find_checkpoint(tmp_path)

"""What commands print: aligned also with Chinese characters and emoji, short, on one line."""

from __future__ import annotations

import sys

import pytest

from clipkit.display.console import (
    display_width,
    format_table,
    progress_bar,
    short_path,
    shorten,
    source_name,
)


def test_columns_align_by_what_characters_take_up() -> None:
    table = format_table(
        ["score", "caption", "key"], [["1.0", "一只猫", "a"], ["0.123", "cat", "b"]], right=[0]
    )
    assert table.splitlines() == [
        "score  caption  key",
        "  1.0  一只猫   a",
        "0.123  cat      b",
    ]


def test_shortening_keeps_one_line_within_the_width() -> None:
    assert shorten("cat", 3) == "cat"
    assert shorten("a cat\non a mat", 8) == "a cat o…"
    assert shorten("一只猫坐在", 5) == "一只…"
    assert "\x1b" not in shorten("\x1b[31mred", 20)
    assert display_width("e\u0301") == 1


def test_names_are_short() -> None:
    assert source_name("data/emoji/held-out-*.tar") == "held-out"
    assert source_name("data/train-{000..127}.tar") == "train"
    assert source_name("photos/") == "photos"
    assert source_name("*.tar") == "*.tar"
    assert short_path("a/b") == "a/b"
    assert short_path("s3://a/b") == "s3://a/b"


def test_progress_is_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["clipkit"])
    monkeypatch.setitem(sys.modules, "ipykernel", sys)  # loaded, as to run a notebook elsewhere
    with progress_bar("embed", 3, "sample") as bar:
        bar.delay = 0
        bar.mininterval = 0
        for _ in range(3):
            bar.update(1)
    lines = capsys.readouterr().err
    assert "\r" not in lines
    assert lines.splitlines()[-1].startswith("embed: 3/3 samples (")
    with progress_bar("embed", 3, "sample") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""  # what takes a moment says nothing

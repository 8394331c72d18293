"""The keys of a source are options of every command that reads one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from clipkit.cli import build_parser, main
from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.display.source_line import remark_source

sys.path.insert(0, str(Path(__file__).parent / "data"))
from sample_files import encoded, photo

_COMMANDS = ("embed", "eval", "data check", "data pack", "data filter", "data tokenizer")


def _options(command: str) -> set[str]:
    parser = build_parser()
    for name in command.split():
        actions = parser._subparsers._group_actions  # type: ignore[union-attr]
        choices = actions[0].choices
        assert isinstance(choices, dict)
        parser = choices[name]
    assert isinstance(parser, argparse.ArgumentParser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("command", _COMMANDS)
def test_each_command_that_reads_a_source_takes_its_keys(command: str) -> None:
    wanted = {"--caption", "--image-root", "--class-names", "--split"}
    wanted |= {"--source-format" if command == "data pack" else "--format"}
    wanted |= set() if command == "data tokenizer" else {"--image"}
    assert wanted <= _options(command)


def test_image_root_reaches_check_and_pack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "tables").mkdir()
    for number in range(3):
        (tmp_path / "pictures" / f"{number}.jpg").write_bytes(encoded(photo(seed=number)))
    table = tmp_path / "tables" / "t.csv"
    table.write_text("image,caption\n" + "".join(f"{n}.jpg,thing {n}\n" for n in range(3)))
    root = ["--image-root", str(tmp_path / "pictures"), "--workers", "0"]
    assert main(["data", "check", str(table), *root]) == 0
    assert "3 (100.0%)" in capsys.readouterr().out
    assert main(["data", "pack", str(table), str(tmp_path / "out"), *root]) == 0
    assert "3 samples" in capsys.readouterr().out


def test_a_suite_refuses_the_keys_of_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "model", "--suite", "s.yaml", "--image-root", "x"]) == 2
    assert "--image-root: it goes with a source" in capsys.readouterr().err


def test_keys_of_a_source_without_effect_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(source: SourceConfig) -> list[str]:
        remark_source(open_source(source))
        return [line for line in capsys.readouterr().err.splitlines() if "no effect" in line]

    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "1.jpg").write_bytes(encoded(photo(seed=len(name))))
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "t.csv").write_text("image,caption\nclasses/cat/1.jpg,a cat\n")
    keys = {"templates": ["a {}"], "class_names": str(tmp_path / "names.txt")}
    assert said(SourceConfig(path=str(tmp_path / "classes"), **keys)) == []
    assert said(SourceConfig(path=str(tmp_path / "t.csv"))) == []
    told = said(SourceConfig(path=str(tmp_path / "t.csv"), split="test", **keys))
    assert [line.split(": ")[2] for line in told] == ["templates", "class_names", "split"]

"""Whatever is wrong with a suite ends in one sentence that names file, task and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_suite import CLASSES, layouts, measure, write_tar  # noqa: F401
from tiny_model import noise_image, png_bytes

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError

# The keys of a task, the exit code, what is said of the task.
KEYS: list[tuple[str, int, str]] = [
    ("kind: retreival, data: x", 2, "kind: retreival; did you mean retrieval?"),
    ("data: x", 2, "kind: none is given; there are "),
    (
        "use: cifar11, data: x",
        2,
        "use: cifar11; no standard set has this name; did you mean",
    ),
    ("kind: zero_shot, data: x, lable: cls", 2, "lable: no such key. Did you mean label?"),
    ("kind: zero_shot, data: {pth: x}", 2, "data.pth: no such key. Did you mean data.path?"),
    ("kind: retrieval, data: x, gallery: [{pth: x}]", 2, "gallery.0.pth: no such key. Did you"),
    ("kind: retrieval, data: 5", 2, "data: a mapping of keys is wanted, got 5"),
    ("kind: retrieval, data: x, lines: 7", 2, "lines: "),
    ("kind: retrieval", 2, "data: no source is named"),
    ("kind: retrieval, data: /no/such", 3, "/no/such: no such file or folder"),
    ("data: /no/such, use: cifar10", 3, "/no/such: no such file or folder"),
    ("kind: zero_shot, data: N, class_names: [a, b, a]", 2, "class_names: 'a' stands there twice"),
    ("kind: zero_shot, data: N, class_names: [a, b]", 2, "class_names: NUMBERS has the class 2, "),
    ("kind: zero_shot, data: N, class_names: []", 2, "class_names: there are none"),
    ("kind: zero_shot, data: N, class_names: [no, b]", 2, "class_names: False is no text; put it"),
    ("kind: zero_shot, data: N, class_names: gone", 3, "gone: class_names cannot be read"),
    ("kind: zero_shot, data: N, templates: fotos", 2, "template: 'fotos' has no {}"),
    ("kind: zero_shot, data: N, label: json.kind", 3, "NUMBERS: "),
    ("kind: zero_shot, data: FLAT", 3, "FLAT: 4 images and no classes; looked for a folder"),
    ("kind: zero_shot, data: FOLDERS, class_names: [x, y]", 2, "class_names: there are 2, and 6"),
    ("kind: retrieval, data: FLAT, karpathy: gone.json", 3, "gone.json: no such file"),
]
SUITES: list[tuple[str, str]] = [
    ("tasks: {}", ": tasks: there are none"),
    ("", ": tasks: there are none"),
    ("tasks: {a: 5}", ", task a: a mapping of keys is wanted, got 5"),
    ("task: {}", ": task: no such key; a suite has tasks alone"),
    ("[1]", ": a suite is a mapping of keys, this is a list"),
    ("tasks: {a: {}, a: {}}", ", line 1: the key a stands here twice"),
    ("tasks: {a: [", ", line 1: "),
]


@pytest.mark.parametrize(("keys", "code", "message"), KEYS, ids=range(len(KEYS)))
def test_a_mistake_in_a_task_is_named(
    keys: str,
    code: int,
    message: str,
    tiny_folder: Path,
    layouts: dict[str, dict[str, Any]],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders, numbers = layouts["folders"]["data"], layouts["numbers"]["data"]
    for name, path in (
        ("FOLDERS", folders),
        ("FLAT", f"{folders}/{CLASSES[0]}"),
        ("NUMBERS", numbers),
        ("data: N", f"data: {numbers}"),
    ):
        keys, message = keys.replace(name, path), message.replace(name, path)
    suite = tmp_path / "s.yaml"
    suite.write_text(f"tasks: {{a: {{{keys}}}}}")
    assert main(["eval", str(tiny_folder), "--suite", str(suite)]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"clipkit: {suite}, task a: {message}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("text", "message"), SUITES, ids=range(len(SUITES)))
def test_a_suite_that_is_none_is_named(
    text: str,
    message: str,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = tmp_path / "s.yaml"
    suite.write_text(text)
    assert main(["eval", str(tiny_folder), "--suite", str(suite)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"clipkit: {suite}{message}")
    assert len(err.splitlines()) == 1


def test_options_that_do_not_go_together_are_refused(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        ([], "give a source, or --suite FILE"),
        (["x.tar", "--suite", "s.yaml"], "and not both"),
        (["--suite", "s.yaml", "--html", "a.html"], "--html: it goes with a source"),
        (["x.tar", "--out", "out"], "--out: it goes with --suite"),
        (["--suite", "gone.yaml"], "gone.yaml: no such suite file"),
    ):
        assert main(["eval", str(tiny_folder), *arguments]) == 2
        assert message in capsys.readouterr().err


def test_one_label_that_is_no_class_is_found_though_it_is_the_second(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    shard = write_tar(
        tmp_path / "a.tar",
        [
            {"png": png_bytes(noise_image(i)), "json": json.dumps({"is": each}).encode()}
            for i, each in enumerate((["cat"], ["dog", "whale"]))
        ],
    )
    keys = {
        "kind": "zero_shot",
        "data": str(shard),
        "label": "json.is",
        "class_names": ["cat", "dog"],
    }
    with pytest.raises(ClipkitError, match=r"sample s0001 has the class whale, .* 2 classes"):
        measure(tiny_encoder, keys)

"""Whatever is wrong with a suite ends in one sentence that names file, task and key."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_suite import CLASSES, layouts, measure, write_tar  # noqa: F401
from tiny_model import noise_image, png_bytes

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError
from clipkit.evaluation.results import TaskResult, read_results, write_results

# The keys of a task, the exit code, what is said of the task.
KEYS: list[tuple[str, int, str]] = [
    ("kind: retreival, data: x", 2, "kind: retreival; did you mean retrieval?"),
    ("data: x", 2, "kind: none is given; there are "),
    ("kind: [retrieval], data: x", 2, "kind: ['retrieval']; "),
    ("use: {a: b}, data: x", 2, "use: {'a': 'b'}; no standard set has this name; "),
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
    ("kind: linear_probe, data: x", 2, "train: no source is named"),
    ("kind: retrieval, data: x, gallery: ['']", 2, "gallery.0: no source is named"),
    ("kind: retrieval, data: /no/such", 3, "/no/such: no such file or folder"),
    ("data: /no/such, use: cifar10", 3, "/no/such: no such file or folder"),
    ("kind: zero_shot, data: N, class_names: [a, b, a]", 2, "class_names: 'a' stands there twice"),
    ("kind: zero_shot, data: N, class_names: [a, b]", 2, "class_names: NUMBERS has the class 2, "),
    ("kind: zero_shot, data: N, class_names: {1: a, '1': b}", 2, "class_names: '1' stands there "),
    (
        "kind: zero_shot, data: N, class_names: {1: a, 2: b}",
        2,
        "class_names: NUMBERS has the class",
    ),
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
    ("tasks: {[a]: {}}", ", line 1: a list or mapping is no key"),
    ("tasks: {'': {kind: retrieval, data: x}}", ": tasks: one has no name"),
    (
        "tasks: {1: {kind: retrieval, data: x}, '1': {kind: retrieval, data: x}}",
        ": tasks: two are called 1; rename one",
    ),
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


@pytest.mark.parametrize(
    ("several", "labels", "message"),
    [
        (False, [["cat"], ["dog", "cat"]], r"several: false, and .* sample s0001 has 2 classes"),
        (True, [[], []], "not one sample has a class"),
    ],
)
def test_as_many_classes_a_sample_as_was_said(
    tiny_encoder: Encoder, tmp_path: Path, several: bool, labels: list[list[str]], message: str
) -> None:
    samples = [
        {"png": png_bytes(noise_image(i)), "json": json.dumps({"is": each}).encode()}
        for i, each in enumerate(labels)
    ]
    keys = {"kind": "zero_shot", "label": "json.is", "class_names": ["cat", "dog"]}
    keys |= {"data": str(write_tar(tmp_path / "a.tar", samples)), "several": several}
    with pytest.raises(ClipkitError, match=message):
        measure(tiny_encoder, keys)


def test_what_stands_where_results_go_is_said_before_and_left_alone(
    tiny_folder: Path,
    layouts: dict[str, dict[str, Any]],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite, out = tmp_path / "s.yaml", tmp_path / "out"
    task = {"kind": "zero_shot", **layouts["numbers"]}
    suite.write_text(json.dumps({"tasks": {"a": task, ".a": task, "x" * 300: task}}))
    command = ["eval", str(tiny_folder), "--suite", str(suite), "--workers", "0", "--out", str(out)]
    for name, content, message in (
        ("results.csv", "mine,yours\n", "results.csv: has other columns"),
        ("samples", "", "samples: is no folder"),
        ("results.json/x", "", "results.json: is a folder"),
    ):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text(content)
        assert main(command) == 4
        assert message in capsys.readouterr().err
        assert (out / name).read_text() == content
        shutil.rmtree(out)
    (out / "samples").mkdir(parents=True)
    (out / "samples" / "mine.parquet").write_text("mine")
    header = "created,model,sha256,suite,task,metric,value,low,high\n"
    (out / "results.csv").write_bytes(header.encode() + b"\xe9, a line that was cut")
    assert main(command) == 0
    assert (out / "samples" / "mine.parquet").read_text() == "mine"
    lines = (out / "results.csv").read_bytes().splitlines()
    assert lines[1] == b"\xe9, a line that was cut"
    assert len(lines) == 2 + 3 * 4
    assert len(set(read_results(out).tables.values())) == 3
    suite.write_text(json.dumps({"tasks": {"a": task}}))
    assert main(command) == 0
    assert sorted(p.name for p in (out / "samples").iterdir()) == ["a.parquet", "mine.parquet"]


def _write(folder: Path, number: int) -> None:
    result = TaskResult("a", "zero_shot", {"top1": float(number)}, {"top1": [number]}, {})
    write_results(folder, [result], {"command": str(number)}, table=folder / "results.csv")


def test_evaluations_at_once_lose_nothing_and_mix_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, number)) for number in range(6)]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 6
    results = read_results(tmp_path)
    number = int(results.about["command"])
    assert results.tasks["a"].metrics["top1"] == number == results.read_samples("a")["top1"][0]


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

"""Suites: what tasks measure against brute force, what folders tell, results, ranks, mistakes."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from command_line import Run
from tiny_model import WORDS, noise_image, png_bytes, write_shard

from clipkit.cli import main
from clipkit.encoder import Encoder
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.results import TaskResult, read_results
from clipkit.evaluation.run_suite import run_suite
from clipkit.evaluation.standard_sets import known_sets
from clipkit.evaluation.suite import build_task, load_suite

CLASSES = [*WORDS[:6], "tiny"]  # of the last there is no image
LABELS = [(7 * i) % 6 for i in range(20)]


def write_tar(path: Path, samples: Sequence[dict[str, bytes]]) -> Path:
    """A tar of samples, each extension → content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, sample in enumerate(samples):
            for extension, data in sample.items():
                info = tarfile.TarInfo(f"s{i:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def npy(values: Sequence[int]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values))
    return buffer.getvalue()


def measure(encoder: Encoder, keys: dict[str, Any], **job: Any) -> TaskResult:
    """One task, as a suite runs it."""
    task = build_task("task", keys)
    task.open()
    result = task.run(Job(encoder, **job))
    assert result is not None
    return result


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The same twenty labelled images in every way a task may name them."""
    root = tmp_path_factory.mktemp("layouts")
    pictures = [png_bytes(noise_image(i)) for i in range(20)]
    names = {"class_names": CLASSES}
    (root / "names.txt").write_text("\n".join(CLASSES) + "\n")
    by_class, rows = root / "folders", ["image,species"]
    for i, (label, picture) in enumerate(zip(LABELS, pictures, strict=True)):
        folder = by_class / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.png").write_bytes(picture)
        (folder / f"{i:03d}.txt").write_text("a caption, which is no class")
        rows.append(f"folders/{CLASSES[label]}/{i:03d}.png,{CLASSES[label]}")
    (root / "table.csv").write_text("\n".join(rows))
    numbers = write_tar(
        root / "numbers.tar",
        [{"png": p, "cls": str(n).encode()} for p, n in zip(pictures, LABELS, strict=True)],
    )
    fields = write_tar(
        root / "fields.tar",
        [
            {"png": p, "txt": b"x", "json": json.dumps({"species": f"id{n}"}).encode()}
            for p, n in zip(pictures, LABELS, strict=True)
        ],
    )
    wds = root / "wds"
    write_tar(
        wds / "test" / "0.tar",
        [{"png": p, "cls": str(n).encode()} for p, n in zip(pictures, LABELS, strict=True)],
    )
    write_tar(wds / "train" / "0.tar", [{"png": pictures[0], "cls": b"0"}])
    (wds / "classnames.txt").write_text("\n".join(CLASSES))
    (wds / "zeroshot_classification_templates.txt").write_text("a photo of a {c}\nthe {c}\n")
    ids = {f"id{n}": name for n, name in enumerate(CLASSES)}
    return {
        "folders": {"data": str(by_class), **names},
        "table": {"data": str(root / "table.csv"), "label": "species", **names},
        "numbers": {"data": str(numbers), "class_names": str(root / "names.txt")},
        "fields": {"data": str(fields), "label": "json.species", "class_names": ids},
        "wds": {"data": str(wds), "use": "cifar10"},
        "wds split": {"data": str(wds / "test")},
    }


@pytest.mark.parametrize("layout", ["folders", "table", "numbers", "fields", "wds", "wds split"])
def test_zero_shot_equals_brute_force_in_every_layout(
    tiny_encoder: Encoder, layouts: dict[str, dict[str, Any]], layout: str
) -> None:
    templates = ["a photo of a {}", "the {}"]
    keys = {"kind": "zero_shot", **layouts[layout]}
    if not layout.startswith("wds"):
        keys["templates"] = templates
    result = measure(tiny_encoder, keys, batch_size=7)
    prompts = [tiny_encoder.encode_text([t.format(name) for t in templates]) for name in CLASSES]
    means = np.array([each.mean(axis=0) for each in prompts])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    scores = tiny_encoder.encode_image([noise_image(i) for i in range(20)]) @ means.T
    order = np.argsort(-scores, axis=1)
    right = order[:, 0] == np.array(LABELS)
    recalls = [right[[n == c for n in LABELS]].mean() for c in range(6)]
    assert result.metrics["top1"] == pytest.approx(right.mean())
    in_five = [n in row for n, row in zip(LABELS, order[:, :5].tolist(), strict=True)]
    assert result.metrics["top5"] == pytest.approx(np.mean(in_five))
    assert result.metrics["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert 0 <= result.metrics["ece"] <= 1
    assert any(note.startswith("1 of 7 classes have no image") for note in result.data["notes"])
    predicted = dict(zip(result.samples["key"], result.samples["predicted"], strict=True))
    assert sorted(predicted.values()) == sorted(
        f"id{c}" if layout == "fields" else CLASSES[c] for c in order[:, 0]
    )


@pytest.mark.parametrize(
    "class_names",
    [None, {n + 1: WORDS[n] for n in range(6)}, [str(n + 1) for n in range(6)], ["no", *WORDS[:6]]],
    ids=["none", "by label", "names that are numbers", "from 0"],
)
def test_labels_that_are_numbers_from_1_on_are_the_classes_that_are_meant(
    tiny_encoder: Encoder, tmp_path: Path, class_names: Any
) -> None:
    samples = [
        {"png": png_bytes(noise_image(i)), "json": json.dumps({"is": n + 1}).encode()}
        for i, n in enumerate(LABELS)
    ]
    data = str(write_tar(tmp_path / "a.tar", samples))
    keys = {"kind": "zero_shot", "data": data, "label": "json.is"}
    result = measure(
        tiny_encoder, keys if class_names is None else {**keys, "class_names": class_names}
    )
    named = class_names if isinstance(class_names, list) and class_names[0] == "no" else None
    expected = [named[n + 1] if named else str(n + 1) for n in LABELS]
    assert result.samples["label"] == expected
    texts = class_names if isinstance(class_names, list) else [str(n + 1) for n in range(6)]
    texts = list(class_names.values()) if isinstance(class_names, dict) else texts
    scores = tiny_encoder.encode_image([noise_image(i) for i in range(20)])
    best = (scores @ tiny_encoder.encode_text(texts).T).argmax(axis=1)
    assert result.metrics["top1"] == np.mean(best == np.array(LABELS) + (named is not None))


def test_the_mean_of_a_column_is_its_metric(
    tiny_encoder: Encoder, layouts: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    shard = write_shard(
        tmp_path / "a.tar", [(png_bytes(noise_image(i // 2)), f"cat {i}") for i in range(12)]
    )
    for keys in (
        {"kind": "zero_shot", **layouts["numbers"]},
        {"kind": "retrieval", "data": str(shard)},
    ):
        result = measure(tiny_encoder, keys)
        means = set(result.metrics) & set(result.samples)
        assert {"top1", "top5"} <= means or {"text_to_image_mAP", "image_to_text_R@10"} <= means
        for name in means:
            assert result.metrics[name] == pytest.approx(np.nanmean(result.samples[name]))
        assert len(set(result.samples["key"])) == len(result.samples["key"])


def test_of_several_classes_an_image_the_score_is_mean_average_precision(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    from sklearn.metrics import average_precision_score

    truth = np.random.default_rng(0).integers(0, 2, (30, 4))
    truth[:, 3], truth[5] = 0, 0  # a class without an image, and an image of no class
    root = tmp_path / "wds"
    samples = [{"png": png_bytes(noise_image(i)), "npy": npy(r)} for i, r in enumerate(truth)]
    write_tar(root / "test" / "0.tar", samples)
    (root / "classnames.txt").write_text("red\ncat\ndog\nhouse\n")
    (root / "dataset_type.txt").write_text("multilabel\n")
    result = measure(tiny_encoder, {"kind": "zero_shot", "data": str(root)})
    names = ["red", "cat", "dog", "house"]
    scores = tiny_encoder.encode_image([noise_image(i) for i in range(30)])
    scores = scores @ tiny_encoder.encode_text(names).T
    expected = [average_precision_score(truth[:, c], scores[:, c]) for c in range(3)]
    assert result.metrics == {"mAP": pytest.approx(np.mean(expected))}
    assert "1 of 4 classes have no image" in result.data["notes"][0]
    assert result.data["samples"] == 30


def test_all_captions_of_an_image_are_its_answers_in_every_layout(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    pictures = [png_bytes(noise_image(i)) for i in range(4)]
    texts = [[f"{WORDS[i]} {j}" for j in range(3)] for i in range(4)]
    lines = ["\n".join(each).encode() for each in texts]
    wds = tmp_path / "wds"
    write_tar(
        wds / "test" / "0.tar",
        [{"png": p, "txt": t} for p, t in zip(pictures, lines, strict=True)],
    )
    (wds / "dataset_type.txt").write_text("retrieval\n")
    fields = write_tar(
        tmp_path / "fields.tar",
        [
            {"png": p, "json": json.dumps({"said": t}).encode()}
            for p, t in zip(pictures, texts, strict=True)
        ],
    )
    (tmp_path / "images").mkdir()
    listed = []
    for i, picture in enumerate(pictures):
        (tmp_path / "images" / f"{i}.png").write_bytes(picture)
        sentences = [{"raw": text} for text in texts[i]]
        listed.append({"filename": f"{i}.png", "split": "test", "sentences": sentences})
    listed.append({"filename": "gone.png", "split": "train", "sentences": []})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": listed}))
    karpathy = {"data": str(tmp_path / "images"), "karpathy": str(tmp_path / "dataset.json")}
    found = [
        measure(tiny_encoder, {"kind": "retrieval", **keys})
        for keys in (
            {"data": str(wds)},
            {"data": {"path": str(fields), "caption": "json.said"}},
            {"use": "flickr30k", **karpathy},
        )
    ]
    images = tiny_encoder.encode_image([noise_image(i) for i in range(4)])
    scores = images @ tiny_encoder.encode_text([t for each in texts for t in each]).T
    precisions = []
    for i, row in enumerate(scores):
        hits = np.argsort(-row) // 3 == i
        precisions.append((np.cumsum(hits) / np.arange(1, 13))[hits].mean())
    for result in found:
        assert (result.metrics["num_images"], result.metrics["num_texts"]) == (4, 12)
        assert result.metrics["image_to_text_mAP"] == pytest.approx(np.mean(precisions), abs=1e-6)
        assert result.metrics == found[0].metrics


def test_folders_called_by_numbers_are_classes_in_their_order(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    for number in (0, 2, 10):
        (tmp_path / str(number)).mkdir()
        noise_image(number).save(tmp_path / str(number) / "a.png")
    for count, expected in ((3, ["cat", "dog", "red"]), (11, ["cat", "red", "n10"])):
        names = ["cat", "dog", "red", *(f"n{i}" for i in range(3, count))]
        result = measure(
            tiny_encoder, {"kind": "zero_shot", "data": str(tmp_path), "class_names": names}
        )
        labels = dict(zip(result.samples["key"], result.samples["label"], strict=True))
        assert [labels[f"{n}/a.png"] for n in (0, 2, 10)] == expected


def test_every_standard_set_makes_a_task(tmp_path: Path) -> None:
    sizes = {}
    for name in known_sets():
        task = build_task(name, {"use": name, "data": str(tmp_path)})
        sizes[name] = len(getattr(task.options, "class_names", None) or [])
    assert sizes["imagenet-1k"] == sizes["imagenet-v2"] == sizes["imagenet-sketch"] == 1000
    assert sizes["imagenet-a"] == sizes["imagenet-r"] == 200
    assert (sizes["cifar100"], sizes["country211"], sizes["coco-captions"]) == (100, 211, 0)
    one = build_task("r", {"use": "imagenet-r", "data": "x"}).options.class_names
    assert one["n01443537"] == "goldfish"
    assert "n01440764" not in one
    own = build_task("own", {"use": "cifar10", "data": "x", "templates": "art"})
    assert own.options.templates == "art"


def write_suite(path: Path, **tasks: Any) -> Path:
    path.write_text(yaml.safe_dump({"tasks": tasks}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def mixed(layouts: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite of both kinds, with what must be said: a long label, a caption that is cut, images
    that do not decode."""
    root = tmp_path_factory.mktemp("mixed")
    samples: list[tuple[bytes, str | None]] = [
        (png_bytes(noise_image(i)), f"cat {i} " * (9 if i == 3 else 1)) for i in range(9)
    ]
    samples += [(b"<html>", "dog"), (b"", "dog")]
    shard = write_shard(root / "pairs.tar", samples)
    long = {**layouts["folders"], "class_names": [*CLASSES[:6], "violet " * 500]}
    return write_suite(
        root / "mixed.yaml",
        pairs={"kind": "retrieval", "data": str(shard)},
        classes={"kind": "zero_shot", **long},
    )


def test_results_are_printed_written_and_read(
    tiny_folder: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["eval", str(tiny_folder), "--suite", str(mixed), "--workers", "0"]
    assert main([*command, "--out", str(out)]) == 0
    assert main([*command, "--out", str(out)]) == 0
    said, told = capsys.readouterr()
    results = read_results(out)
    assert list(results.tasks) == ["pairs", "classes"]
    assert results.about["ranks"] == 1
    assert len(results.about["model"]["sha256"]) == 64
    assert {path.name for path in (out / "samples").iterdir()} == {
        "pairs.parquet",
        "classes.parquet",
    }
    for name, task in results.tasks.items():
        columns = results.read_samples(name)
        for metric, (low, high) in task.intervals.items():
            assert low <= task.metrics[metric] <= high
            assert metric in said
            if metric != "mean_per_class_recall":
                assert np.nanmean(columns[metric]) == pytest.approx(task.metrics[metric])
    assert set(results.tasks["classes"].intervals) == {"top1", "top5", "mean_per_class_recall"}
    pairs = results.tasks["pairs"].data
    assert pairs["samples"] == 9
    assert sorted(pairs["skipped"].values()) == [1, 1]
    for line in (
        "pairs: 1 of 9 captions are longer than 16 tokens and were cut",
        "pairs: left out 1 × HTML, not an image",
        "classes: 1 of 7 labels are longer than the model's 16 tokens and were cut, 'violet",
        f"the results are in {out}",
    ):
        assert told.count(line) == 2
    with (out / "results.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * sum(len(task.metrics) for task in results.tasks.values())
    assert float(lines[-1]["value"]) == results.tasks["classes"].metrics["ece"]


def test_results_are_in_the_run_where_no_folder_is_named(
    tiny_folder: Path, layouts: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(tiny_folder)
    suite = write_suite(tmp_path / "small.yaml", one={"kind": "zero_shot", **layouts["numbers"]})
    assert main(["eval", str(run), "--suite", str(suite), "--workers", "0"]) == 0
    assert read_results(run / "eval" / "small").tasks["one"].kind == "zero_shot"
    assert (run / "eval" / "results.csv").is_file()


@pytest.mark.slow
def test_two_ranks_equal_one_process(
    clipkit: Run, tiny_folder: Path, mixed: Path, tmp_path: Path
) -> None:
    # Batches of 8: of the second task's twenty images one rank has one batch and the other two;
    # of the third's one image, one rank has none.
    tasks = yaml.safe_load(mixed.read_text())["tasks"]
    alone = write_shard(tmp_path / "one.tar", [(png_bytes(noise_image(0)), "cat")])
    suite = write_suite(
        tmp_path / "all.yaml", **tasks, alone={"kind": "retrieval", "data": str(alone)}
    )
    command = ["eval", tiny_folder, "--suite", suite, "--batch-size", "8", "--workers", "0"]
    assert main([*map(str, command), "--out", str(tmp_path / "1")]) == 0
    ranks = clipkit(*command, "--out", tmp_path / "2", ranks=2)
    assert ranks.returncode == 0, ranks.stderr
    one, two = read_results(tmp_path / "1"), read_results(tmp_path / "2")
    assert two.about["ranks"] == 2
    assert one.tasks == two.tasks
    for name in one.tasks:
        first, second = one.read_samples(name), two.read_samples(name)
        for column in first:
            np.testing.assert_array_equal(first[column], second[column])


def test_the_suite_of_the_demo_runs_on_its_data(
    tiny_encoder: Encoder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    suite = load_suite("configs/suite-emoji.yaml")
    suite.open()
    suite.tasks = [task for task in suite.tasks if task.name != "names-among-all"]
    results = {r.name: r for r in run_suite(suite, Job(tiny_encoder)) if r is not None}
    assert results["names"].metrics["num_images"] == 221
    assert results["people"].data["samples"] == 221
    assert set(results["tones"].metrics) == {"mAP"}

"""The tasks of a suite beyond zero-shot and retrieval: on small files, alone and on two ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ROOT, Run
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from tiny_model import noise_image, noise_shard, save_tiny_model

from clipkit.data import Reader
from clipkit.encoder import Encoder, load
from clipkit.errors import ClipkitError
from clipkit.evaluation import features
from clipkit.evaluation.corruptions import corrupt
from clipkit.evaluation.embedding import EmbeddedSource, Job
from clipkit.evaluation.results import TaskResult, read_results
from clipkit.evaluation.suite import build_task, load_suite

SUITE = """
tasks:
  probe: {kind: linear_probe, train: train, data: test}
  neighbours: {kind: knn, train: train, data: test, k: 5}
  words: {kind: compositional, data: {path: swap.json, image_root: pictures}}
  twins: {kind: compositional, form: pairs, data: pairs.csv}
  spoilt: {kind: corruptions, data: test, kinds: [jpeg, occlusion], severities: [2, 5]}
  sphere: {kind: geometry, data: pairs.tar}
"""
CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small data of each kind, and a suite over them."""
    here = tmp_path_factory.mktemp("suite")
    for split, count in (("train", 24), ("test", 17)):
        for i in range(count):
            pixels = np.asarray(noise_image(i + 1000 * len(split))).astype(np.int64)
            pixels[:, :, 2 - i % 3] += 100
            place = here / split / CLASSES[i % 3] / f"{i:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place)
    (here / "test" / "red" / "broken.png").write_bytes(b"no image")
    (here / "pictures").mkdir()
    records, rows = {}, ["id,image_0,image_1,caption_0,caption_1"]
    for i in range(9):
        noise_image(i).save(here / "pictures" / f"{i}.png")
        records[str(3 * i)] = {
            "filename": f"{i}.png",
            "caption": f"red cat number {i}",
            # The last is no other caption, and so a tie.
            "negative_caption": f"red cat number {i}" if i == 8 else f"cat red number {i}",
        }
        rows.append(f"{i},pictures/{i}.png,pictures/{(i + 1) % 9}.png,dog {i},house {i} dog")
    (here / "swap.json").write_text(json.dumps(records, indent=1))
    (here / "pairs.csv").write_text("\n".join(rows))
    noise_shard(here / "pairs.tar", 21)
    (here / "all.yaml").write_text(SUITE)
    return here


@pytest.fixture(scope="module")
def alone(
    folder: Path, tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TaskResult]:
    """All tasks, on one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.chdir(folder)
        suite = load_suite("all.yaml")
        suite.open()
        results = [task.run(Job(tiny_encoder, batch_size=4)) for task in suite.tasks]
    return {each.name: each for each in results if each is not None}


def test_every_metric_with_a_column_is_its_mean(alone: dict[str, TaskResult]) -> None:
    assert len(alone) == 6
    means = 0
    for result in alone.values():
        lengths = {len(column) for column in result.samples.values()}
        assert lengths == {result.data["samples"]}
        assert len(set(result.samples["key"])) == result.data["samples"]
        for metric, value in result.metrics.items():
            if metric in result.samples:
                assert value == pytest.approx(np.nanmean(result.samples[metric]))
                means += 1
    assert means >= 10


@pytest.mark.slow
def test_two_ranks_equal_one_process(
    clipkit: Run, folder: Path, tiny_folder: Path, alone: dict[str, TaskResult], tmp_path: Path
) -> None:
    result = clipkit(
        *("eval", tiny_folder, "--suite", "all.yaml", "--out", tmp_path / "out"),
        *("--batch-size", 4, "--workers", 0),
        ranks=2,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert result.returncode == 0, result.stderr
    assert "left out 1 × not an image of a known format" in result.stderr
    shared = read_results(tmp_path / "out")
    assert list(shared.tasks) == list(alone)
    for name, expected in alone.items():
        assert shared.tasks[name].metrics == expected.metrics
        assert shared.tasks[name].data["sha256"] == expected.data["sha256"]
        for column, values in shared.read_samples(name).items():
            np.testing.assert_array_equal(values, np.asarray(expected.samples[column]))
    ranks = shared.tasks["sphere"].data["image_effective_rank_of_each_rank"]
    assert len(ranks) == 2
    assert shared.tasks["sphere"].data["image_effective_rank_min_over_ranks"] == min(ranks)


def test_neighbours_are_scikit_learns(
    folder: Path, tiny_encoder: Encoder, alone: dict[str, TaskResult]
) -> None:
    def rows(split: str) -> tuple[np.ndarray, list[str]]:
        paths = sorted(p for p in (folder / split).rglob("*.png") if p.name != "broken.png")
        return tiny_encoder.encode_image(paths).astype(float), [p.parent.name for p in paths]

    (train, labels), (test, right) = rows("train"), rows("test")
    reference = KNeighborsClassifier(
        5, metric="cosine", weights=lambda distances: np.exp((1 - distances) / 0.07)
    ).fit(train, labels)
    result = alone["neighbours"]
    assert result.metrics["top1"] == pytest.approx(reference.score(test, right))
    assert list(result.samples["label"]) == right
    assert list(result.samples["predicted"]) == reference.predict(test).tolist()
    assert result.data["skipped"] == {"not an image of a known format": 1}
    assert result.data["train"]["samples"] == 24


def test_the_probe_says_how_its_l2_was_chosen(alone: dict[str, TaskResult]) -> None:
    result = alone["probe"]
    assert result.metrics["top1"] > 0.8  # one colour is stronger in each class
    tried = result.data["validation_accuracies"]
    assert tried[f"{result.data['l2']:.4g}"] == max(tried.values())


def test_compositional_scores_are_those_of_the_embeddings(
    folder: Path, tiny_encoder: Encoder, alone: dict[str, TaskResult]
) -> None:
    def embeds(paths: list[Path]) -> np.ndarray:
        return tiny_encoder.encode_image(paths)

    pictures = embeds([folder / "pictures" / f"{i}.png" for i in range(9)])
    words = tiny_encoder.encode_text([f"red cat number {i}" for i in range(9)])
    swapped = tiny_encoder.encode_text([f"cat red number {i}" for i in range(8)])
    wins = (pictures[:8] * words[:8]).sum(1) > (pictures[:8] * swapped).sum(1) + 1e-6
    result = alone["words"]
    assert list(result.samples["accuracy"]) == [*wins.astype(float), 0]  # a tie is wrong
    assert result.samples["label"][0] == "red cat number 0"
    first = tiny_encoder.encode_text([f"dog {i}" for i in range(9)])
    second = tiny_encoder.encode_text([f"house {i} dog" for i in range(9)])
    other = np.roll(pictures, -1, axis=0)
    own = [(pictures * first).sum(1), (other * second).sum(1)]
    crossed = [(other * first).sum(1), (pictures * second).sum(1)]
    text = (own[0] > crossed[1] + 1e-6) & (own[1] > crossed[0] + 1e-6)
    image = (own[0] > crossed[0] + 1e-6) & (own[1] > crossed[1] + 1e-6)
    twins = alone["twins"].metrics
    assert twins["text_score"] == pytest.approx(text.mean())
    assert twins["image_score"] == pytest.approx(image.mean())
    assert twins["group_score"] == pytest.approx((text & image).mean())


def test_corruptions_are_told_one_by_one(alone: dict[str, TaskResult]) -> None:
    metrics = alone["spoilt"].metrics
    assert metrics["top1_corrupted"] == pytest.approx(
        (metrics["top1_jpeg"] + metrics["top1_occlusion"]) / 2
    )
    assert set(np.unique(alone["spoilt"].samples["top1_jpeg"])) <= {0, 0.5, 1}


def test_embeddings_are_kept_until_a_file_changes(
    folder: Path, tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    made: list[str] = []
    embed = features.embed_source

    def counted(job: Job, reader: Reader) -> EmbeddedSource | None:
        made.append(reader.source.path)
        return embed(job, reader)

    monkeypatch.setattr(features, "embed_source", counted)

    def measured() -> dict[str, float]:
        task = build_task("knn", {"kind": "knn", "train": "train", "data": "test"})
        task.open()
        result = task.run(Job(tiny_encoder))
        assert result is not None
        return result.metrics

    first = measured()
    assert made == ["train", "test"]
    assert measured() == first
    task = build_task("sphere", {"kind": "geometry", "data": "test"})
    task.open()  # other questions of the same images
    assert task.run(Job(tiny_encoder)) is not None
    assert len(made) == 2
    changed = folder / "test" / "red" / "002.png"
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + b"x")  # of the same size
    assert measured() == first  # the last byte says nothing
    assert made[2:] == ["test"]
    changed.write_bytes(content)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"kind": "knn", "train": "test", "data": "train", "k": 0}, "k: 0; give 1 or more"),
        ({"kind": "knn", "train": "nowhere", "data": "test"}, "nowhere: no such file or folder"),
        (
            {"kind": "linear_probe", "train": "train", "data": "test", "class_names": ["a", "b"]},
            "class_names: there are 2, and 3 folders",
        ),
        ({"kind": "corruptions", "data": "test", "kinds": ["fog"]}, "kinds: fog; there are gauss"),
        (
            {"kind": "corruptions", "data": "test", "severities": [6]},
            "severities: 6; there are 1, 2, 3, 4, 5",
        ),
        (
            {"kind": "compositional", "data": "pairs.csv", "form": "pairs", "negatives": "x"},
            "negatives: no such key. Did you mean negative",
        ),
        (
            {"kind": "compositional", "data": {"path": "swap.json", "image_root": "pictures"}}
            | {"negative": "wrong"},
            "has no field 'wrong'; besides image and caption there are: negative_caption",
        ),
    ],
)
def test_what_cannot_be_is_said_before_a_model_runs(
    folder: Path, keys: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ClipkitError, match=said):
        build_task("task", keys).open()


def measure(encoder: Encoder, **keys: object) -> TaskResult:
    task = build_task("task", keys)
    task.open()
    result = task.run(Job(encoder, batch_size=4))
    assert result is not None
    return result


def test_validation_of_other_classes_chooses_no_l2(
    folder: Path, tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    for name, label in (("none", "grey"), ("none", "ochre"), ("some", "grey"), ("some", "red")):
        (tmp_path / name / label).mkdir(parents=True)
        noise_image(1).save(tmp_path / name / label / "1.png")
    keys = {"kind": "linear_probe", "train": "train", "data": "test"}
    keys |= {"class_names": [*CLASSES, "grey", "ochre"]}
    with pytest.raises(ClipkitError, match="validation: not one image is of a class that train"):
        measure(tiny_encoder, **keys, validation=str(tmp_path / "none"))
    result = measure(tiny_encoder, **keys, validation=str(tmp_path / "some"))
    assert "1 of 2 images of validation were left out" in result.data["notes"][-1]


def test_images_of_no_class_count_in_mean_average_precision(
    folder: Path, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    labels = [["red"], [], ["red", "blue"], ["blue"], []]
    rows = [
        {"image": str(folder / "pictures" / f"{i}.png"), "label": each}
        for i, each in enumerate(labels)
    ]
    table = tmp_path / "rows.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    keys = {"kind": "zero_shot", "data": str(table), "class_names": ["red", "blue"]}
    assert measure(tiny_encoder, **keys).data["samples"] == 3  # unless it is said that they may be
    result = measure(tiny_encoder, **keys, several=True)
    images = tiny_encoder.encode_image([row["image"] for row in rows])
    scores = images @ tiny_encoder.encode_text(["red", "blue"]).T
    expected = [
        average_precision_score([name in each for each in labels], scores[:, c])
        for c, name in enumerate(["red", "blue"])
    ]
    assert result.metrics["mAP"] == pytest.approx(np.mean(expected))


def test_a_name_that_is_no_unicode_can_be_spoilt() -> None:
    corrupt(noise_image(0), "shot_noise", 1, key="a\udcff.png")


def test_a_model_that_gives_no_numbers_scores_nothing(folder: Path, tmp_path: Path) -> None:
    encoder = load(save_tiny_model(tmp_path / "model"), device="cpu")
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.fill_(float("nan"))
    train, test = str(folder / "train"), str(folder / "test")
    probe = measure(encoder, kind="linear_probe", train=train, data=test)
    assert probe.metrics["top1"] == 0
    sphere = measure(encoder, kind="geometry", data=str(folder / "pairs.tar"))
    assert np.isnan(sphere.metrics["image_effective_rank"])

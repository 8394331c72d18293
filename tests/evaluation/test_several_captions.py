"""Several captions of an image give one number, however they are laid out and whoever measures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Run
from tiny_model import WORDS, noise_image, png_bytes, write_shard

from clipkit.cli import main
from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.encoder import Encoder
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.retrieval import evaluate_retrieval
from clipkit.evaluation.suite import build_task

IMAGES, EACH = 12, 5
SOURCES = {
    "rows of a Parquet file": {"path": "rows.parquet"},
    "a list in a row": {"path": "list.parquet"},
    "several columns": {"path": "columns.parquet", "caption": ",".join(f"c{k}" for k in range(5))},
    "samples of a tar": {"path": "rows.tar"},
    "rows of a table": {"path": "rows.csv"},
    "rows of metadata.csv": {"path": "folder"},
}


def _caption(image: int, k: int) -> str:
    # One text is shared by two images; it is not the first of either.
    if k == 3 and image in (4, 7):
        return "a blue square"
    return f"{WORDS[(image + k) % len(WORDS)]} {WORDS[k]} number {image}"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images with five captions each, in every layout."""
    here = tmp_path_factory.mktemp("five")
    files = [png_bytes(noise_image(i)) for i in range(IMAGES)]
    captions = [[_caption(i, k) for k in range(EACH)] for i in range(IMAGES)]
    flat = [(i, text) for i, texts in enumerate(captions) for text in texts]
    images = pa.array([{"bytes": file, "path": None} for file in files])
    of_rows = pa.array([{"bytes": files[i], "path": None} for i, _ in flat])
    rows = {"image": of_rows, "caption": [text for _, text in flat]}
    pq.write_table(pa.table(rows), here / "rows.parquet")
    pq.write_table(pa.table({"image": images, "caption": captions}), here / "list.parquet")
    columns = {f"c{k}": [texts[k] for texts in captions] for k in range(EACH)}
    pq.write_table(pa.table({"image": images, **columns}), here / "columns.parquet")
    write_shard(here / "rows.tar", [(files[i], text) for i, text in flat])
    (here / "folder").mkdir()
    for i, file in enumerate(files):
        (here / "folder" / f"{i}.png").write_bytes(file)
    lines = [f"{i}.png,{text}" for i, text in flat]
    (here / "folder" / "metadata.csv").write_text("\n".join(["file_name,text", *lines]) + "\n")
    table = [f"folder/{line}" for line in lines]
    (here / "rows.csv").write_text("\n".join(["image,caption", *table]) + "\n")
    return here


@pytest.fixture(scope="module")
def expected(tiny_encoder: Encoder) -> dict[str, float]:
    """The rule in plain NumPy, from the embeddings of each image and each text."""
    images = tiny_encoder.encode_image([noise_image(i) for i in range(IMAGES)])
    texts = list(dict.fromkeys(_caption(i, k) for i in range(IMAGES) for k in range(EACH)))
    right = np.array([[text in {_caption(i, k) for k in range(EACH)} for i in range(IMAGES)]
                      for text in texts])  # fmt: skip
    scores = tiny_encoder.encode_text(texts).astype(np.float64) @ images.T.astype(np.float64)
    found: dict[str, float] = {}
    for way, table, hits in (
        ("text_to_image", scores, right),
        ("image_to_text", scores.T, right.T),
    ):
        best = np.where(hits, table, -np.inf).max(axis=1, keepdims=True)
        ranks = 1 + ((table >= best - 1e-6) & ~hits).sum(axis=1)
        for k in (1, 5, 10):
            found[f"{way}_R@{k}"] = float((ranks <= k).mean())
        found[f"{way}_median_rank"] = float(np.median(ranks))
        found[f"{way}_chance"] = float(hits.mean(axis=1).mean())
    found |= {"num_images": 12, "num_texts": 59, "num_captions": 60, "num_shared": 1}
    assert found["text_to_image_R@1"] != found["image_to_text_R@1"]
    return found


def _source(data: Path, layout: str) -> dict[str, str]:
    return {**SOURCES[layout], "path": str(data / SOURCES[layout]["path"])}


@pytest.mark.parametrize("layout", SOURCES)
def test_five_captions_give_the_numbers_of_numpy_in_every_layout(
    layout: str, data: Path, expected: dict[str, float], tiny_encoder: Encoder
) -> None:
    source = _source(data, layout)
    reader = open_source(SourceConfig(**source), progress=False)
    found = evaluate_retrieval(tiny_encoder, reader)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    task = build_task("mine", {"kind": "retrieval", "data": source})
    task.open()
    result = task.run(Job(tiny_encoder))
    assert result is not None
    suite = {name: value for name, value in expected.items() if name in result.metrics}
    assert len(suite) == 12
    assert {name: result.metrics[name] for name in suite} == pytest.approx(suite)
    assert any("1 of 59 texts belong to several images" in note for note in result.data["notes"])


def test_eval_of_a_source_takes_all_captions_and_the_first_or_one_text_when_asked(
    data: Path, expected: dict[str, float], tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def evaluate(*options: str) -> dict[str, float]:
        out = tmp_path / "found.json"
        source = str(data / "list.parquet")
        command = ["eval", str(tiny_folder), source, "--workers", "0", "--json", str(out)]
        assert main([*command, *options]) == 0
        metrics: dict[str, float] = json.loads(out.read_text())["metrics"]
        return metrics

    found = evaluate()
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert "1 of 59 texts belong to several images each" in capsys.readouterr().err
    assert evaluate("--captions", "first")["num_texts"] == 12
    assert evaluate("--captions", "join")["num_texts"] == 12


@pytest.mark.parametrize(
    ("captions", "code", "sentence"),
    [
        (["a photo"] * 6, 3, "no recall: all 6 images have one and the same text"),
        (["red", "green", "blue", "cat"], 0, "R@5 and R@10 of 4 images cannot be wrong: left out"),
        (["Red cat", "red cat", "dog"], 0, "2 of 3 texts have the same tokens as another one"),
    ],
)
def test_eval_refuses_or_marks_what_cannot_be_wrong(
    captions: list[str], code: int, sentence: str, tiny_folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    samples = [(png_bytes(noise_image(i)), text) for i, text in enumerate(captions)]
    path, numbers = write_shard(tmp_path / "a.tar", samples), tmp_path / "e.json"
    command = ["eval", str(tiny_folder), str(path), "--workers", "0", "--json", str(numbers)]
    assert main(command) == code
    out, err = capsys.readouterr()
    assert sentence in err
    assert "R@5" not in out, "not shown as 1.000"
    if code == 0:
        record = json.loads(numbers.read_text())
        assert "text_to_image_R@5" not in record["metrics"]
        assert any(sentence in note for note in record["notes"])


@pytest.mark.slow
def test_evaluation_while_training_equals_eval_of_the_model_that_it_saved(
    data: Path, clipkit: Run, tmp_path: Path
) -> None:
    files = [png_bytes(noise_image(100 + i)) for i in range(4)]
    samples = list(zip(files, ("red", "green", "blue", "cat"), strict=True))
    same = [(file, "a photo") for file in files]
    config = {
        "output": str(tmp_path / "run"),
        "data": {
            "train": {"path": str(data / "rows.tar")},
            "evaluate": {
                "five": {"path": str(data / "rows.parquet")},
                "few": {"path": str(write_shard(tmp_path / "few.tar", samples))},
                "one": {"path": str(write_shard(tmp_path / "one.tar", same))},
            },
            "workers": 0,
        },
        "preprocess": {"image_size": 16, "context_length": 16, "vocab_size": 600},
        "model": {
            "embed_dim": 24,
            "vision": {"width": 32, "layers": 1, "heads": 2, "patch_size": 8},
            "text": {"width": 32, "layers": 1, "heads": 2},
        },
        "train": {"batch_size": 16, "steps": 4, "precision": "fp32"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    trained = clipkit("train", tmp_path / "c.yaml")
    assert trained.returncode == 0, trained.stderr
    assert "(12 images, 59 texts)" in trained.stderr
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    found_on = {each["split"]: each for each in records if each["kind"] == "eval"}
    record, few, one = (found_on[split] for split in ("five", "few", "one"))
    assert "text_to_image_R@1" in few
    assert "text_to_image_R@5" not in few
    assert "text_to_image_R@1" not in one
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    report = (tmp_path / "run" / "report.html").read_text()
    for text in (" ".join(trained.stderr.split()), card, report):
        assert "few: R@5 and R@10 of 4 images cannot be wrong: left out" in text
        assert "one: no recall: all 4 images have one and the same text" in text
        assert "five: 12 of 12 images are in the training data" in text
    assert "| one | text → image | – | – | – | 1 | 4 images |" in card
    assert re.search(r">state</td><td[^>]*>done<", report)
    out = tmp_path / "found.json"
    clipkit("eval", tmp_path / "run", data / "columns.parquet", "--caption", "c0,c1,c2,c3,c4",
            "--workers", 0, "--json", out)  # fmt: skip
    found = json.loads(out.read_text())["metrics"]
    assert found["num_texts"] == 59
    assert found["num_in_training"] == record["num_in_training"] == 12
    assert "num_in_training" not in few
    for name in ("R@1", "R@5", "R@10", "median_rank"):
        for way in ("text_to_image", "image_to_text"):
            assert record[f"{way}_{name}"] == pytest.approx(found[f"{way}_{name}"])

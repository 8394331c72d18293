"""``clipkit report``: results of suites, runs beside one another, figures as files, a browser."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import noise_shard, save_tiny_model

from clipkit.cli import main
from clipkit.evaluation.report import write_report
from clipkit.evaluation.report.comparison import holm
from clipkit.evaluation.results import TaskResult, write_results
from clipkit.evaluation.statistics import bootstrap_interval, paired_test

HOSTILE = '<script>alert(1)</script><img src="https://evil.example/x">'
CLASSES = ["cat", "dog", "teacup", HOSTILE]


def classified(count: int, share: float, *, seed: int = 0, path: str = "gone/") -> TaskResult:
    """A zero-shot task of which a share is right; the same labels for each seed."""
    rng = np.random.default_rng(seed)
    label = np.arange(count) % len(CLASSES)
    top1 = (rng.random(count) < share).astype(float)
    predicted = np.where(top1 == 1, label, (label + 1) % len(CLASSES))
    samples: dict[str, Any] = {
        "key": [f"image {i}" for i in range(count)],
        "label": [CLASSES[i] for i in label],
        "predicted": [CLASSES[i] for i in predicted],
        "top1": top1,
        "confidence": rng.uniform(0.3, 1, count),
    }
    intervals = {"top1": bootstrap_interval(top1)}
    metrics = {"top1": float(top1.mean()), "odd": float("nan")}
    data = {"path": path, "samples": count, "skipped": {"truncated image": 2}, "sha256": "a"}
    return TaskResult(f"pets {HOSTILE}", "zero_shot", metrics, samples, data, intervals)


def searched(count: int, path: str | list[str]) -> TaskResult:
    """A retrieval task in which every third query fails."""
    ranks = np.tile(np.where(np.arange(count) % 3 == 0, 5, 1), 2)
    ways = ["text_to_image", "image_to_text"]
    samples: dict[str, Any] = {
        "key": [f"text {i}" for i in range(count)] + [f"{i:05d}" for i in range(count)],
        "direction": np.repeat(ways, count).tolist(),
        "rank": ranks,
    }
    metrics = {}
    for number, way in enumerate(ways):
        column = np.full(2 * count, np.nan)
        column[number * count : (number + 1) * count] = ranks[:count] <= 1
        samples[f"{way}_R@1"] = column
        metrics[f"{way}_R@1"] = float(np.nanmean(column))
    return TaskResult("captions", "retrieval", metrics, samples, {"path": path, "samples": count})


def run_with(folder: Path, *tasks: TaskResult, lr: float = 1e-3) -> Path:
    """A run's folder with some training and the results of a suite."""
    folder.mkdir(parents=True)
    records: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "ranks": 2, "samples": 640, "parameters": 5_000_000}
    ]
    records += [
        {"kind": "train", "step": s, "loss": 5 / s, "images_per_second": 64.0, "data_wait": 0.25,
         "skipped": 3, "skipped_by_reason": {"empty caption": 2, HOSTILE: 1}}
        for s in range(1, 11)
    ]  # fmt: skip
    records.append({"kind": "task", "step": 10, "task": "pets", "top1": 0.5})
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(r) for r in records))
    (folder / "config.yaml").write_text(f"optim:\n  lr: {lr}\ntrain:\n  batch_size: 64\n")
    about = {"model": {"path": str(folder / "model"), "sha256": "0" * 64}}
    table = folder / "eval/results.csv"
    if tasks:
        write_results(folder / "eval/suite", list(tasks), about, table=table)
    return folder


def set_data(run: Path, **values: Any) -> None:
    """Other facts of the data of each task."""
    path = run / "eval/suite/results.json"
    tree = json.loads(path.read_text())
    for task in tree["tasks"].values():
        task["data"] |= values
    path.write_text(json.dumps(tree))


def report(*arguments: object) -> int:
    return main(["report", *map(str, arguments)])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs of one name; the second lacks rows of the first, and is better on those it has."""
    place = tmp_path_factory.mktemp("two")
    shard = str(noise_shard(place / "a.tar", 12))
    other = classified(400, 0.8, seed=1)
    other.samples = {name: values[30:] for name, values in other.samples.items()}
    tasks = [classified(400, 0.5), searched(12, shard)]
    first = run_with(place / "a/run", *tasks)
    return first, run_with(place / "b/run", other, searched(12, shard), lr=2e-3)


def test_runs_are_compared_on_the_rows_that_both_have(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(*two, "--no-model", "--out", tmp_path / "r.html") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'r.html'}\n"
    html = (tmp_path / "r.html").read_text()
    a, b = (classified(400, share, seed=seed) for share, seed in ((0.5, 0), (0.8, 1)))
    test = paired_test(b.samples["top1"][30:], a.samples["top1"][30:])
    assert f"{test.difference:+.3f}<small>{test.low:+.3f} to {test.high:+.3f}</small>" in html
    assert "on the rows that both have: 3 comparisons in all" in html
    assert "370 rows are in both and are compared; 30 of a/run and 0 of b/run" in html
    assert "<td class=text>optim.lr</td><td class=text>0.001</td><td class=text>0.002</td>" in html
    low, high = bootstrap_interval(a.samples["top1"])
    assert f"{a.metrics['top1']:.3f}<small>{low:.3f}–{high:.3f}</small>" in html
    assert "left out 2 × truncated image" in html
    assert "<td class=text>empty caption</td><td>2</td><td>2</td>" in html
    assert "Loss" in html
    assert "<script" not in html
    assert "<img src=" not in html.replace('<img src="data:image/webp;base64,', "")


def test_p_values_are_corrected_for_their_number() -> None:
    # By hand: sorted 0.01 × 4, 0.02 × 3, 0.03 × 2 (no less than the one before), 0.5 × 1.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    corrected = holm([float("nan"), 0.04])
    assert np.isnan(corrected[0])
    assert corrected[1] == 0.04
    assert holm([]) == []


@pytest.mark.parametrize("column", ["key", "label"])
def test_runs_without_a_row_in_common_are_not_compared(column: str, tmp_path: Path) -> None:
    other = classified(8, 0.5)
    other.samples[column] = ["other"] * 8
    runs = [run_with(tmp_path / "a", classified(8, 0.5)), run_with(tmp_path / "b", other)]
    html = write_report(runs, out=tmp_path / "r.html").read_text()
    assert "a and b have no row in common, so they are not compared" in html
    assert "comparisons in all" not in html


def test_confusions_are_counted(two: tuple[Path, Path]) -> None:
    html = write_report(two[0]).read_text()
    task = classified(400, 0.5)
    wrong = np.array(task.samples["label"]) != np.array(task.samples["predicted"])
    cats = wrong & (np.array(task.samples["label"]) == "cat")
    row = f"<td class=text>cat</td><td class=text>dog</td><td>{cats.sum()}</td>"
    assert f"{row}<td>{cats.sum() / 100:.1%}</td>" in html
    assert f"<title>cat (100) × dog: {cats.sum():.0f}%</title>" in html
    assert "On the dashed line a probability is what it says" in html
    assert "gone/ is not there any more, or cannot be read, so there are no pictures" in html
    assert "8 of 12 texts find their image first" in html
    assert "number 3 (place 5)" in html  # with its picture, from the source
    assert html.count("<img") == 12


def test_a_page_of_many_samples_is_small(tmp_path: Path) -> None:
    task = classified(10_000, 0.7)
    task.samples["label"] = [f"class {i % 1000}" for i in range(10_000)]
    runs = [run_with(tmp_path / name, task) for name in "abc"]
    path = write_report(runs, out=tmp_path / "r.html")
    assert path.stat().st_size < 2_000_000
    assert "Of 1,000 classes the 20 with the most images" in path.read_text()


def test_a_model_shows_similarities_and_searches(tmp_path: Path) -> None:
    shards = [noise_shard(tmp_path / f"{i}.tar", 6 - i, first=10 * i) for i in (0, 3)]
    run = run_with(tmp_path / "run", searched(6, [str(shard) for shard in shards]))
    save_tiny_model(run / "model")
    assert report(run) == 0
    html = (run / "report.html").read_text()
    assert "Cosines of 6 images with their captions" in html
    assert "of 6 texts find their image first, among 9" in html
    assert report(run / "model", "--no-model") == 0  # the model of a run means the run
    assert "Cosines of" not in (run / "report.html").read_text()


@pytest.mark.parametrize("metrics", ["", '{"kind": "tra', '{"kind": "train", "step": 1, "loss": N'])
def test_a_run_that_has_just_begun_is_a_page(metrics: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(metrics)
    assert report(tmp_path) == 0
    assert "There is nothing on disk of this run yet" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run), "run: no such folder"),
        (lambda run: shutil.rmtree(run) or run.mkdir(), "run: this is no run and no model"),
        (lambda run: (run / "config.yaml").write_text("[1"), "config.yaml: this is no config"),
        (lambda run: (run / "status.json").write_text("{"), "status.json: it cannot be read"),
        (lambda run: (run / "metrics.jsonl").write_bytes(b"\x00\n\xff\n"), "not one of its 2 lin"),
        (lambda run: (run / "eval/suite/results.json").write_text("{}"), "results of a suite"),
        (
            lambda run: (run / "eval/suite/results.json").write_text("[" * 9999),
            "results of a suite",
        ),
        (lambda run: set_data(run, skipped={"a": "b"}), "results.json: not the results of a suite"),
        (lambda run: set_data(run, sha256=[1]), "results.json: not the results of a suite"),
        (
            lambda run: next(run.glob("eval/suite/samples/*")).write_bytes(b"PAR1"),
            ".parquet: cannot be read; evaluate again",
        ),
    ],
)
def test_what_is_missing_or_damaged_is_one_sentence(
    damage: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_with(tmp_path / "run", classified(4, 0.5))
    damage(run)
    assert report(run, "--out", tmp_path / "r.html") == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "r.html").exists()
    if run.exists():  # the end of training does not fail for it
        write_report(run, out=tmp_path / "r.html")


def test_figures_are_files_of_their_own(
    two: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("clipkit.display.figure.find_spec", lambda name: None)
    command = [two[0], "--no-model", "--out", tmp_path / "r.html", "--figures", tmp_path / "f"]
    assert report(*command) == 0
    assert (
        "for PNG files too: pip install 'clipkit-pretraining[figures]'" in capsys.readouterr().err
    )
    html = (tmp_path / "r.html").read_text()
    files = sorted((tmp_path / "f").iterdir())
    assert len(files) == html.count("<svg")
    assert {path.suffix for path in files} == {".svg"}
    for path in files:
        ElementTree.parse(path)
        assert path.read_text().strip() in html


def test_odd_names_and_columns_are_shown(tmp_path: Path) -> None:
    odd = classified(8, 0.5)
    odd.samples["label"] = ["a\x01b" * 2000, "\ufffe"] * 4
    odd.samples["confidence"] = ["?"] * 8
    run = run_with(tmp_path / "run", odd, searched(8, "gone/"))
    write_report(run, figures=tmp_path / "f")
    for path in (tmp_path / "f").glob("*.svg"):
        ElementTree.parse(path)


def test_figures_as_png_have_their_letters(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py")
    from PIL import Image

    from clipkit.display.figure import Figure, document, words, write_figures

    drawn = [
        Figure(name, document(200, 20, name, [words(0, 15, text)]))
        for name, text in (("with", "Loss → image R@1"), ("without", ""))
    ]
    files = [path for path in write_figures(drawn, tmp_path) if path.suffix == ".png"]
    with Image.open(files[0]) as written, Image.open(files[1]) as empty:
        assert written.size == (2 * 224, 2 * 44)
        dark = [np.asarray(each.convert("L")) < 160 for each in (written, empty)]
    assert not dark[1].any()
    columns = np.flatnonzero(dark[0].any(axis=0))
    assert columns.max() - columns.min() > 150  # letters, and not one box


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_page_opens_in_a_browser(two: tuple[Path, Path], tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    page_file = write_report(two, out=tmp_path / "r.html")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((390, "light"), (1200, "dark")):
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme
            )
            page = context.new_page()
            asked: list[str] = []
            said: list[str] = []
            page.on("request", lambda request, to=asked: to.append(request.url))
            page.on("console", lambda message, to=said: to.append(message.text))
            page.goto(page_file.as_uri())
            wide = "document.documentElement.scrollWidth"
            assert page.evaluate(wide) == width  # tables scroll, the page does not
            shown = page.locator("svg").first.bounding_box()
            assert shown is not None
            assert shown["width"] > 200
            light = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (light == "rgb(247, 247, 245)") == (scheme == "light")
            assert [url for url in asked if not url.startswith(("data:", page_file.as_uri()))] == []
            assert said == []
            context.close()
        browser.close()

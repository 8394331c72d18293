"""The report: one file that asks for nothing, runs nothing, and shows what there is."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tiny_model import noise_image, noise_shard, png_bytes

from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.display.curves import Series, chart
from clipkit.display.page import Answer, Gallery, Query, thumbnail
from clipkit.encoder import Encoder
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.gallery import retrieval_gallery
from clipkit.evaluation.report import read_metrics, write_report
from clipkit.evaluation.retrieval import embed_retrieval_set

HOSTILE = '"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\x00\ud800'
METRICS = {
    f"{way}_{name}": value
    for way in ("text_to_image", "image_to_text")
    for name, value in {
        "R@1": 0.5,
        "R@5": 0.75,
        "R@10": 1.0,
        "median_rank": 1.5,
        "chance": 1 / 1234,
    }.items()
} | {"num_images": 1234, "num_texts": 60, "num_shared": 7}


class _Tags(HTMLParser):
    """All tags, attributes and texts of a page; and whether every tag is closed."""

    VOID = ("meta", "img", "line", "circle", "polyline", "rect", "image")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def _run_folder(folder: Path, steps: int = 50) -> Path:
    folder.mkdir()
    records = [
        {"kind": "train", "step": s, "loss": 5 / s, "lr": 1e-3, "scale": 14.0, "skipped": 0,
         "images_per_second": 100.0 + s, "data_wait": 0.1}
        for s in range(1, steps + 1)
    ]  # fmt: skip
    records += [
        {"kind": "eval", "step": s, "split": "validation", **METRICS} for s in range(10, steps, 10)
    ]
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "tra']))
    (folder / "config.yaml").write_text("output: <b>run</b>\n")
    return folder


def test_the_report_shows_curves_metrics_and_config(tmp_path: Path) -> None:
    path = write_report(_run_folder(tmp_path / "run"), results={"held-out": METRICS})
    assert path == tmp_path / "run/report.html"
    html = path.read_text()
    page = _Tags(html)
    assert html.count("<svg") == 6  # loss, retrieval, scale, rate, images/s, waiting
    for shown in ("validation", "held-out", "1,234", "0.500", "0.750", "1.5", "median rank"):
        assert shown in page.text
    assert "output: <b>run</b>" in page.text
    assert "0.0008" in page.text, "the chance of guessing"
    assert "held-out: 7 of 60 texts belong to several images each, any of which" in page.text


def test_the_report_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    answer = Answer(thumbnail(png_bytes(noise_image(0))), HOSTILE, 0.5, right=True)
    gallery = Gallery(HOSTILE, [Query(HOSTILE, [answer], HOSTILE)], HOSTILE)
    run = _run_folder(tmp_path / "<i>run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"kind": "eval", "step": 60, "split": HOSTILE, **METRICS}))
    path = write_report(run, results={HOSTILE: METRICS}, galleries=[gallery])
    page = _Tags(path.read_text(encoding="utf-8"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "i>run", "base", "form"}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
                beginning = "#" if tag == "a" else "data:image/webp;base64,"
                assert (value or "").startswith(beginning), (tag, name, value)
    style = re.search("<style>(.*?)</style>", path.read_text(encoding="utf-8"), re.S)
    assert style is not None
    assert not re.search(r"url\(|@import|expression", style[1])
    assert page.text.count("<script>alert(1)</script>") >= 4  # shown as text


def test_a_report_of_nothing_is_a_page(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    page = _Tags(write_report(tmp_path / "empty", out=tmp_path / "page.html").read_text())
    assert "empty" in page.text
    assert read_metrics(tmp_path / "nothing") == []


def test_the_gallery_marks_the_right_images(tiny_encoder: Encoder, tmp_path: Path) -> None:
    reader = open_source(
        SourceConfig(path=str(noise_shard(tmp_path / "a.tar", 12))), progress=False
    )
    collected = embed_retrieval_set(Job(tiny_encoder), reader)
    assert collected is not None
    # As if the model knew the first nine, and took the others for one another.
    collected.text_embeds = collected.image_embeds[[*range(9), 10, 11, 9]]
    gallery = retrieval_gallery(collected, [reader], title="validation", num_queries=8, k=12)
    assert [query.note for query in gallery.queries].count("found first") == 5
    assert len(gallery.queries) == 8
    for query in gallery.queries:
        right = [i for i, answer in enumerate(query.answers) if answer.right]
        assert len(right) == 1
        assert query.answers[right[0]].caption == query.text
        assert (right[0] == 0) == (query.note == "found first")
        assert query.note == "found first" or query.note.endswith(f"place {right[0] + 1}")
    assert gallery.note.startswith("9 of 12 texts find their image first, among 12.")


@pytest.mark.parametrize("count", [1, 2, 10_000])
def test_a_chart_holds_any_number_of_points(count: int) -> None:
    figure = chart("x", [Series("a", list(range(count)), [float(i) for i in range(count)])])
    assert figure is not None
    html = figure.svg
    ElementTree.fromstring(html)
    points = re.findall(r'points="([^"]*)"', html)
    assert max((len(p.split()) for p in points), default=1) <= 400
    assert "nan" not in html


def test_a_chart_leaves_gaps_where_values_are_not_finite() -> None:
    values = [1.0, 2.0, float("nan"), float("inf"), 3.0, 4.0]
    figure = chart("loss", [Series("loss", list(range(6)), values)])
    assert figure is not None
    assert figure.svg.count("<polyline") == 2
    assert chart("loss", [Series("loss", [1], [float("nan")])]) is None
    assert chart("loss", [Series("loss", [], [])]) is None


@pytest.mark.parametrize("values", [[1.0, 1.0 + 1e-15], [0.0, 5e-324], [-3e-19, 0.0], [7.0, 7.0]])
def test_a_curve_that_hardly_moves_is_level(values: list[float]) -> None:
    figure = chart("loss", [Series("loss", [1, 2], values)])
    assert figure is not None
    (points,) = re.findall(r'points="([^"]*)"', figure.svg)
    assert len({point.split(",")[1] for point in points.split()}) == 1


def test_a_picture_that_cannot_be_decoded_is_left_out() -> None:
    assert thumbnail(b"<svg onload=alert(1)>") is None
    assert thumbnail(None) is None

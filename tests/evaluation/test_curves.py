"""A run's records as curves: for a notebook, for a terminal, as a frame."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

import clipkit
from clipkit.display.curves import Series, chart
from clipkit.errors import CheckpointError


def write_metrics(folder: Path, *, steps: int, split: str = "validation") -> Path:
    records = [{"kind": "start", "step": 0}]
    records += [
        {"kind": "train", "step": step, "loss": 5 / step, "scale": 50.0, "lr": 1e-3}
        for step in range(1, steps + 1)
    ]
    records.append({"kind": "eval", "step": steps, "split": split, "text_to_image_R@1": 0.25})
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "train", "st']))
    return folder


def test_curves_show_what_was_recorded(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "run", steps=45, split="<b>held-out</b>")
    curves = clipkit.training_curves(run)
    frame = curves.to_pandas()
    assert list(frame.index) == list(range(1, 46))
    assert frame.loss[10] == 0.5
    page = curves._repr_html_()
    assert page.count("</svg>") == 3  # no accuracy was recorded
    assert "&lt;b&gt;held-out&lt;/b&gt;" in page
    assert "<b>held-out" not in page
    assert "25.0%" in page
    lines = repr(curves).splitlines()
    assert len(lines) <= 22
    assert lines[-1].split() == ["45", "0.111", "50.0"]


def test_curves_of_one_step_are_drawn_and_of_none_refused(tmp_path: Path) -> None:
    run = write_metrics(tmp_path / "run", steps=1)
    assert "<svg" in clipkit.training_curves(str(run))._repr_html_()
    (run / "metrics.jsonl").write_text('{"kind": "start", "step": 0}\n')
    for empty in (run, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="no training step is recorded there"):
            clipkit.training_curves(empty)


@pytest.mark.parametrize(
    "values", [(0.1, 0.2), (4.12, 4.1243), (1000.1, 1001.2), (1.01e-4, 1.07e-4), (0.0, 2e-13)]
)
def test_ticks_of_an_axis_differ_and_are_what_they_say(values: tuple[float, float]) -> None:
    figure = chart("Loss", [Series("last", [1.0, 2.0, 3.0], [*values, values[0]])])
    assert figure is not None
    svg = figure.svg
    ticks = re.findall(r'<text x="42" y="[\d.]+" text-anchor="end"[^>]*>([^<]+)<', svg)
    shown = [float(tick.replace(",", "")) for tick in ticks]
    assert len(set(ticks)) == len(ticks) >= 3
    steps = [b - a for a, b in pairwise(shown)]
    assert max(steps) == pytest.approx(min(steps), rel=0.05)
    assert shown[0] <= min(values) <= max(values) <= shown[-1]
    assert re.findall(r'text-anchor="middle"[^>]*>([^<]+)<', svg) == ["2"], "steps are whole"

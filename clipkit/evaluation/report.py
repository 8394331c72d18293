"""A run's folder → report.html: how the training went, how good the model is, what it finds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipkit.atomic import write_text
from clipkit.display.curves import Series, chart
from clipkit.display.page import Gallery, details, gallery, page, section, table, tiles

_WAYS = (("text_to_image", "text → image"), ("image_to_text", "image → text"))


def write_report(
    run_folder: str | Path,
    *,
    results: Mapping[str, Mapping[str, float]] | None = None,
    galleries: Sequence[Gallery] = (),
    out: str | Path | None = None,
) -> Path:
    """One page about a run that opens anywhere: no requests, no scripts.

    Args:
        run_folder: its ``metrics.jsonl`` and ``config.yaml`` are shown where they are.
        results: metrics by name of data set, besides those in ``metrics.jsonl``; see
            ``evaluate_retrieval``.
        galleries: searches with what they found.
        out: the file to write; none: ``report.html`` in the run's folder.

    Returns:
        The file written.

    Raises:
        CheckpointError: the file cannot be written.
    """
    folder = Path(run_folder)
    records = read_metrics(folder / "metrics.jsonl")
    train = [r for r in records if r.get("kind") == "train"]
    evals = [r for r in records if r.get("kind") == "eval"]
    latest: dict[str, Mapping[str, Any]] = {split_name(r): r for r in evals}
    latest.update(results or {})
    sections = [_headline(train, latest)]
    if latest:
        sections.append(section("Retrieval", _metric_table(latest), _reading_help(latest)))
    if charts := _charts(train, evals, [r for r in records if r.get("kind") == "start"]):
        sections.append(section("Training", f'<div class="charts">{"".join(charts)}</div>'))
    if spikes := [r for r in records if r.get("kind") == "spike"]:
        sections.append(section("Loss spikes", _spike_table(spikes)))
    sections += [gallery(each) for each in galleries]
    config = folder / "config.yaml"
    if config.is_file():
        text = config.read_text(encoding="utf-8", errors="replace")
        sections.append(section("Config", details("config.yaml", text)))
    path = Path(out) if out is not None else folder / "report.html"
    name = folder.resolve().name
    write_text(path, page(name, "Contrastive image-text training with clipkit", sections))
    return path


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a ``metrics.jsonl``; a line that was cut by a kill is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _finite(record.get("step")):
            records.append(record)
    return records


def split_name(record: Mapping[str, Any]) -> str:
    """How a record of evaluation is named: by its split, and whose weights were evaluated."""
    return f"{record.get('split')} (EMA)" if record.get("ema") else str(record.get("split"))


def metric_rows(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: two rows a data set, text → image and image → text."""
    ks = sorted(
        {
            int(key.rsplit("@", 1)[1])
            for metrics in results.values()
            for key in metrics
            if key.startswith("text_to_image_R@") and key.rsplit("@", 1)[1].isdigit()
        }
    )
    header = ["", *(f"R@{k}" for k in ks), "median rank", "images", "texts"]
    rows = []
    for name, metrics in results.items():
        for key, words in _WAYS:
            rows.append(
                [
                    f"{name}  {words}",
                    *(_show(metrics.get(f"{key}_R@{k}"), ".3f") for k in ks),
                    _show(metrics.get(f"{key}_median_rank"), "g"),
                    _show(metrics.get("num_images"), ",.0f"),
                    _show(metrics.get("num_texts"), ",.0f"),
                ]
            )
    return header, rows


def _metric_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    return table(*metric_rows(results))


def _reading_help(results: Mapping[str, Mapping[str, Any]]) -> str:
    images = max((int(m.get("num_images") or 0) for m in results.values()), default=0)
    chance = (
        f" Guessing among {images:,} images gives an R@1 of {1 / images:.4f}." if images else ""
    )
    return (
        '<p class="subtitle">R@k: the share of queries with a right answer among the first k. '
        f"Ties count against the model.{chance}</p>"
    )


def _headline(train: Sequence[Mapping[str, Any]], latest: Mapping[str, Mapping[str, Any]]) -> str:
    facts: list[tuple[str, str]] = []
    for split, metrics in list(latest.items())[-1:]:
        for k in (1, 5):
            value = metrics.get(f"text_to_image_R@{k}")
            if _finite(value):
                facts.append((f"{split}: text → image R@{k}", f"{value:.1%}"))
    if train:
        last = train[-1]
        facts.append(("steps", _show(last.get("step"), ",.0f")))
        facts.append(("loss", _show(last.get("loss"), ".3f")))
        speeds = sorted(_series(train, "images_per_second", "").values)
        if speeds:
            facts.append(("images/s, median", f"{speeds[len(speeds) // 2]:,.0f}"))
        used = sorted(_series(train, "utilisation", "").values)
        if used:
            facts.append(("model FLOPs utilisation, median", f"{used[len(used) // 2]:.0%}"))
        if last.get("skipped"):
            facts.append(("samples skipped", _show(last["skipped"], ",.0f")))
    return tiles(facts) if facts else ""


def _charts(
    train: Sequence[Mapping[str, Any]],
    evals: Sequence[Mapping[str, Any]],
    starts: Sequence[Mapping[str, Any]],
) -> list[str]:
    drawn: list[str | None] = [chart("Loss", [_series(train, "loss", "loss")])]
    for split in dict.fromkeys(split_name(r) for r in evals):
        here = [r for r in evals if split_name(r) == split]
        lines = [
            _series(here, f"{key}_R@{k}", f"{words} R@{k}") for key, words in _WAYS for k in (1, 5)
        ]
        drawn.append(chart(f"Retrieval on {split}", lines, share=True))
    accuracies = [_series(train, f"accuracy_{key}", words) for key, words in _WAYS]
    drawn.append(chart("Right within the batch", accuracies, share=True))
    norms = {"grad_norm": "all", "grad_norm_vision": "image tower", "grad_norm_text": "text tower"}
    drawn.append(chart("Scale (inverse temperature)", [_series(train, "scale", "scale")]))
    rates = [_series(train, "lr", "lr")]
    if any(r.get("lr_lowest") != r.get("lr_highest") for r in train):
        rates += [_series(train, f"lr_{end}", f"{end} of a group") for end in ("lowest", "highest")]
    drawn.append(chart("Learning rate", rates))
    drawn.append(chart("Gradient norm", [_series(train, *each) for each in norms.items()]))
    for key, title in (
        ("images_per_second", "Images a second"),
        ("tokens_per_second", "Text tokens a second"),
        ("memory_gib", "Most memory of a rank, GiB"),
    ):
        drawn.append(chart(title, [_series(train, key, key.replace("_", " "))]))
    ceilings = {
        f"{_show(r.get('ceiling_tflops'), '.3g')} TFLOP/s ({r.get('ceiling_source')})"
        for r in starts
    }
    drawn.append(
        chart(
            "Model FLOPs utilisation",
            [_series(train, "utilisation", "share")],
            share=True,
            note=f"Of {'; of '.join(sorted(ceilings))}." if ceilings else "",
        )
    )
    drawn.append(
        chart("Time spent waiting for data", [_series(train, "data_wait", "share")], share=True)
    )
    if any(r.get("skipped") for r in train):
        drawn.append(chart("Samples skipped so far", [_series(train, "skipped", "skipped")]))
    return [each for each in drawn if each is not None]


def _spike_table(spikes: Sequence[Mapping[str, Any]]) -> str:
    """The first and the last of them, each with what it is compared with."""
    shown = [*spikes[:10], *spikes[max(10, len(spikes) - 10) :]]
    rows = [
        [
            _show(r.get("step"), ",.0f"),
            *(
                f"{_show(r.get(key), '.3g')} ({_show(r.get(f'median_{key}'), '.3g')})"
                if f"median_{key}" in r
                else _show(r.get(key), ".3g")
                for key in ("loss", "grad_norm")
            ),
            _show(r.get("data_wait"), ".0%"),
        ]
        for r in shown
    ]
    header = ["step", "loss (recent median)", "gradient norm (recent median)", "data wait"]
    return table(header, rows)


def _series(records: Sequence[Mapping[str, Any]], key: str, name: str) -> Series:
    there = [r for r in records if isinstance(r.get(key), int | float)]
    return Series(name, [float(r["step"]) for r in there], [float(r[key]) for r in there])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _show(value: Any, form: str) -> str:
    return format(value, form) if _finite(value) else "–"

"""The records of training of one run or several → curves, spikes, samples that were skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.display.curves import Series, chart
from clipkit.display.figure import Figure
from clipkit.display.page import table
from clipkit.evaluation.report.runs import Run, is_finite, split_name
from clipkit.evaluation.report.tables import WAYS, show, split_way

# key, title, whether it is a share
_CURVES = (
    ("scale", "Scale (inverse temperature)", False),
    ("lr", "Learning rate", False),
    ("grad_norm", "Gradient norm", False),
    ("images_per_second", "Images a second", False),
    ("tokens_per_second", "Text tokens a second", False),
    ("memory_gib", "Most memory of a rank, GiB", False),
    ("utilisation", "Model FLOPs utilisation", True),
    ("data_wait", "Time spent waiting for data", True),
    ("skipped", "Samples skipped so far", False),
)
# Further lines of a curve, where one run alone is shown.
_PARTS = {
    "grad_norm": {"grad_norm_vision": "image tower", "grad_norm_text": "text tower"},
    "lr": {"lr_lowest": "lowest of a group", "lr_highest": "highest of a group"},
}


def curves(runs: Sequence[Run]) -> list[Figure]:
    """One run: several lines a figure; several runs: a figure a metric, a line a run."""
    found = [_curve(runs, "train", "loss", "Loss")]
    found += _evaluations(runs)
    if len(runs) == 1:
        train = runs[0].of_kind("train")
        accuracies = [_series(train, f"accuracy_{key}", words) for key, words in WAYS]
        found.append(chart("Right within the batch", accuracies, share=True))
    else:
        found += [
            _curve(runs, "train", f"accuracy_{key}", f"Right within the batch, {words}", share=True)
            for key, words in WAYS
        ]
    for key, title, share in _CURVES:
        note = ""
        if key == "skipped" and not any(r.get(key) for run in runs for r in run.of_kind("train")):
            continue
        if key == "utilisation":
            note = _ceilings(runs)
        found.append(_curve(runs, "train", key, title, share=share, note=note))
    return [each for each in found if each is not None]


def spike_table(runs: Sequence[Run]) -> str:
    """The first and the last of each run, each with what it is compared with; or nothing."""
    rows = []
    for run in runs:
        spikes = run.of_kind("spike")
        for r in [*spikes[:10], *spikes[max(10, len(spikes) - 10) :]]:
            rows.append(
                [
                    *([run.name] if len(runs) > 1 else []),
                    show(r.get("step"), ",.0f"),
                    *(
                        f"{show(r.get(key), '.3g')} ({show(r.get(f'median_{key}'), '.3g')})"
                        if f"median_{key}" in r
                        else show(r.get(key), ".3g")
                        for key in ("loss", "grad_norm")
                    ),
                    show(r.get("data_wait"), ".0%"),
                ]
            )
    names = ["run"] if len(runs) > 1 else []
    header = [
        *names, "step", "loss (recent median)", "gradient norm (recent median)", "data wait",
    ]  # fmt: skip
    return table(header, rows) if rows else ""


def skipped_table(runs: Sequence[Run]) -> str:
    """How many samples each run skipped for each reason; or nothing."""
    counts = [_skipped(run) for run in runs]
    reasons = sorted({reason for each in counts for reason in each})
    totals = ["all", *(f"{sum(each.values()):,}" for each in counts)]
    rows = [[reason, *(f"{each.get(reason, 0):,}" for each in counts)] for reason in reasons]
    names = [run.name for run in runs] if len(runs) > 1 else ["samples"]
    return table(["reason", *names], [*rows, totals]) if rows else ""


def _skipped(run: Run) -> dict[str, int]:
    """By reason; one reason for all where a run did not note it."""
    train = run.of_kind("train")
    last = train[-1] if train else {}
    reasons = last.get("skipped_by_reason")
    if isinstance(reasons, dict):
        return {str(reason): int(n) for reason, n in reasons.items() if is_finite(n) and n}
    number = last.get("skipped")
    return {"not noted": int(number)} if number and is_finite(number) else {}


def _evaluations(runs: Sequence[Run]) -> list[Figure | None]:
    """Curves of what was measured on each split, and of each task, while training."""
    found = []
    for name in dict.fromkeys(_measured_on(r) for run in runs for r in run.records):
        if not name:
            continue
        of_run = [[r for r in run.records if _measured_on(r) == name] for run in runs]
        lines = _metrics_of([record for records in of_run for record in records])
        if len(runs) == 1:
            series = [_series(of_run[0], key, words) for key, words in lines.items()]
            found.append(chart(f"On {name}", series, share=True))
            continue
        for key, words in lines.items():
            series = [
                _series(records, key, run.name) for run, records in zip(runs, of_run, strict=True)
            ]
            found.append(chart(f"{words} on {name}", series, share=True))
    return found


def _measured_on(record: Mapping[str, Any]) -> str:
    """The split or task that a record is of; empty where it is of neither."""
    if record.get("kind") == "eval":
        return split_name(record)
    if record.get("kind") == "task":
        return f"{record.get('task')}{' (EMA)' if record.get('ema') else ''}"
    return ""


def _metrics_of(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The metrics that are drawn, with their names: recall at 1 and 5 both ways; of what has
    none, the first four that are shares."""
    keys = [f"{key}_R@{k}" for key, _ in WAYS for k in (1, 5)]
    keys = [key for key in keys if any(key in r for r in records)]
    if not keys:
        values: dict[str, list[float]] = {}
        for record in records:
            for key, value in record.items():
                if isinstance(value, float):
                    values.setdefault(key, []).append(value)
        keys = [k for k, v in values.items() if all(0 <= x <= 1 for x in v if is_finite(x))][:4]
    return {key: " ".join(split_way(key)).strip() for key in keys}


def _curve(
    runs: Sequence[Run], kind: str, key: str, title: str, *, share: bool = False, note: str = ""
) -> Figure | None:
    if len(runs) > 1:
        lines = [_series(run.of_kind(kind), key, run.name) for run in runs]
        return chart(title, lines, share=share, note=note)
    records = runs[0].of_kind(kind)
    parts = _PARTS.get(key, {})
    if key == "lr" and all(r.get("lr_lowest") == r.get("lr_highest") for r in records):
        parts = {}
    lines = [_series(records, key, "all" if key == "grad_norm" else "last")]
    lines += [_series(records, part, words) for part, words in parts.items()]
    return chart(title, lines, share=share, note=note)


def _ceilings(runs: Sequence[Run]) -> str:
    told = {
        f"{show(r.get('ceiling_tflops'), '.3g')} TFLOP/s ({r.get('ceiling_source')})"
        for run in runs
        for r in run.of_kind("start")
    }
    return f"Of {'; of '.join(sorted(told))}." if told else ""


def _series(records: Sequence[Mapping[str, Any]], key: str, name: str) -> Series:
    there = [r for r in records if isinstance(r.get(key), float) or is_finite(r.get(key))]
    return Series(name, [float(r["step"]) for r in there], [float(r[key]) for r in there])

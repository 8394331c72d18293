"""Metrics → rows of tables, and numbers as they are written in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clipkit.evaluation.report.runs import is_finite

WAYS = (("text_to_image", "text → image"), ("image_to_text", "image → text"))
_WORDS = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class_recall": "mean per class",
    "ece": "ECE",
}


def metric_rows(results: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: two rows a data set, text → image and image → text. A recall
    that no data set has, such as R@10 of 8 texts, has no column."""
    ks = sorted(
        {
            int(key.rsplit("@", 1)[1])
            for metrics in results.values()
            for key in metrics
            if key.startswith(("text_to_image_R@", "image_to_text_R@"))
            and key.rsplit("@", 1)[1].isdigit()
        }
    )
    header = ["", *(f"R@{k}" for k in ks), "median rank", "chance", "images", "texts"]
    rows = []
    for name, metrics in results.items():
        for key, words in WAYS:
            rows.append(
                [
                    f"{name}  {words}",
                    *(show(metrics.get(f"{key}_R@{k}"), ".3f") for k in ks),
                    show(metrics.get(f"{key}_median_rank"), "g"),
                    show(metrics.get(f"{key}_chance"), ".4f"),
                    show(metrics.get("num_images"), ",.0f"),
                    show(metrics.get("num_texts"), ",.0f"),
                ]
            )
    return header, rows


def show(value: Any, form: str) -> str:
    """A number in a format; a dash for what is none."""
    return format(value, form) if is_finite(value) else "–"


def show_metric(metric: str, value: Any) -> str:
    """A metric's value: ranks and counts as they are, shares with three digits."""
    if metric.startswith("num_"):
        return show(value, ",.0f")
    return show(value, "g" if metric.endswith("rank") else ".3f")


def show_interval(ends: Sequence[float] | None) -> str:
    """``0.512–0.634``; nothing where it is not known."""
    if ends is None or not all(map(is_finite, ends)):
        return ""
    return f"{ends[0]:.3f}–{ends[1]:.3f}"


def split_way(metric: str) -> tuple[str, str]:
    """``text_to_image_R@1`` → ("text → image", "R@1"); of other metrics the first is empty."""
    for key, words in WAYS:
        if metric.startswith(f"{key}_"):
            return words, metric_name(metric.removeprefix(f"{key}_"))
    return "", metric_name(metric)


def metric_name(metric: str) -> str:
    """A metric as it is written: ``top-1`` for ``top1``."""
    return _WORDS.get(metric, metric.removeprefix("num_").replace("_", " "))

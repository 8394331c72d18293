"""What is measured of a model → its model card: the results of suites, and the licence if given.

A card is Markdown with a YAML head, the README.md of a model's folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from clipkit.atomic import write_text
from clipkit.digest import weights_sha256
from clipkit.evaluation.caveats import caveats
from clipkit.evaluation.report.runs import is_finite, read_runs
from clipkit.evaluation.report.tables import show_interval, show_metric, split_way
from clipkit.evaluation.results import SuiteResults

RESULTS_HEADING, LICENCE_HEADING = "Results of suites", "Licence"
CONFIG_HEADING = "The run's config"
_NO_LICENCE = (
    "None was stated. `clipkit export … --license NAME` puts `license: NAME` into the head of this "
    "file, where the hub reads it; so does writing it there by hand. Mind the licences of the data."
)


def update_card(folder: Path) -> None:
    """Puts the results of suites that are on disk of a model into the card beside it.

    Args:
        folder: the model's; a card is left as it is where there are no results of these weights.
    """
    path = folder / "README.md"
    if path.is_file() and (suites := suites_of(folder)):
        card = path.read_text(encoding="utf-8", errors="replace")
        write_text(path, with_results(card, suites))


def suites_of(folder: Path) -> list[SuiteResults]:
    """The results on disk of the very weights in a model's folder; those that cannot be read are
    left out."""
    (run,) = read_runs([folder])
    if not run.suites:
        return []
    own = weights_sha256(folder)
    return [
        each for each in run.suites.values() if each.about.get("model", {}).get("sha256") == own
    ]


def with_results(card: str, suites: Sequence[SuiteResults]) -> str:
    """A card with the results, in the place of those that it had; none: as it is."""
    if not suites:
        return card
    lines = ["With 95% intervals, a bootstrap over the samples.", ""]
    lines += ["| suite | task | metric | value | interval | samples |", "|---|---|---|---|---|---|"]
    for suite in suites:
        for task in suite.tasks.values():
            for metric, value in task.metrics.items():
                cells = (
                    suite.folder.name,
                    task.name,
                    " ".join(split_way(metric)).strip(),
                    show_metric(metric, value),
                    show_interval(task.intervals.get(metric)),
                    str(task.data.get("samples", "")),
                )
                lines.append(f"| {' | '.join(map(_cell, cells))} |")
    sources = [
        f"{_cell(task.name)}: `{task.data.get('path')}`"
        for suite in suites
        for task in suite.tasks.values()
    ]
    lines += ["", f"Data: {'; '.join(sources)}."]
    notes = [
        f"- {_cell(task.name)}: {_cell(str(note))}"
        for suite in suites
        for task in suite.tasks.values()
        for note in task.data.get("notes") or []
    ]
    lines += ["", *notes] if notes else []
    return with_section(card, RESULTS_HEADING, "\n".join(lines), before="Limits")


def with_licence(card: str, licence: str | None) -> str:
    """A card that states a licence in its head; none: what it states, or that it states none."""
    head, body = _split_head(card)
    if licence is not None:
        head["license"] = licence
    stated = head.get("license")
    text = f"`{stated}`." if stated else _NO_LICENCE
    body = with_section(body, LICENCE_HEADING, text)
    if not head:
        return body
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n{body}"


def with_section(card: str, heading: str, text: str, *, before: str = "") -> str:
    """A card in which a section says ``text``: the one of that name, or a new one.

    Args:
        card: Markdown.
        heading: of the section, which begins with ``##``.
        text: what is under it.
        before: the section that a new one is put before; none such: it is the last.
    """
    block = f"## {heading}\n\n{text.strip()}\n"
    found = _find(card, heading)
    if found is not None:
        rest = card[found[1] :]
        return card[: found[0]] + block + (f"\n{rest}" if rest else "")
    place = _find(card, before) if before else None
    if place is not None:
        return f"{card[: place[0]]}{block}\n{card[place[0] :]}"
    return f"{card.rstrip()}\n\n{block}"


def split_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """A table in Markdown: retrieval on each split, with intervals; and its caveats.

    A recall is the mean of hits and misses, so its number of queries is all that the bootstrap
    needs to know.
    """
    import numpy as np

    from clipkit.evaluation.statistics import bootstrap_interval

    rows = [
        "| split | direction | R@1 (95% interval) | R@5 (95% interval) | chance | queries "
        "| among |",
        "|---|---|---|---|---|---|---|",
    ]
    for split, metrics in results.items():
        images, texts = (int(metrics[name]) for name in ("num_images", "num_texts"))
        for way, words, queries, answers in (
            ("text_to_image", "text → image", texts, f"{images:,} images"),
            ("image_to_text", "image → text", images, f"{texts:,} texts"),
        ):
            cells = []
            for k in (1, 5):
                value = metrics.get(f"{way}_R@{k}")
                if is_finite(value):
                    ends = bootstrap_interval(np.arange(queries) < round(value * queries))
                    cells.append(f"{show_metric('R', value)} ({show_interval(ends)})")
                else:
                    cells.append("–")
            cells.append(show_metric("R", metrics.get(f"{way}_chance")))
            rows.append(
                f"| {_cell(split)} | {words} | {' | '.join(cells)} | {queries:,} | {answers} |"
            )
    notes = [f"- {_cell(split)}: {each}." for split in results for each in caveats(results[split])]
    return "\n".join([*rows, *(["", *notes] if notes else [])])


def _find(card: str, heading: str) -> tuple[int, int] | None:
    """Where a section begins and ends; what looks like a heading in a block of code is none."""
    start = None
    fenced, place = False, 0
    for line in card.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and line.startswith("## "):
            if start is not None:
                return start, place
            if line.strip() == f"## {heading}":
                start = place
        place += len(line)
    return None if start is None else (start, place)


def _split_head(card: str) -> tuple[dict[str, object], str]:
    """The YAML head as a dictionary, and the rest; a head that is none stays in the rest."""
    match = re.match(r"---\n(.*?\n)---\n", card, re.DOTALL)
    if match is None:
        return {}, card
    try:
        head = yaml.safe_load(match[1])
    except yaml.YAMLError:
        return {}, card
    return (head, card[match.end() :]) if isinstance(head, dict) else ({}, card)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")

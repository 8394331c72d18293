"""Runs → report.html: their results, how they differ, how training went, what a model finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clipkit._version import __version__
from clipkit.atomic import write_text
from clipkit.display import page
from clipkit.display.figure import Figure, write_figures
from clipkit.display.page import Gallery
from clipkit.errors import CheckpointError
from clipkit.evaluation.caveats import caveats
from clipkit.evaluation.report.answers import (
    confused_pairs,
    confusion_matrix,
    examples,
    has_answers,
    reliability,
    texts_of,
)
from clipkit.evaluation.report.comparison import compare_runs, comparison_parts
from clipkit.evaluation.report.pictures import Pictures
from clipkit.evaluation.report.runs import Run, is_finite, read_runs, split_name
from clipkit.evaluation.report.searches import has_searches, searches
from clipkit.evaluation.report.suites import (
    Measured,
    all_measured,
    by_task,
    headline,
    suite_parts,
)
from clipkit.evaluation.report.summary import runs_parts
from clipkit.evaluation.report.tables import metric_rows, show
from clipkit.evaluation.report.training import curves, skipped_table, spike_table
from clipkit.evaluation.report.with_model import Seen, see
from clipkit.evaluation.results import SuiteResults

_MOST_SHOWN = 10  # classifications of which figures and examples are shown


def write_report(
    run_folders: str | Path | Sequence[str | Path],
    *,
    results: Mapping[str, Mapping[str, float]] | None = None,
    suites: Mapping[str, SuiteResults] | None = None,
    galleries: Sequence[Gallery] = (),
    out: str | Path | None = None,
    figures: str | Path | None = None,
    load_models: bool = False,
    strict: bool = False,
) -> Path:
    """One page about runs that opens anywhere: no requests, no scripts.

    Args:
        run_folders: a run's folder or a model's, or several; what is on disk of them is shown.
        results: retrieval metrics by name of data set, besides those on disk; see
            ``evaluate_retrieval``.
        suites: results of suites by name, of the first run, besides those on disk.
        galleries: searches with what they found.
        out: the file to write; none: ``report.html`` in the folder of the one run.
        figures: a folder for each figure as SVG, and as PNG where resvg_py is installed.
        load_models: whether to show what only the models themselves can tell.
        strict: refuse folders that are no runs, and files that are damaged; else the page says
            what cannot be read.

    Returns:
        The file written.

    Raises:
        CheckpointError: the file cannot be written; or see ``strict``.
    """
    folders = [run_folders] if isinstance(run_folders, str | Path) else list(run_folders)
    runs = read_runs(folders, strict=strict)
    path = Path(out) if out is not None else runs[0].folder / "report.html"
    runs[0].suites = {**(suites or {}), **runs[0].suites}
    content = _Content(runs, all_measured(runs), strict)
    content.collect(results or {}, galleries, load_models)
    if figures is not None:
        write_figures(content.figures, Path(figures))
    write_text(path, content.html())
    return path


@dataclass
class _Content:
    """A page as it comes together, and its figures in their order."""

    runs: list[Run]
    measured: list[Measured]
    strict: bool
    sections: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    given: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def collect(
        self,
        results: Mapping[str, Mapping[str, float]],
        galleries: Sequence[Gallery],
        load_models: bool,
    ) -> None:
        """Section by section, in the order in which they are read."""
        runs, pictures = self.runs, Pictures()
        several = len(runs) > 1
        self._add("Cannot be read", *(page.note(fault) for run in runs for fault in run.faults))
        self._add("Runs" if several else "Run", *runs_parts(runs))
        for heading, parts in suite_parts(runs, self.measured):
            self._add(heading, *parts)
        self._comparison()
        self.given = results
        self._retrieval(results)
        self._classes(pictures)
        seen = see(runs, self.measured, pictures) if load_models else Seen()
        self._add(
            "Images and texts",
            *(self._figure(each) for each in seen.figures),
            *(page.subheading(each.title) + page.queries(each) for each in seen.galleries),
            *map(page.note, seen.remarks),
        )
        self._searches(pictures, seen.searched)
        for each in galleries:
            self._add(each.title, page.queries(each))
        if drawn := curves(runs):
            self._add("Training", page.charts([self._figure(each) for each in drawn]))
        self._add("Skipped samples", skipped_table(runs))
        self._add("Loss spikes", spike_table(runs))
        configs = [
            page.details(run.name if several else "config.yaml", run.config_text)
            for run in runs
            if run.config_text
        ]
        self._add("Config", *configs)

    def html(self) -> str:
        """The whole page."""
        runs = self.runs
        names = ", ".join(run.name for run in runs)
        title = names if len(runs) == 1 else f"{len(runs)} runs: {names}"
        when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        subtitle = f"Contrastive image-text training with clipkit {__version__}, {when}"
        top = [page.contents([heading for heading, _ in self.sections])]
        if facts := self._headline():
            top.append(page.tiles(facts))
        if not self.sections:
            top.append(page.note("There is nothing on disk of this run yet."))
        elif not self.measured:
            top.append(
                page.note(
                    "There are no results of a suite here; "
                    f"clipkit eval {runs[0].folder} --suite FILE writes them."
                )
            )
        return page.page(title, subtitle, [*top, *(html for _, html in self.sections)])

    def _add(self, heading: str, *parts: str) -> None:
        if any(parts):
            self.sections.append((heading, page.section(heading, *parts)))

    def _figure(self, figure: Figure) -> str:
        self.figures.append(figure)
        return page.figure(figure)

    def _headline(self) -> list[tuple[str, str]]:
        """Large numbers about one run."""
        if len(self.runs) > 1:
            return []
        (run,) = self.runs
        train, evals = run.of_kind("train"), run.of_kind("eval")
        last: dict[str, Mapping[str, Any]] = {split_name(record): record for record in evals[-1:]}
        if self.given:
            last = dict(list(self.given.items())[-1:])
        facts = [] if self.given else headline(self.measured)
        for name, metrics in last.items() if not facts else ():
            for k in (1, 5):
                value = metrics.get(f"text_to_image_R@{k}")
                if is_finite(value):
                    facts.append((f"{name}: text → image R@{k}", f"{value:.1%}"))
        if train:
            facts.append(("steps", show(train[-1].get("step"), ",.0f")))
            facts.append(("loss", show(train[-1].get("loss"), ".3f")))
            if train[-1].get("skipped"):
                facts.append(("samples skipped", show(train[-1]["skipped"], ",.0f")))
        return facts

    def _comparison(self) -> None:
        try:
            found, remarks = compare_runs(self.runs, self.measured)
        except CheckpointError as error:
            self._cannot_be_read(error)
            return
        parts, figures = comparison_parts(found, remarks)
        if figures:
            parts.insert(1, page.charts([self._figure(each) for each in figures]))
        self._add("Comparison", *parts)

    def _retrieval(self, results: Mapping[str, Mapping[str, float]]) -> None:
        """What was measured last while training, and what is given."""
        latest: dict[str, Mapping[str, Any]] = {}
        for run in self.runs:
            for record in run.of_kind("eval"):
                name = split_name(record)
                latest[name if len(self.runs) == 1 else f"{name}, {run.name}"] = record
        latest = {**latest, **results}
        latest = {name: m for name, m in latest.items() if is_finite(m.get("num_images"))}
        text = (
            "R@k: the share of queries with a right answer among the first k. All captions of an "
            "image are right, and all images of a caption. Ties count against the model. Chance: "
            "the R@1 of a random order."
        )
        notes = [page.note(f"{name}: {each}.") for name in latest for each in caveats(latest[name])]
        if latest:
            heading = "Retrieval" if results else "Retrieval at the end of training"
            self._add(heading, page.table(*metric_rows(latest)), page.note(text), *notes)

    def _classes(self, pictures: Pictures) -> None:
        """Of each classification: what is taken for what, how sure it was, examples."""
        shown = 0
        for name, having in by_task(self.measured).items():
            parts, sure, shots = [], [], []
            for each in having:
                rows = self._rows(each)
                if not has_answers(rows):
                    continue
                shown += 1
                title = each.title(self.runs)
                label, predicted = (texts_of(rows, key) for key in ("label", "predicted"))
                if len(having) > 1:
                    parts.append(page.subheading(each.run.name))
                if shown <= _MOST_SHOWN:
                    parts.append(
                        self._figure(confusion_matrix(f"Confusion, {title}", label, predicted))
                    )
                    if figure := reliability(f"Reliability, {title}", rows):
                        sure.append(figure)
                    if "key" in rows:
                        html = examples(rows, each.task.data.get("path"), pictures)
                        shots.append(page.folded(f"Examples of {title}", html))
                elif shown == _MOST_SHOWN + 1:
                    text = f"Figures and examples are shown of the first {_MOST_SHOWN}."
                    parts.append(page.note(text))
                parts.append(confused_pairs(label, predicted))
            if sure:
                parts.append(page.subheading("How sure, and how often right"))
                parts.append(page.charts([self._figure(each) for each in sure]))
            self._add(f"Classes of {name}", *parts, *shots)

    def _searches(self, pictures: Pictures, searched: set[tuple[str, str]]) -> None:
        """Of each retrieval task whose searches are not there in full: some of its queries."""
        for name, having in by_task(self.measured).items():
            parts = []
            for each in having:
                if (each.run.name, each.task.name) in searched:
                    continue
                rows = self._rows(each)
                if has_searches(rows):
                    if len(having) > 1:
                        parts.append(page.subheading(each.run.name))
                    parts.append(searches(rows, each.task.data.get("path"), pictures))
            self._add(f"Searches of {name}", *parts)

    def _rows(self, each: Measured) -> dict[str, np.ndarray]:
        """Its samples; none where they cannot be read."""
        try:
            return each.suite.read_samples(each.task.name)
        except CheckpointError as error:
            self._cannot_be_read(error)
            return {}

    def _cannot_be_read(self, error: CheckpointError) -> None:
        if self.strict:
            raise error
        self._add("Cannot be read", page.note(str(error)))

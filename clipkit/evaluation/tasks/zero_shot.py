"""Images sorted into classes that are named in words, with no training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.evaluation.calibration import calibration
from clipkit.evaluation.classification import average_precisions, predicted_classes
from clipkit.evaluation.embedding import EmbeddedSource, Job
from clipkit.evaluation.features import kept_source
from clipkit.evaluation.labelled import LabelledData, ask_labels
from clipkit.evaluation.prompts import resolve_templates
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.shares import at_rank_zero
from clipkit.evaluation.tasks.judge import build_classifier, judge
from clipkit.evaluation.tasks.task import Task, describe_data, unique_keys

_ROWS = 4096  # images whose probabilities are there at once


@dataclass
class ZeroShotOptions:
    """The keys of a zero-shot task."""

    data: SourceConfig = field(default_factory=SourceConfig)
    # Where an image's class is: a member (cls), a column, or json.FIELD; none: the usual ones, in
    # a folder of images the folders' names. Several classes an image stand in a list.
    label: str | None = None
    # The classes in words: a list, or a file with a name a line, for classes 0, 1 …; or from each
    # label in the data to its name or names. None: what the data call them.
    class_names: Any = None
    # A named set, one text or a list, with {} for the class; none: the name alone.
    templates: str | list[str] | None = None
    # Whether an image may be of several classes; none: whether one is.
    several: bool | None = None


class ZeroShotTask(Task):
    """Top-1 and top-5 accuracy, mean recall a class and expected calibration error; where an image
    may be of several classes, mean average precision."""

    kind = "zero_shot"
    Options = ZeroShotOptions
    headline = ("top1", "top5", "mean_per_class_recall", "mAP")
    options: ZeroShotOptions

    def open(self, *, progress: bool = False) -> None:
        options = self.options
        self.templates = resolve_templates(options.templates)
        self.data = LabelledData(
            options.data, options.label, options.class_names, options.several, progress=progress
        )
        self.readers = [self.data.reader]

    def run(self, job: Job) -> TaskResult | None:
        embedded = kept_source(job, self.data.reader, ask_labels(self.data.several))

        def measure() -> TaskResult:
            assert embedded is not None
            return self._measure(job, embedded)

        return at_rank_zero(measure, job.world_size)

    def _measure(self, job: Job, embedded: EmbeddedSource) -> TaskResult:
        found = self.data.targets(embedded)
        classifier, notes = build_classifier(job, self.data, self.templates)
        notes += self.data.notes(found)
        names = classifier.labels
        scores = embedded.embeds @ classifier.class_embeds.T  # (N, C)
        metrics: dict[str, float] = {}
        columns: dict[str, Any] = {"key": unique_keys(embedded.keys)}
        if self.data.has_several(found):
            positives = np.zeros(scores.shape, dtype=bool)
            for row, each in enumerate(found):
                positives[row, each] = True
            metrics["mAP"] = float(np.nanmean(average_precisions(scores, positives)))
            columns["label"] = [", ".join(names[c] for c in each) for each in found]
            columns["predicted"] = [names[c] for c in predicted_classes(scores)]
        else:
            targets = np.array([each[0] for each in found])
            metrics, judged = judge(scores, targets, names)
            columns |= judged
            columns["confidence"] = np.concatenate(
                [
                    classifier.probabilities(embedded.embeds[i : i + _ROWS]).max(axis=1)
                    for i in range(0, len(targets), _ROWS)
                ]
            )
            metrics["ece"] = calibration(columns["confidence"], columns["top1"]).ece
        data = describe_data(
            [self.data.reader],
            samples=len(embedded.keys),
            skipped=embedded.skipped,
            parts=(
                [k, *(names[c] for c in each)] for k, each in zip(embedded.keys, found, strict=True)
            ),
            notes=notes,
        )
        return TaskResult(self.name, self.kind, metrics, columns, data)

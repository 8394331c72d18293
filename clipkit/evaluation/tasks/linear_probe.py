"""What a linear classifier learns from the embeddings of labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.errors import DataError
from clipkit.evaluation.embedding import EmbeddedSource, Job
from clipkit.evaluation.probe import swept_probe
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.shares import at_rank_zero
from clipkit.evaluation.tasks.task import Task
from clipkit.evaluation.tasks.train_test import LabelledSets


@dataclass
class LinearProbeOptions:
    """The keys of a linear probe."""

    train: SourceConfig = field(default_factory=SourceConfig)  # images to learn from
    data: SourceConfig = field(default_factory=SourceConfig)  # images to be judged by
    # Images that choose the strength of the regularisation; none: a tenth of those of train.
    validation: SourceConfig | None = None
    label: str | None = None  # see ZeroShotOptions, as for class_names
    class_names: Any = None


class LinearProbeTask(Task):
    """Accuracy of a logistic regression on unit-length embeddings, its L2 chosen on validation.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, appendix A.3.
    """

    kind = "linear_probe"
    Options = LinearProbeOptions
    headline = ("top1", "top5", "mean_per_class_recall")
    options: LinearProbeOptions

    def open(self, *, progress: bool = False) -> None:
        options = self.options
        sources = {"train": options.train, "data": options.data}
        if options.validation is not None:
            sources["validation"] = options.validation
        self.sets = LabelledSets(sources, options.label, options.class_names, progress=progress)

    def run(self, job: Job) -> TaskResult | None:
        embedded = self.sets.embed(job)

        def measure() -> TaskResult:
            assert embedded is not None
            return self._measure(embedded)

        return at_rank_zero(measure, job.world_size)

    def _measure(self, embedded: dict[str, EmbeddedSource]) -> TaskResult:
        sets = {name: self.sets.labelled(name, part) for name, part in embedded.items()}
        train, tested = sets["train"], sets["data"]
        # A class without an image has no minimum: its bias would fall for ever.
        there = np.unique(train.targets)
        place = np.full(len(self.sets.labels), -1)
        place[there] = np.arange(len(there))
        validation = None
        if "validation" in sets:
            known = np.isin(sets["validation"].targets, there)
            given = sets["validation"]
            validation = given.embeds[known], place[given.targets[known]]
        try:
            probe = swept_probe(train.embeds, place[train.targets], len(there), validation)
        except ValueError as error:
            raise DataError(f"train: {error}; name images for validation") from error
        scores = np.full((len(tested.targets), len(place)), -np.inf, dtype=np.float32)
        scores[:, there] = probe.scores(tested.embeds)
        facts = {
            "l2": probe.l2,
            "validation_accuracies": {f"{l2:.4g}": v for l2, v in probe.accuracies.items()},
        }
        return self.sets.result(
            self.name, self.kind, embedded, scores, tested.targets, train.targets, facts
        )

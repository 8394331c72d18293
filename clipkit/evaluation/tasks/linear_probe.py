"""What a linear classifier learns from the embeddings of labelled images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.errors import DataError
from clipkit.evaluation.embedding import EmbeddedSource, Job
from clipkit.evaluation.probe import SweptProbe, swept_probe
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
        self.readers = self.sets.readers

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
        validation, notes = None, []
        if "validation" in sets:
            given = sets["validation"]
            known = np.isin(given.targets, there)
            validation = given.embeds[known], place[given.targets[known]]
            if not known.any():
                raise DataError(
                    "validation: not one image is of a class that train has, so that none can "
                    "choose l2"
                )
            if not known.all():
                notes.append(
                    f"{(~known).sum():,} of {len(known):,} images of validation were left out, as "
                    "train has no image of their classes"
                )
        scores = np.full((len(tested.targets), len(place)), np.nan, dtype=np.float32)
        facts: dict[str, Any] = {}
        # Of a model that gives what are no numbers nothing can be learned: all count as wrong.
        if all(np.isfinite(sets[name].embeds).all() for name in sets if name != "data"):
            probe = self._fit(train.embeds, place[train.targets], len(there), validation)
            scores[:] = -np.inf
            scores[:, there] = probe.scores(tested.embeds)
            facts["l2"] = probe.l2
            facts["validation_accuracies"] = {
                f"{l2:.4g}": value for l2, value in probe.accuracies.items()
            }
        result = self.sets.result(
            self.name, self.kind, embedded, scores, tested.targets, train.targets, facts
        )
        result.data["notes"] += notes
        return result

    def _fit(
        self,
        embeds: np.ndarray,
        targets: np.ndarray,
        num_classes: int,
        validation: tuple[np.ndarray, np.ndarray] | None,
    ) -> SweptProbe:
        try:
            return swept_probe(embeds, targets, num_classes, validation)
        except ValueError as error:
            raise DataError(f"train: {error}; name images for validation") from error

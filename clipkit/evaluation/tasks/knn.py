"""What the nearest labelled images say of others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from clipkit.config.schema import SourceConfig
from clipkit.errors import ConfigError
from clipkit.evaluation.embedding import EmbeddedSource, Job
from clipkit.evaluation.knn import knn_scores
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.shares import at_rank_zero
from clipkit.evaluation.tasks.task import Task
from clipkit.evaluation.tasks.train_test import LabelledSets


@dataclass
class KnnOptions:
    """The keys of a task of nearest neighbours."""

    train: SourceConfig = field(default_factory=SourceConfig)  # images that vote
    data: SourceConfig = field(default_factory=SourceConfig)  # images to be judged by
    label: str | None = None  # see ZeroShotOptions, as for class_names
    class_names: Any = None
    k: int = 20  # neighbours that vote
    temperature: float = 0.07  # a vote is exp(cosine / temperature)


class KnnTask(Task):
    """Accuracy of a vote of the nearest training images.

    Reference: https://arxiv.org/abs/1805.01978, section 3.4; DINO,
    https://arxiv.org/abs/2104.14294, appendix F.
    """

    kind = "knn"
    Options = KnnOptions
    headline = ("top1", "top5", "mean_per_class_recall")
    options: KnnOptions

    def open(self, *, progress: bool = False) -> None:
        options = self.options
        if options.k < 1:
            raise ConfigError(f"k: {options.k}; give 1 or more")
        if not options.temperature > 0:
            raise ConfigError(f"temperature: {options.temperature}; give a number above 0")
        sources = {"train": options.train, "data": options.data}
        self.sets = LabelledSets(sources, options.label, options.class_names, progress=progress)
        self.readers = self.sets.readers

    def run(self, job: Job) -> TaskResult | None:
        embedded = self.sets.embed(job)

        def measure() -> TaskResult:
            assert embedded is not None
            return self._measure(job, embedded)

        return at_rank_zero(measure, job.world_size)

    def _measure(self, job: Job, embedded: dict[str, EmbeddedSource]) -> TaskResult:
        train, tested = (self.sets.labelled(name, embedded[name]) for name in ("train", "data"))
        scores = knn_scores(
            train.embeds,
            train.targets,
            tested.embeds,
            len(self.sets.labels),
            k=self.options.k,
            temperature=self.options.temperature,
            device=job.encoder.device,
        )
        k = min(self.options.k, len(train.targets))
        facts = {"k": k, "temperature": self.options.temperature}
        return self.sets.result(
            self.name, self.kind, embedded, scores, tested.targets, train.targets, facts
        )

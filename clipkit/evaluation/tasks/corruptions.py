"""Zero-shot accuracy on pictures that were spoilt in stated ways."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.errors import ConfigError
from clipkit.evaluation.classification import class_ranks
from clipkit.evaluation.corruptions import CORRUPTIONS, corrupt_pixels
from clipkit.evaluation.embedding import EmbeddedSource, Job, embed_source
from clipkit.evaluation.features import kept_source
from clipkit.evaluation.labelled import LabelledData, ask_labels
from clipkit.evaluation.prompts import resolve_templates
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.shares import at_rank_zero
from clipkit.evaluation.tasks.judge import build_classifier, judge
from clipkit.evaluation.tasks.task import Task, describe_data, unique_keys
from clipkit.evaluation.zero_shot import ZeroShotClassifier


@dataclass
class CorruptionsOptions:
    """The keys of a task on corruptions."""

    data: SourceConfig = field(default_factory=SourceConfig)
    label: str | None = None  # see ZeroShotOptions, as for class_names and templates
    class_names: Any = None
    templates: Any = None
    kinds: list[str] = field(default_factory=lambda: list(CORRUPTIONS))
    severities: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    seed: int = 0  # of what is drawn


class CorruptionsTask(Task):
    """Zero-shot accuracy as it is, ``top1``; under each corruption, ``top1_jpeg`` for one, the mean
    over the severities; and the mean over corruptions, ``top1_corrupted``. Pictures are spoilt
    after they were resized for the model. Each corruption and severity embeds all images once.

    Reference: https://arxiv.org/abs/1903.12261; the corruptions are our own.
    """

    kind = "corruptions"
    Options = CorruptionsOptions
    headline = ("top1", "top1_corrupted")
    options: CorruptionsOptions

    def open(self, *, progress: bool = False) -> None:
        options = self.options
        for key, given, known in (
            ("kinds", options.kinds, list(CORRUPTIONS)),
            ("severities", options.severities, [1, 2, 3, 4, 5]),
        ):
            wrong = [each for each in given if each not in known]
            if wrong or not given or len(set(given)) < len(given):
                what = wrong[0] if wrong else "none" if not given else "one twice"
                raise ConfigError(f"{key}: {what}; there are {', '.join(map(str, known))}")
        self.templates = resolve_templates(options.templates)
        self.data = LabelledData(
            options.data, options.label, options.class_names, progress=progress
        )
        self.readers = [self.data.reader]

    def run(self, job: Job) -> TaskResult | None:
        options, reader, ask = self.options, self.data.reader, ask_labels(False)
        clean = kept_source(job, reader, ask)

        def prepare() -> tuple[ZeroShotClassifier, list[str], np.ndarray]:
            assert clean is not None
            targets = self.data.one_each(clean)
            return *build_classifier(job, self.data, self.templates), targets

        prepared = at_rank_zero(prepare, job.world_size)
        hits: dict[str, np.ndarray] = {}
        for kind in options.kinds:
            for severity in options.severities:
                change = partial(corrupt_pixels, kind=kind, severity=severity, seed=options.seed)
                spoilt = embed_source(job, reader, ask, change)
                if prepared is not None and spoilt is not None:
                    classifier, _, targets = prepared
                    scores = spoilt.embeds @ classifier.class_embeds.T
                    right = (class_ranks(scores, targets) == 1).astype(np.float64)
                    hits[kind] = hits.get(kind, 0.0) + right / len(options.severities)

        def measure() -> TaskResult:
            assert clean is not None
            assert prepared is not None
            return self._measure(clean, *prepared, hits)

        return at_rank_zero(measure, job.world_size)

    def _measure(
        self,
        clean: EmbeddedSource,
        classifier: ZeroShotClassifier,
        notes: list[str],
        targets: np.ndarray,
        hits: dict[str, np.ndarray],
    ) -> TaskResult:
        names = classifier.labels
        metrics, columns = judge(clean.embeds @ classifier.class_embeds.T, targets, names)
        own: dict[str, np.ndarray] = {"top1_corrupted": np.mean(list(hits.values()), axis=0)}
        own |= {f"top1_{kind}": values for kind, values in hits.items()}
        metrics |= {name: float(values.mean()) for name, values in own.items()}
        data = describe_data(
            [self.data.reader],
            samples=len(clean.keys),
            skipped=clean.skipped,
            parts=([key, names[c]] for key, c in zip(clean.keys, targets, strict=True)),
            notes=notes + self.data.notes([[c] for c in targets]),
        )
        data |= {"severities": self.options.severities, "seed": self.options.seed}
        columns = {"key": unique_keys(clean.keys), **columns, **own}
        return TaskResult(self.name, self.kind, metrics, columns, data)

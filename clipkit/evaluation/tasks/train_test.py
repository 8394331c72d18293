"""Labelled images to learn from and others to be judged by: what a probe and neighbours share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.data.overlap import shared_images
from clipkit.errors import ConfigError
from clipkit.evaluation.embedding import EmbeddedSource, Job
from clipkit.evaluation.features import kept_source
from clipkit.evaluation.labelled import LabelledData, ask_labels
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.tasks.judge import judge
from clipkit.evaluation.tasks.task import describe_data, unique_keys


@dataclass
class LabelledEmbeds:
    """(N, D) embeddings and (N,) classes, as numbers in the order of ``LabelledSets.labels``."""

    embeds: np.ndarray
    targets: np.ndarray


class LabelledSets:
    """Several sets of images with the same classes, each image of one; ``train`` has all of them.

    Args:
        sources: by name; ``train`` and ``data``, the one that is judged, among them.
        label, class_names: see ``ZeroShotOptions``.
        progress: whether to show a bar while files are indexed.

    Attributes:
        labels: C classes.
        readers: the sets' sources, the one that is judged first.

    Raises:
        ClipkitError: data that cannot be read, or a class that training has not.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceConfig],
        label: str | None,
        class_names: Any,
        *,
        progress: bool,
    ) -> None:
        self._sets = {
            name: LabelledData(source, label, class_names, progress=progress)
            for name, source in sources.items()
        }
        judged_first = sorted(self._sets.items(), key=lambda item: item[0] != "data")
        self.readers = [each.reader for _, each in judged_first]
        self.labels = list(self._sets["train"].classes)
        numbers = {name: c for c, name in enumerate(self.labels)}
        self._numbers: dict[str, np.ndarray] = {}  # of a set's own classes, those in ``labels``
        for name, each in self._sets.items():
            unknown = [known for known in each.classes if known not in numbers]
            if unknown:
                raise ConfigError(
                    f"{name}: {each.reader.source.path} has the class {unknown[0]!r}, and no image "
                    f"of train ({self._sets['train'].reader.source.path}) is of it"
                )
            self._numbers[name] = np.array([numbers[known] for known in each.classes])

    def embed(self, job: Job) -> dict[str, EmbeddedSource] | None:
        """All sets on rank 0, None on the others; all ranks must call it."""
        parts = {
            name: kept_source(job, each.reader, ask_labels(False))
            for name, each in self._sets.items()
        }
        found = {name: part for name, part in parts.items() if part is not None}
        return found if job.main else None

    def labelled(self, name: str, embedded: EmbeddedSource) -> LabelledEmbeds:
        """One set.

        Raises:
            ClipkitError: a label that is no class, several of one image, or nothing usable.
        """
        targets = self._numbers[name][self._sets[name].one_each(embedded)]
        return LabelledEmbeds(embedded.embeds, targets)

    def result(
        self,
        name: str,
        kind: str,
        embedded: Mapping[str, EmbeddedSource],
        scores: np.ndarray,
        targets: np.ndarray,
        trained: np.ndarray,
        facts: Mapping[str, Any],
    ) -> TaskResult:
        """What a task has measured on ``data``.

        Args:
            name, kind: of the task.
            embedded: of all sets.
            scores: (N, C).
            targets: (N,).
            trained: (M,) the classes of the training images.
            facts: what else to tell of how it was measured, for ``TaskResult.data``.
        """
        metrics, columns = judge(scores, targets, self.labels)
        unseen = np.setdiff1d(targets, trained)
        notes = []
        if len(unseen):
            notes.append(
                f"{len(unseen)} of {len(self.labels)} classes have no image to learn from, "
                f"{self.labels[unseen[0]]!r} for one; theirs count as wrong"
            )
        tested = embedded["data"]
        if shared := shared_images(self._sets["data"].reader, self._sets["train"].reader):
            notes.append(
                f"{shared:,} of the images of data are in train too: of these the accuracy shows "
                "what was remembered"
            )
        labels = [self.labels[c] for c in targets]
        data = describe_data(
            [self._sets["data"].reader],
            samples=len(tested.keys),
            skipped=tested.skipped,
            parts=([key, label] for key, label in zip(tested.keys, labels, strict=True)),
            notes=notes,
        )
        for other in embedded:
            if other != "data":
                part = embedded[other]
                data[other] = describe_data(
                    [self._sets[other].reader],
                    samples=len(part.keys),
                    skipped=part.skipped,
                    parts=([key, *told] for key, told in zip(part.keys, part.told, strict=True)),
                )
        return TaskResult(
            name, kind, metrics, {"key": unique_keys(tested.keys), **columns}, {**data, **facts}
        )

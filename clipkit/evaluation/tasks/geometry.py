"""How the embeddings of images and of texts lie on the sphere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.evaluation.embedding import Job, batches_of_rank
from clipkit.evaluation.geometry import alignment, effective_rank, modality_gap, uniformity
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.retrieval import RetrievalSet, embed_retrieval_set
from clipkit.evaluation.shares import at_rank_zero
from clipkit.evaluation.tasks.task import Task, describe_data, unique_keys


@dataclass
class GeometryOptions:
    """The keys of a task on geometry."""

    data: SourceConfig = field(default_factory=SourceConfig)  # image-caption pairs
    lines: bool = False  # each line of a caption is a caption


class GeometryTask(Task):
    """Alignment, uniformity, modality gap and effective rank; see
    ``clipkit.evaluation.geometry``. Images with the same file are one, and equal captions too.

    The effective rank of each rank's share of the images is told in ``data``, as it depends on the
    number of ranks.
    """

    kind = "geometry"
    Options = GeometryOptions
    headline = ("alignment", "image_uniformity", "modality_gap", "image_effective_rank")
    options: GeometryOptions

    def open(self, *, progress: bool = False) -> None:
        self.reader = open_source(self.options.data, progress=progress)
        self.readers = [self.reader]

    def run(self, job: Job) -> TaskResult | None:
        collected = embed_retrieval_set(job, self.reader, lines=self.options.lines)

        def measure() -> TaskResult:
            assert collected is not None
            return self._measure(job, collected)

        return at_rank_zero(measure, job.world_size)

    def _measure(self, job: Job, collected: RetrievalSet) -> TaskResult:
        images, texts = collected.image_embeds, collected.text_embeds
        of_image, of_text = np.unique(collected.matches, axis=0).T
        distances = alignment(images[of_image], texts[of_text])
        metrics = {
            "alignment": float(distances.mean()),
            "modality_gap": modality_gap(images, texts),
        }
        for name, embeds in (("image", images), ("text", texts)):
            metrics[f"{name}_uniformity"] = uniformity(embeds)
            metrics[f"{name}_effective_rank"] = effective_rank(embeds)
        keys = [collected.keys[i] for i in of_image]
        data = describe_data(
            [self.reader],
            samples=len(keys),
            skipped=collected.skipped,
            parts=(
                [key, collected.captions[t]] for key, t in zip(keys, of_text.tolist(), strict=True)
            ),
        )
        ranks = self._of_each_rank(job, collected)
        data["image_effective_rank_of_each_rank"] = ranks
        if len(ranks) > 1:
            data["image_effective_rank_min_over_ranks"] = float(np.nanmin(ranks))
        columns: dict[str, Any] = {"key": unique_keys(keys), "alignment": distances}
        return TaskResult(self.name, self.kind, metrics, columns, data)

    def _of_each_rank(self, job: Job, collected: RetrievalSet) -> list[float]:
        batches = np.array([row for _, row in collected.places]) // job.batch_size
        ranks = []
        for rank in range(job.world_size):
            share = batches_of_rank(self.reader, job.batch_size, rank, job.world_size)
            own = (batches >= share.start) & (batches < share.stop)
            ranks.append(effective_rank(collected.image_embeds[own]))
        return ranks

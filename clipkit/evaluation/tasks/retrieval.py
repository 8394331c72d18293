"""Images found by their captions, and captions by their images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, open_source
from clipkit.data.source import open_annotated
from clipkit.evaluation.caveats import KS, caveats
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.metrics import DIRECTIONS, Ranking, metrics_of
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.retrieval import RetrievalSet, count_set, embed_retrieval_set, rank_set
from clipkit.evaluation.shares import at_rank_zero
from clipkit.evaluation.tasks.task import Task, describe_data, unique_keys


@dataclass
class RetrievalOptions:
    """The keys of a retrieval task."""

    # Image-caption pairs. All captions of an image are its right answers, unless ``captions``
    # of the source is first or join.
    data: SourceConfig = field(default_factory=SourceConfig)
    # More images that the right ones must be told apart from; they need no captions.
    gallery: list[SourceConfig] = field(default_factory=list)
    lines: bool = False  # each line of a caption is a caption
    # Instead of captions in ``data``, which then is the folder of the images: a JSON of Karpathy's
    # splits, such as dataset_coco.json, and the split of it.
    karpathy: str | None = None
    split: str = "test"


class RetrievalTask(Task):
    """Recall at 1, 5 and 10, median rank and mAP in both directions.

    Images with the same file are one image, and equal captions one text. A recall that cannot be
    wrong is left out, and a note says so.
    """

    kind = "retrieval"
    Options = RetrievalOptions
    headline = ("text_to_image_R@1", "text_to_image_R@5", "image_to_text_R@1", "image_to_text_R@5")
    options: RetrievalOptions

    def open(self, *, progress: bool = False) -> None:
        options = self.options
        self.reader: Reader
        if options.karpathy is None:
            self.reader = open_source(options.data, progress=progress)
        else:
            self.reader = open_annotated(options.data, options.karpathy, options.split)
        self.galleries: list[Reader] = []
        for source in self.options.gallery:
            source.caption = source.caption or "none"
            self.galleries.append(open_source(source, progress=progress))
        self.readers = [self.reader, *self.galleries]

    def run(self, job: Job) -> TaskResult | None:
        collected = embed_retrieval_set(
            job, self.reader, gallery=self.galleries, lines=self.options.lines
        )

        def measure() -> TaskResult:
            assert collected is not None
            return self._measure(job, collected)

        return at_rank_zero(measure, job.world_size)

    def _measure(self, job: Job, collected: RetrievalSet) -> TaskResult:
        rankings = rank_set(collected, device=job.encoder.device)
        metrics = metrics_of(rankings, ks=KS)
        notes = caveats({**metrics, **count_set(collected)})
        if collected.num_truncated:
            notes.append(
                f"{collected.num_truncated:,} of {len(collected.captions):,} captions are longer "
                f"than {job.encoder.preprocess.context_length} tokens and were cut"
            )
        texts: list[list[str]] = [[] for _ in collected.keys]
        for image, text in collected.matches.tolist():
            texts[image].append(collected.captions[text])
        data = describe_data(
            [self.reader, *self.galleries],
            samples=len(collected.keys),
            skipped=collected.skipped,
            parts=([key, *each] for key, each in zip(collected.keys, texts, strict=True)),
            notes=notes,
        )
        return TaskResult(self.name, self.kind, metrics, _columns(collected, rankings), data)


def _columns(collected: RetrievalSet, rankings: tuple[Ranking, Ranking]) -> dict[str, Any]:
    """A row a query, of the directions in which an answer can be wrong; see ``TaskResult``."""
    metrics = metrics_of(rankings, ks=KS)
    names = [
        name
        for way in DIRECTIONS
        for name in (*(f"{way}_R@{k}" for k in KS), f"{way}_mAP")
        if name in metrics
    ]
    columns: dict[str, Any] = {"key": [], "direction": [], "rank": []}
    columns |= {name: [] for name in names}
    keys = (collected.captions, unique_keys(collected.keys))
    for way, named, (ranks, precision, _) in zip(DIRECTIONS, keys, rankings, strict=True):
        if f"{way}_mAP" not in names:
            continue
        asked = np.flatnonzero(ranks)
        own: dict[str, np.ndarray] = {f"{way}_mAP": precision[asked]}
        for k in KS:
            own[f"{way}_R@{k}"] = (ranks[asked] <= k).astype(np.float64)
        columns["key"] += [named[i] for i in asked]
        columns["direction"] += [way] * len(asked)
        columns["rank"].append(ranks[asked])
        for name in names:
            columns[name].append(own.get(name, np.full(len(asked), np.nan)))
    if not columns["key"]:
        return {}
    return columns | {name: np.concatenate(columns[name]) for name in ("rank", *names)}

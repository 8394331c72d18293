"""What needs the model itself: a heat map of a few pairs, and searches in a small data set."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from clipkit.config.load import source_from_dict
from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, SampleError
from clipkit.data.tokenize import clean_caption
from clipkit.display.figure import Figure
from clipkit.display.matrix import MatrixFigure
from clipkit.display.page import Gallery, small_webp
from clipkit.encoder import Encoder, load
from clipkit.errors import ClipkitError, ConfigError, DataError
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.gallery import retrieval_gallery
from clipkit.evaluation.report.pictures import Pictures, source_at
from clipkit.evaluation.report.runs import Run, value_at
from clipkit.evaluation.report.suites import Measured
from clipkit.evaluation.retrieval import embed_retrieval_set
from clipkit.inputs import open_image

_PAIRS = 12
_SEARCHED = 1000  # samples at most that are embedded for a gallery
_RUNS = 4  # whose models are loaded


@dataclass
class Seen:
    """What the models of the runs show.

    Attributes:
        figures: heat maps.
        galleries: searches.
        remarks: what could not be shown, and why.
        searched: name of the run and of the data of each gallery.
    """

    figures: list[Figure] = field(default_factory=list)
    galleries: list[Gallery] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    searched: set[tuple[str, str]] = field(default_factory=set)


def see(runs: list[Run], measured: list[Measured], pictures: Pictures) -> Seen:
    """Loads the model of each run, of the first four, and asks it about its own data: the first
    retrieval task of its results, else the first split that it was evaluated on."""
    seen = Seen()
    for run in runs[:_RUNS]:
        if not any((run.folder / name).exists() for name in ("model", "config.json")):
            continue
        asked = _source(run, measured)
        if asked is None:
            continue
        name, sources = asked
        readers = []
        for source in sources:
            reader = pictures.reader(source)
            if isinstance(reader, str):
                seen.remarks.append(f"{name}: {reader}")
                break
            readers.append(reader)
        if len(readers) < len(sources):
            continue
        try:
            encoder = load(str(run.folder))
        except (ClipkitError, OSError) as error:
            seen.remarks.append(f"{run.name}: the model cannot be loaded ({error})")
            continue
        title = name if len(runs) == 1 else f"{name}, {run.name}"
        if figure := _heat_map(encoder, readers[0], f"Similarity, {title}"):
            seen.figures.append(figure)
        if sum(map(len, readers)) <= _SEARCHED:
            job = Job(encoder, progress=True)
            try:
                collected = embed_retrieval_set(job, readers[0], gallery=readers[1:])
            except DataError:
                continue
            assert collected is not None  # as there is one rank
            seen.searched.add((run.name, name))
            seen.galleries.append(
                retrieval_gallery(collected, readers, title=f"Searches, {title}", num_queries=6)
            )
    if len(runs) > _RUNS:
        seen.remarks.append(f"Of {len(runs)} models the first {_RUNS} were loaded.")
    return seen


def _source(run: Run, measured: list[Measured]) -> tuple[str, list[SourceConfig]] | None:
    """Name of what the model is asked about, its source, and those of more images."""
    for each in measured:
        if each.run is run and each.task.kind == "retrieval":
            paths = each.task.data.get("path")
            first, *others = paths if isinstance(paths, list) and paths else [paths]
            more = [SourceConfig(path=str(path), caption="none") for path in others]
            return each.task.name, [source_at(first), *more]
    splits = value_at(run.config, "data.evaluate")
    for name, tree in splits.items() if isinstance(splits, dict) else ():
        if isinstance(tree, dict):
            try:
                return str(name), [source_from_dict(tree, where="config.yaml")]
            except ConfigError:  # of another version
                continue
    return None


def _heat_map(encoder: Encoder, reader: Reader, title: str) -> Figure | None:
    """Cosines of a few images and captions, spread evenly over a source."""
    images, names, texts, small = [], [], [], []
    places = np.unique(np.linspace(0, len(reader) - 1, _PAIRS).round().astype(int))
    for row in places.tolist():
        try:
            pair = reader[row]
            caption = clean_caption(pair.caption)
            if caption is None or caption in texts or pair.image is None:
                continue
            image = open_image(pair.image, where=pair.origin)
        except (SampleError, DataError):
            continue
        images.append(image)
        names.append(pair.key)
        texts.append(caption)
        small.append(small_webp(image, 64))
    if not images:
        return None
    scores = encoder.encode_image(images) @ encoder.encode_text(texts).T  # (N, N)
    drawn = MatrixFigure(scores, names, texts, small, title=title)
    text = (
        f"Cosines of {len(images)} images with their captions, which are on the diagonal, spread "
        "evenly over the data."
    )
    return Figure(title, drawn.svg(), text, wide=True, white=True)

"""Whether a model can tell captions apart that differ by a word, or by its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, SampleError, open_source
from clipkit.data.reader import field_of
from clipkit.data.tokenize import clean_caption
from clipkit.errors import ConfigError, DataError
from clipkit.evaluation.compositionality import hard_negative_hits, winoground_hits
from clipkit.evaluation.embedding import EmbeddedSource, Job, embed_texts
from clipkit.evaluation.features import kept_source
from clipkit.evaluation.results import TaskResult
from clipkit.evaluation.shares import at_rank_zero, from_rank_zero
from clipkit.evaluation.tasks.task import Task, describe_data, unique_keys
from clipkit.types import Pair


@dataclass
class CompositionalOptions:
    """The keys of a compositional task."""

    data: SourceConfig = field(default_factory=SourceConfig)
    # negatives: an image, its caption and wrong captions, as in SugarCrepe; pairs: two images and
    # two captions, as in Winoground, in the columns image_0, image_1, caption_0 and caption_1.
    form: Literal["negatives", "pairs"] = "negatives"
    # The field with the wrong caption, or with a list of them; or a list of such fields.
    negative: Any = "negative_caption"


class CompositionalTask(Task):
    """``accuracy``: the image's own caption scores above each wrong one; or, of pairs,
    ``text_score``, ``image_score`` and ``group_score``. Ties are wrong.

    Reference: SugarCrepe, https://arxiv.org/abs/2306.14610; Winoground,
    https://arxiv.org/abs/2204.03162.
    """

    kind = "compositional"
    Options = CompositionalOptions
    headline = ("accuracy", "text_score", "image_score", "group_score")
    options: CompositionalOptions

    def open(self, *, progress: bool = False) -> None:
        source = self.options.data
        if self.options.form == "pairs":
            halves = [
                dataclasses.replace(source, image=f"image_{i}", caption=f"caption_{i}")
                for i in (0, 1)
            ]
            self.readers = [open_source(half, progress=progress) for half in halves]
            _refuse_uneven(self.readers)
            return
        self._negatives = _field_names(self.options.negative)
        self.readers = [open_source(source, progress=progress)]
        _check_fields(self.readers[0], self._negatives)

    def run(self, job: Job) -> TaskResult | None:
        ask = _own_caption
        if self.options.form == "negatives":
            ask = partial(_with_negatives, fields=self._negatives)
        parts = [kept_source(job, reader, ask) for reader in self.readers]

        def join() -> list[EmbeddedSource]:
            joined = _same_rows([part for part in parts if part is not None])
            if not joined[0].keys:
                skips = [skip for part in parts if part is not None for skip in part.skipped]
                first = f" (the first: {skips[0].origin}: {skips[0].reason})" if skips else ""
                raise DataError(f"{self.options.data.path}: no sample can be used{first}")
            return joined

        joined = at_rank_zero(join, job.world_size)

        def captions() -> list[str]:
            told = (text for part in joined or [] for each in part.told for text in each)
            return list(dict.fromkeys(told))

        texts = from_rank_zero(captions, job.world_size)
        embedded = embed_texts(job, texts)
        if joined is None or embedded is None:
            return None
        rows = {text: row for row, text in enumerate(texts)}
        notes = []
        if embedded.num_truncated:
            notes.append(
                f"{embedded.num_truncated:,} of {len(texts):,} captions are longer than "
                f"{job.encoder.preprocess.context_length} tokens and were cut, which may take away "
                "what they differ by"
            )
        vectors = embedded.embeds
        told = [[rows[text] for text in each] for part in joined for each in part.told]
        if self.options.form == "pairs":
            columns = _pair_columns(joined, vectors, np.array(told).reshape(2, -1))
        else:
            columns = _negative_columns(joined[0], vectors, told, texts)
        metrics = {
            name: float(np.mean(values))
            for name, values in columns.items()
            if isinstance(values, np.ndarray)
        }
        data = describe_data(
            self.readers[:1],
            samples=len(joined[0].keys),
            skipped=[skip for part in joined for skip in part.skipped],
            parts=(
                [key, *(text for part in joined for text in part.told[row])]
                for row, key in enumerate(joined[0].keys)
            ),
            notes=notes,
        )
        columns = {"key": unique_keys(joined[0].keys), **columns}
        return TaskResult(self.name, self.kind, metrics, columns, data)


def _negative_columns(
    part: EmbeddedSource, vectors: np.ndarray, told: Sequence[Sequence[int]], texts: Sequence[str]
) -> dict[str, Any]:
    """Whether each image's own caption wins, which it is, and which one wins."""
    hits = np.zeros(len(told))
    predicted = []
    for row, captions in enumerate(told):
        cosines = vectors[list(captions)] @ part.embeds[row]
        hits[row] = float(hard_negative_hits(cosines[:1], cosines[None, 1:])[0])
        best = 0 if hits[row] else 1 + int(cosines[1:].argmax())
        predicted.append(texts[captions[best]])
    return {
        "label": [texts[captions[0]] for captions in told],
        "predicted": predicted,
        "accuracy": hits,
    }


def _pair_columns(
    joined: Sequence[EmbeddedSource], vectors: np.ndarray, told: np.ndarray
) -> dict[str, Any]:
    """The three scores of each sample; ``told`` (2, N), the text of each caption."""
    scores = np.stack(
        [
            np.stack([(vectors[told[c]] * joined[i].embeds).sum(axis=1) for i in (0, 1)], axis=1)
            for c in (0, 1)
        ],
        axis=1,
    )  # (N, caption, image)
    hits = winoground_hits(scores)
    return {f"{name}_score": values.astype(np.float64) for name, values in hits.items()}


def _same_rows(parts: list[EmbeddedSource]) -> list[EmbeddedSource]:
    """The samples that can be used in all parts, in row order; what was skipped stays."""
    rows = set.intersection(*(set(part.rows.tolist()) for part in parts))
    joined = []
    for part in parts:
        kept = [i for i, row in enumerate(part.rows.tolist()) if row in rows]
        joined.append(
            EmbeddedSource(
                part.rows[kept],
                [part.keys[i] for i in kept],
                part.embeds[kept],
                [part.told[i] for i in kept],
                part.skipped,
            )
        )
    return joined


def _own_caption(pair: Pair) -> list[str]:
    caption = clean_caption(pair.caption)
    if caption is None:
        raise SampleError("empty caption")
    return [caption]


def _with_negatives(pair: Pair, *, fields: Sequence[str]) -> list[str]:
    """The caption of a pair, and its wrong ones."""
    found: list[str] = []
    for name in fields:
        value = field_of(pair.metadata, name)
        each = value if isinstance(value, list | tuple) else [value]
        found += [text for v in each if v is not None and (text := clean_caption(str(v)))]
    if not found:
        raise SampleError("no negative caption")
    return [*_own_caption(pair), *found]


def _field_names(given: Any) -> list[str]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError(f"negative: {given!r}; give the name of a field, or a list of names")
    return names


def _check_fields(reader: Reader, names: Sequence[str]) -> None:
    """Of the first sample that can be read: whether it has the fields."""
    for row in range(min(len(reader), 20)):
        try:
            metadata = reader[row].metadata
        except SampleError:
            continue
        missing = [name for name in names if field_of(metadata, name) is None]
        if missing and not any(name.split(".")[0] in metadata for name in missing):
            there = ", ".join(sorted(metadata)) or "none"
            raise ConfigError(
                f"negative: {reader.locate(row)} has no field {missing[0]!r}; besides image and "
                f"caption there are: {there}"
            )
        return


def _refuse_uneven(readers: Sequence[Reader]) -> None:
    """Rows that one half leaves out would pair the others wrongly."""
    for reader in readers:
        if reader.dropped:
            reason, count = next(iter(reader.dropped.items()))
            raise DataError(
                f"{reader.source.path}: {count:,} rows with {reason} "
                f"({reader.source.image}, {reader.source.caption}); each row needs two images and "
                "two captions"
            )
    assert len(readers[0]) == len(readers[1])

"""A source → a list of its samples that are worth training on: by size, by caption, without
what is there twice, by a model's score."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from clipkit.config.schema import FilterConfig, SourceConfig
from clipkit.data import Reader, SampleError, build_eval_loader, open_source
from clipkit.data.check import usable
from clipkit.data.duplicates import (
    HASH_BYTES,
    duplicate_rows,
    near_before,
    perceptual_hash,
    similar_before,
)
from clipkit.data.filters import keep_wanted
from clipkit.data.holdout import PartReader
from clipkit.data.reader import NONE
from clipkit.data.sample_list import write_list
from clipkit.data.tokenize import clean_caption
from clipkit.data.workers import WorkerLoader
from clipkit.display.console import progress_bar
from clipkit.display.source_line import remark_source
from clipkit.encoder import Encoder, load
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.inputs import MAX_IMAGE_PIXELS
from clipkit.retrieval.store import encoder_hashes
from clipkit.types import Pair

_PART = 64  # samples that a worker reads at a time
_BATCH = 256
_TOO_LOW, _EXACT = "score too low", "exact duplicate"
_PLACES = (0, HASH_BYTES, 2 * HASH_BYTES)  # of three hashes in a row


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a sample must be to stay; they are applied in this order.

    Attributes:
        sample: of its image and its caption.
        duplicates: ``exact``: of rows with the same image file and captions the first stays;
            ``near``, ``embedding``: so does the first of images that are the same by a perceptual
            hash, or to a model. Rows with one image file and other captions are several captions
            of that image, and stay or go together.
        near_bits: in which two perceptual hashes of 128 bits may differ.
        similarity: cosine from which two images are the same to a model.
        min_score: cosine of image and caption.
        keep: share of what is left that stays, those of the highest score; DataComp's strongest
            simple filter (https://arxiv.org/abs/2304.14108, section 3.2).
    """

    sample: FilterConfig = field(default_factory=FilterConfig)
    duplicates: Literal["exact", "near", "embedding"] | None = None
    near_bits: int = 8
    similarity: float = 0.95
    min_score: float | None = None
    keep: float | None = None

    @property
    def scored(self) -> bool:
        """Whether image and caption are compared."""
        return self.min_score is not None or self.keep is not None

    @property
    def needs_model(self) -> bool:
        """Whether a model is asked."""
        return self.scored or self.duplicates == "embedding"


@dataclass(slots=True)
class Chosen:
    """What stays, and why the others do not.

    Attributes:
        samples: of the source.
        rows: (M,) that stay, ascending.
        dropped: the others, by reason.
        scores: (M,) cosines, or None.
        threshold: the lowest score that stays, or None.
        all_scores: of whatever was scored; None where nothing was.
        damage: of the source's files, a sentence each.
    """

    samples: int
    rows: NDArray[np.int64]
    dropped: Counter[str]
    scores: NDArray[np.float32] | None = None
    threshold: float | None = None
    all_scores: NDArray[np.float32] | None = None
    damage: list[str] = field(default_factory=list)


def filter_source(
    source: SourceConfig,
    out: str | Path,
    conditions: Conditions,
    *,
    model: str | Path | Encoder | None = None,
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> Chosen:
    """Writes the list of the samples that stay; see :mod:`clipkit.data.sample_list`.

    Args:
        source: what to choose from. Of several captions the first is scored.
        out: the list, a ``.parquet`` file.
        conditions: what a sample must be.
        model: what scores and embeds: a run, a folder or hub name, or what ``clipkit.load`` gave.
        workers: processes that read and decode.
        overwrite: whether a list that is there may be replaced.
        progress: whether to show progress bars.

    Raises:
        ConfigError: nothing is asked for, a number makes no sense, or a model is missing.
        DataError: the source is missing, or no sample stays.
        CheckpointError: the list is there already or cannot be written, or the model cannot be
            loaded.
    """
    out = Path(out).expanduser()
    _check(conditions, out, has_model=model is not None)
    if out.exists() and not overwrite:
        raise CheckpointError(f"{out}: is there already; name another file, or give --overwrite.")
    encoder = None
    if conditions.needs_model and model is not None:
        encoder = model if isinstance(model, Encoder) else load(model)
    whole = open_source(source, progress=progress)
    if progress:
        remark_source(whole)
    if conditions.scored and NONE in (whole.source.image, whole.source.caption):
        raise DataError(f"{source.path}: without images or captions there is nothing to score.")
    chosen = _choose(whole, conditions, encoder, workers, progress)
    if not len(chosen.rows):
        why = ", ".join(f"{number:,} × {reason}" for reason, number in chosen.dropped.items())
        raise DataError(f"{source.path}: no sample stays ({why}).")
    about: dict[str, Any] = {
        "conditions": _asked(conditions),
        "dropped": dict(chosen.dropped),
        "threshold": chosen.threshold,
    }
    if encoder:
        about["model"] = {"name": encoder.name, **encoder_hashes(encoder)}
    keys = [_key(whole, int(row)) for row in chosen.rows]
    write_list(out, whole, chosen.rows, keys=keys, scores=chosen.scores, about=about)
    return chosen


def _choose(
    whole: Reader, conditions: Conditions, encoder: Encoder | None, workers: int, progress: bool
) -> Chosen:
    chosen = Chosen(len(whole), np.arange(len(whole)), Counter(), damage=whole.damage)
    if conditions.sample != FilterConfig():
        part = keep_wanted(whole, conditions.sample, progress=progress)
        assert isinstance(part, PartReader)
        chosen.rows = part.rows
        chosen.dropped += Counter(part.dropped) - Counter(whole.dropped)
    if conditions.duplicates in ("exact", "near"):
        near = conditions.duplicates == "near"
        rows, hashes = _hash_images(whole, chosen, near, workers, progress)
        images, samples, looks = (hashes[:, i : i + HASH_BYTES] for i in _PLACES)

        def gone(first: NDArray[np.int64]) -> NDArray[np.bool_]:
            return near_before(looks[first], conditions.near_bits)

        same, other = duplicate_rows(images, samples, gone if near else None)
        chosen.rows = rows[~(same | other)]
        _count(chosen, _EXACT, same)
        _count(chosen, "near duplicate", other)
    if encoder is None or not len(chosen.rows):
        return chosen
    rows, image_embeds, scores, hashes = _embed(
        whole, chosen, encoder, conditions, workers, progress
    )
    stays = np.ones(len(rows), dtype=bool)
    if image_embeds is not None:
        images, samples = (hashes[:, i : i + HASH_BYTES] for i in _PLACES[:2])
        same, other = duplicate_rows(
            images,
            samples,
            lambda first: similar_before(image_embeds[first], conditions.similarity),
        )
        stays = ~(same | other)
        _count(chosen, _EXACT, same)
        _count(chosen, "duplicate to the model", other)
    if scores is not None:
        chosen.all_scores = scores
        before = stays.copy()
        if conditions.min_score is not None:
            stays &= scores >= conditions.min_score
        if conditions.keep is not None:
            left = np.flatnonzero(stays)
            number = math.ceil(conditions.keep * len(left))
            best = left[np.argsort(-scores[left], kind="stable")[:number]]  # ties: the first
            stays[:] = False
            stays[best] = True
        _count(chosen, _TOO_LOW, before & ~stays)
        chosen.scores = scores[stays]
        chosen.threshold = float(scores[stays].min()) if stays.any() else None
    chosen.rows = rows[stays]
    return chosen


def _embed(
    whole: Reader,
    chosen: Chosen,
    encoder: Encoder,
    conditions: Conditions,
    workers: int,
    progress: bool,
) -> tuple[
    NDArray[np.int64], NDArray[np.float32] | None, NDArray[np.float32] | None, NDArray[np.uint8]
]:
    """The usable rows; their images' embeddings where duplicates are looked for by them; the
    cosines where they are asked for; and what tells images and samples apart, (M, 32). What
    cannot be used is counted."""
    reader = PartReader(whole, chosen.rows)
    loader = build_eval_loader(
        reader,
        encoder.preprocess,
        encoder.tokenizer,
        batch_size=_BATCH,
        workers=workers,
        max_image_pixels=MAX_IMAGE_PIXELS,
        images=True,
        texts=conditions.scored,
        ask=_identify,
    )
    rows, embeds, scores, hashes = [], [], [], []
    start = 0
    with progress_bar("score", len(reader), "sample", show=progress) as bar:
        for batch, image_embeds, text_embeds in encoder.encode_batches(
            loader, texts=conditions.scored
        ):
            assert image_embeds is not None
            valid = np.flatnonzero(batch.valid.numpy())
            rows.append(chosen.rows[start + valid])
            hashes += [batch.told[i] for i in valid]
            start += len(batch.keys)
            if conditions.duplicates == "embedding":
                embeds.append(image_embeds)
            if text_embeds is not None:
                scores.append((image_embeds * text_embeds).sum(axis=1))
            chosen.dropped.update(skip.reason for skip in batch.skipped)
            bar.update(len(batch.keys))
    return (
        np.concatenate(rows),
        np.concatenate(embeds) if embeds else None,
        np.concatenate(scores) if scores else None,
        np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 2 * HASH_BYTES),
    )


def _hash_images(
    whole: Reader, chosen: Chosen, near: bool, workers: int, progress: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """The rows whose images can be read; and (M, 48) hashes: of the image's file, of it with its
    captions, and of its looks, which are zeros unless ``near``."""
    loader = WorkerLoader(
        _Hashes(whole, chosen.rows, near),
        range(-(-len(chosen.rows) // _PART)),
        workers=workers,
        ahead=2 * workers,
    )
    rows: list[int] = []
    hashes: list[bytes] = []
    try:
        with progress_bar("compare", len(chosen.rows), "sample", show=progress) as bar:
            for part in loader:
                if isinstance(part, DataError):
                    raise part
                for row, found in part:
                    if isinstance(found, bytes):
                        rows.append(row)
                        hashes.append(found)
                    else:
                        chosen.dropped[found] += 1
                bar.update(len(part))
    finally:
        loader.close()
    array = np.frombuffer(b"".join(hashes), dtype=np.uint8).reshape(-1, 3 * HASH_BYTES)
    return np.array(rows, dtype=np.int64), array


class _Hashes(Dataset["list[tuple[int, bytes | str]] | DataError"]):
    """Part number → rows and their images' hashes, or why they have none."""

    def __init__(self, whole: Reader, rows: NDArray[np.int64], near: bool) -> None:
        self._whole, self._rows, self._near = whole, rows, near

    def __getitem__(self, number: int) -> list[tuple[int, bytes | str]] | DataError:
        rows = self._rows[number * _PART : (number + 1) * _PART].tolist()
        try:
            return [(row, self._hash(row)) for row in rows]
        except DataError as error:
            return error  # raised in a worker it would come wrapped in a traceback

    def _hash(self, row: int) -> bytes | str:
        try:
            pair = self._whole[row]
            if pair.image is None:
                return "no image"
            if not self._near:
                return _identify(pair) + bytes(HASH_BYTES)
            image, _ = usable(pair, self._whole.source)
        except SampleError as error:
            return str(error)
        return "no image" if image is None else _identify(pair) + perceptual_hash(image)


def _identify(pair: Pair) -> bytes:
    """Identity of an image's file, alone and with its captions."""
    image = hashlib.sha256(pair.image or b"").digest()[:HASH_BYTES]
    captions = sorted(clean_caption(text) or "" for text in (pair.caption, *pair.others))
    words = "\0".join(captions).encode("utf-8", "replace")
    return image + hashlib.sha256(image + words).digest()[:HASH_BYTES]


def _check(conditions: Conditions, out: Path, *, has_model: bool) -> None:
    if out.suffix != ".parquet":
        raise ConfigError(
            f"{out}: name a .parquet file for the list; clipkit data pack SOURCE OUT --list LIST "
            "makes shards of it."
        )
    asked = _asked(conditions)
    if not asked:
        raise ConfigError("data filter: nothing is asked for; give --min-edge 200, for example.")
    if conditions.needs_model and not has_model:
        what = "--duplicates embedding" if conditions.duplicates == "embedding" else "a score"
        raise ConfigError(f"data filter: {what} takes a model; give --model FOLDER.")
    if conditions.keep is not None and not 0 < conditions.keep <= 1:
        raise ConfigError(f"--keep: {conditions.keep}; a share above 0, at most 1.")
    for name, value in (("min-score", conditions.min_score), ("similarity", conditions.similarity)):
        if value is not None and not -1 <= value <= 1:
            raise ConfigError(f"--{name}: {value}; a cosine lies between -1 and 1.")
    aspect = conditions.sample.max_aspect
    if aspect is not None and not 1 <= aspect < math.inf:
        raise ConfigError(f"--max-aspect: {aspect}; longer edge over shorter, 1 or more.")
    if not 0 <= conditions.near_bits <= 32:
        raise ConfigError(f"--near-bits: {conditions.near_bits}; 0 to 32 of 128 bits.")
    shortest, longest = conditions.sample.min_caption, conditions.sample.max_caption
    if shortest is not None and longest is not None and shortest > longest:
        raise ConfigError(f"--min-caption {shortest} is more than --max-caption {longest}.")


def _asked(conditions: Conditions) -> dict[str, Any]:
    """Of the conditions those that do something."""
    asked = {name: value for name, value in asdict(conditions.sample).items() if value is not None}
    if conditions.duplicates:
        asked["duplicates"] = conditions.duplicates
    if conditions.duplicates == "near":
        asked["near_bits"] = conditions.near_bits
    if conditions.duplicates == "embedding":
        asked["similarity"] = conditions.similarity
    for name in ("min_score", "keep"):
        value = getattr(conditions, name)
        if value is not None:
            asked["clip_" + name] = value
    return asked


def _count(chosen: Chosen, reason: str, gone: NDArray[np.bool_]) -> None:
    if gone.any():
        chosen.dropped[reason] += int(gone.sum())


def _key(whole: Reader, row: int) -> str:
    try:
        return whole[row].key
    except SampleError:  # not every condition looks at the image
        return whole.locate(row)

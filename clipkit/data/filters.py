"""A source → the part of it that a config wants, chosen before training by one pass over it.

The rows that stay are kept in a cache folder, so that the pass is made once.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from clipkit.config.schema import FilterConfig
from clipkit.data import files, reader
from clipkit.data.decode import image_size
from clipkit.data.holdout import PartReader
from clipkit.data.index import pack_json, unpack_json, write_arrays
from clipkit.data.reader import Reader, SampleError
from clipkit.data.sample_list import read_list
from clipkit.errors import DataError
from clipkit.types import Pair

_VERSION = 1


def keep_wanted(whole: Reader, wanted: FilterConfig, *, progress: bool) -> Reader:
    """The rows of a source that a filter lets through; the others are counted by reason.

    An image's size is read from its header; what cannot be read is left out too.

    Args:
        whole: the source.
        wanted: what must hold of a sample; where it asks nothing, ``whole`` comes back.
        progress: show a bar on stderr while the source is looked through.

    Raises:
        DataError: no row is left, no sample has the score that is asked for, or the list is of
            another source.
    """
    if wanted == FilterConfig():
        return whole
    listed, of_list = (None, "") if wanted.list is None else read_list(wanted.list, whole)
    digest = files.digest(_VERSION, whole.fingerprint, wanted, of_list)
    place = files.cache_folder() / f"{digest}.npz"
    try:
        with np.load(place, allow_pickle=False) as kept:
            rows, dropped = kept["rows"], unpack_json(kept["dropped"])
    except (OSError, ValueError, KeyError, EOFError):
        rows, dropped = _look_through(whole, wanted, listed, progress)
        with contextlib.suppress(OSError):  # it is made anew next time
            write_arrays(place, {"rows": rows, "dropped": pack_json(dropped)})
    path = whole.source.path
    if len(rows) == 0:
        why = ", ".join(f"{count} × {reason}" for reason, count in dropped.items())
        raise DataError(f"{path}: its filter leaves no sample ({why}).")
    part = PartReader(whole, rows)
    part.dropped = dict(Counter(whole.dropped) + Counter(dropped))
    return part


def _look_through(
    whole: Reader, wanted: FilterConfig, listed: np.ndarray | None, progress: bool
) -> tuple[np.ndarray, dict[str, int]]:
    if listed is not None and replace(wanted, list=None) == FilterConfig():
        return listed, {_NOT_LISTED: len(whole) - len(listed)}
    is_listed = np.ones(len(whole), dtype=bool)
    if listed is not None:
        is_listed[:] = False
        is_listed[listed] = True
    dropped: Counter[str] = Counter()
    rows: list[int] = []
    of_images = wanted.min_edge is not None or wanted.max_aspect is not None
    captions_alone = not of_images and wanted.min_score is None
    texts = whole.captions() if captions_alone else iter(())
    bar = tqdm(range(len(whole)), desc="filtering", unit="sample", disable=not progress, delay=0.5)
    for row in bar:
        text = next(texts) if captions_alone else ""
        if not is_listed[row]:
            reason: str | None = _NOT_LISTED
        elif captions_alone:
            reason = _reason_of_caption(text, wanted)
        else:
            try:
                reason = _reason(whole[row], wanted, of_images)
            except SampleError as error:
                reason = str(error)
        if reason is None:
            rows.append(row)
        else:
            dropped[reason] += 1
    if dropped[_NO_SCORE] and dropped[_NO_SCORE] == is_listed.sum():
        raise DataError(f"{whole.source.path}: filter.score: no sample has {wanted.score!r}.")
    return np.array(rows, dtype=np.int64), {why: n for why, n in dropped.items() if n}


_NO_SCORE, _NOT_LISTED = "filtered: no score", "filtered: not in the list"


def _reason(pair: Pair, wanted: FilterConfig, of_images: bool) -> str | None:
    """Why a sample is not wanted, or None where it is."""
    if reason := _reason_of_caption(pair.caption, wanted):
        return reason
    if wanted.min_score is not None:
        score = _number(reader.field_of(pair.metadata, str(wanted.score)))
        if score is None:
            return _NO_SCORE
        if score < wanted.min_score:
            return "filtered: score too low"
    if of_images:
        width, height = _size(pair.image)
        short, long = sorted((width, height))
        if short < (wanted.min_edge or 0):
            return "filtered: image too small"
        if wanted.max_aspect is not None and long > wanted.max_aspect * short:
            return "filtered: image too long"
    return None


def _reason_of_caption(caption: str | None, wanted: FilterConfig) -> str | None:
    length = len((caption or "").strip())
    if length < (wanted.min_caption or 0):
        return "filtered: caption too short"
    if wanted.max_caption is not None and length > wanted.max_caption:
        return "filtered: caption too long"
    return None


def _number(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # tables hold texts
    except (TypeError, ValueError):
        return None
    return None if math.isnan(number) else number


def _size(data: bytes | None) -> tuple[int, int]:
    if data is None:
        raise SampleError("no image")
    try:
        return image_size(data)
    except SampleError as error:
        raise SampleError("filtered: unreadable image") from error

"""Embeddings of a source, kept on disk: the next task or run with this model need not make them.

They are kept by a hash of the weights, of the preprocessing, and of where the images are, with the
sizes and times of those files. A model in training keeps none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipkit._version import __version__
from clipkit.data import Reader, SampleError, files
from clipkit.data.remote import cache_folder
from clipkit.encoder import Encoder
from clipkit.errors import DataError
from clipkit.evaluation.embedding import EmbeddedSource, Job, ask_source, embed_source
from clipkit.evaluation.shares import at_rank_zero, from_rank_zero
from clipkit.types import Pair, Skip

_FORMAT = 1
_MOST = 20 * 2**30  # bytes that are kept; beyond, what was used longest ago goes


def kept_source(
    job: Job, reader: Reader, ask: Callable[[Pair], Any] | None = None
) -> EmbeddedSource | None:
    """``embed_source``, with the embeddings of an earlier task or run where the same images were
    embedded by the same model; all ranks must call it.

    What is asked of the samples is asked anew. Remote sources are not kept.

    Args:
        job: the model and the ranks.
        reader: the samples.
        ask: see ``embed_source``.
    """
    if job.encoder.name is None or reader.access.remote:
        return embed_source(job, reader, ask)

    def place() -> Path:
        name = files.digest(
            _FORMAT,
            __version__,
            torch.__version__,
            job.encoder.device.type,
            torch.get_num_threads(),
            job.batch_size,
            job.max_image_pixels,
            _model_digest(job.encoder),
            _images_digest(reader),
        )
        return cache_folder("features") / f"{name}.npz"

    path = at_rank_zero(place, job.world_size)
    images = at_rank_zero(lambda: None if path is None else _load(path), job.world_size)
    if not from_rank_zero(lambda: images is not None, job.world_size):
        images = embed_source(job, reader)
        if path is not None and images is not None:
            _keep(path, images)
    if ask is None:
        return images
    answers = ask_source(job, reader, _Answer(ask))
    if images is None or answers is None:
        return None
    return _with_answers(images, answers)


@dataclasses.dataclass(frozen=True)
class _Answer:
    """An answer, or why the sample cannot be used."""

    ask: Callable[[Pair], Any]

    def __call__(self, pair: Pair) -> Any:
        try:
            return self.ask(pair)
        except SampleError as error:
            return Skip(pair.origin, str(error))


def _with_answers(images: EmbeddedSource, answers: dict[int, Any]) -> EmbeddedSource:
    gone = Skip("", "changed while it was read")
    told = [answers.get(row, gone) for row in images.rows.tolist()]
    kept = [i for i, each in enumerate(told) if not isinstance(each, Skip)]
    return EmbeddedSource(
        images.rows[kept],
        [images.keys[i] for i in kept],
        images.embeds[kept],
        [told[i] for i in kept],
        images.skipped + [each for each in told if isinstance(each, Skip)],
    )


def _model_digest(encoder: Encoder) -> str:
    """Of all that makes an image's vector: weights, sizes, preprocessing, precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    config = encoder.model.backbone.config.to_dict()
    config.pop("_name_or_path", None)
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    preprocess = dataclasses.asdict(encoder.preprocess)
    digest.update(json.dumps(preprocess, sort_keys=True, default=str).encode())
    digest.update(str(encoder.dtype).encode())
    return digest.hexdigest()


def _images_digest(reader: Reader) -> str:
    """Of where each row's image is, and of the sizes and times of those files."""
    digest = hashlib.sha256(f"{reader.source.image} {reader.source.split}\n".encode())
    tags: dict[str, str] = {}
    for row in range(len(reader)):
        path, offset = "", None
        with contextlib.suppress(SampleError):
            path, offset = reader.place(row)
        if path not in tags:
            # What is no file has many, of which the reader knows more.
            tags[path] = reader.fingerprint
            with contextlib.suppress(OSError, DataError):
                tags[path] = files.stat(path).tag if os.path.isfile(path) else tags[path]
        # One file by two names is one; where no byte tells a row's image, its name does.
        inside = reader.locate(row) if offset is None else offset
        where = f"{os.path.realpath(path)} {inside} {tags[path]}\n"
        digest.update(where.encode("utf-8", "replace"))
    return digest.hexdigest()


def _load(path: Path) -> EmbeddedSource | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            words = json.loads(arrays["words"].tobytes())
            kept = EmbeddedSource(
                arrays["rows"],
                words["keys"],
                arrays["embeds"],
                [],
                [Skip(*each) for each in words["skipped"]],
            )
        os.utime(path)
        return kept
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


def _keep(path: Path, made: EmbeddedSource) -> None:
    try:
        _save(path, made)
    except OSError as error:
        warnings.warn(
            f"{path.parent}: embeddings cannot be kept there ({error.strerror or error})",
            stacklevel=2,
        )


def _save(path: Path, made: EmbeddedSource) -> None:
    words = {
        "keys": made.keys,
        "skipped": [[skip.origin, skip.reason] for skip in made.skipped],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{os.getpid()}.tmp.npz")
    try:
        np.savez(
            aside,
            rows=made.rows,
            embeds=made.embeds,
            words=np.frombuffer(json.dumps(words).encode(), dtype=np.uint8),
        )
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    kept = sorted(path.parent.glob("*.npz"), key=lambda each: each.stat().st_mtime)
    total = sum(each.stat().st_size for each in kept)
    for each in kept[:-1]:
        if total > _MOST:
            total -= each.stat().st_size
            each.unlink(missing_ok=True)

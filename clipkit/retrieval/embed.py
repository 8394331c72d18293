"""A model + a source of images and captions → a store of embeddings."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, build_eval_loader, files, open_source
from clipkit.data.folder import FolderReader, extension
from clipkit.data.reader import NONE
from clipkit.data.table import EXTENSIONS as TABLE_EXTENSIONS
from clipkit.data.tokenize import clean_caption
from clipkit.display.console import progress_bar
from clipkit.encoder import Encoder, load
from clipkit.errors import ConfigError, DataError
from clipkit.inputs import MAX_IMAGE_PIXELS
from clipkit.retrieval.store import EmbeddingStore
from clipkit.retrieval.writer import StoreWriter


def embed(
    model: str | Path | Encoder,
    source: SourceConfig | str,
    out: str | Path,
    *,
    images: bool = True,
    texts: bool = True,
    batch_size: int = 256,
    workers: int = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    overwrite: bool = False,
    progress: bool = True,
) -> EmbeddingStore:
    """Embeds a source into a store; row i of the store is the i-th sample that can be used.

    A folder of photographs without any captions gives a store of images. Where captions are
    meant and cannot be read, nothing is embedded.

    Args:
        model: a run, a model's folder or hub name, or a model that ``clipkit.load`` gave.
        source: what to embed; a path alone will do. ``caption: none`` leaves captions aside.
        out: the store's folder.
        images: whether to embed images.
        texts: whether to embed captions, where there are any.
        batch_size: samples at a time.
        workers: processes that read and decode.
        max_image_pixels: larger images are skipped.
        overwrite: whether a store that is there may be replaced.
        progress: whether to show a progress bar.

    Raises:
        DataError: nothing is there, or nothing can be used.
        CheckpointError: the model cannot be loaded, or ``out`` may not be written.
    """
    if not (images or texts):
        raise ConfigError("embed: neither images nor texts are asked for; ask for one")
    encoder = model if isinstance(model, Encoder) else load(model)
    source = SourceConfig(path=source) if isinstance(source, str) else source
    with StoreWriter(out, encoder, overwrite=overwrite) as writer:
        reader = _open(source, images=images, texts=texts, progress=progress)
        texts = texts and reader.source.caption != NONE
        loader = build_eval_loader(
            reader,
            encoder.preprocess,
            encoder.tokenizer,
            batch_size=batch_size,
            workers=workers,
            max_image_pixels=max_image_pixels,
            images=images,
            texts=texts,
        )
        skipped: Counter[str] = Counter(reader.dropped)
        captions = reader.captions()  # in row order, as the batches are
        first = ""
        start = num_truncated = 0
        with progress_bar("embed", len(reader), "sample", show=progress) as bar:
            for batch, image_embeds, text_embeds in encoder.encode_batches(
                loader, images=images, texts=texts
            ):
                valid = np.flatnonzero(batch.valid.numpy()).tolist()
                told = list(islice(captions, len(batch.keys)))
                rows = [start + i for i in valid]
                writer.add(
                    keys=[batch.keys[i] for i in valid],
                    captions=[clean_caption(told[i]) for i in valid],
                    origins=[reader.locate(row) for row in rows],
                    source_rows=rows,
                    image_embeds=image_embeds,
                    text_embeds=text_embeds,
                )
                for skip in batch.skipped:
                    first = first or f"{skip.origin}: {skip.reason}"
                    skipped[skip.reason] += 1
                num_truncated += batch.truncated
                start += len(batch.keys)
                bar.update(len(batch.keys))
        if not writer.rows:
            raise DataError(
                f"{source.path}: none of {len(reader)} samples can be used (the first: {first})"
            )
        return writer.finish(
            dataclasses.replace(reader.source, path=_absolute(source.path)),
            fingerprint=reader.fingerprint,
            skipped=skipped,
            num_truncated=num_truncated,
        )


def _open(source: SourceConfig, *, images: bool, texts: bool, progress: bool) -> Reader:
    """The source's reader, which is asked for no more than is wanted."""
    if not texts:
        source = dataclasses.replace(source, caption=NONE)
    if not images:
        source = dataclasses.replace(source, image="none")
    try:
        return open_source(source, progress=progress)
    except DataError as error:
        # Perhaps it has images and no captions, and its owner did not say so.
        if source.caption is not None or not images:
            raise
        try:
            alone = open_source(dataclasses.replace(source, caption=NONE), progress=progress)
        except DataError:
            raise error from None
        if _has_only_images(alone):
            return alone
        hint = (
            "Name the captions' field with --caption FIELD, or embed the images alone with "
            "--caption none."
        )
        raise DataError(f"{error} {hint}") from error


def _has_only_images(reader: Reader) -> bool:
    """Whether these are plain image files without a table that may be their captions."""
    path = reader.source.path
    return isinstance(reader, FolderReader) and not (
        files.kind(path) == "folder"
        and any(extension(name) in TABLE_EXTENSIONS for name in files.walk(path))
    )


def _absolute(path: str) -> str:
    """The path as seen from anywhere, for showing the images again."""
    return path if "://" in path else str(Path(path).expanduser().absolute())

"""A model + a source of images and captions → a store of embeddings, part by part.

Several processes share the work by sharing the folder: each makes whole parts, a process that
dies costs the part at hand, and the same command run again makes what is missing.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from clipkit.atomic import create_json
from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, build_eval_loader, files
from clipkit.data.reader import NONE
from clipkit.display.console import default_workers, progress_bar, remark
from clipkit.display.source_line import remark_source
from clipkit.encoder import Encoder, load
from clipkit.errors import CheckpointError, ConfigError, DataError, Preempted
from clipkit.inputs import MAX_IMAGE_PIXELS
from clipkit.interrupt import Stop, stop_signals
from clipkit.launcher import launched_device, launched_share
from clipkit.retrieval.columns import find_columns
from clipkit.retrieval.parts import MANIFEST, POLL, Parts, remove_store, someone_at_work
from clipkit.retrieval.plan import PLAN, Plan, choose_part_rows, read_plan, refuse_difference
from clipkit.retrieval.precision import (
    DTYPES,
    Precision,
    choose_precision,
    refuse_non_finite,
)
from clipkit.retrieval.sources import open_wanted, refuse_source_inside, texts_sha256
from clipkit.retrieval.store import EmbeddingStore, encoder_hashes
from clipkit.retrieval.writer import PartWriter, plain_errors, write_manifest

BATCH_SIZE = 256
_TRIED = 16  # samples at a time, in search of one that can be used
_AGAIN = "run the same command again, and it goes on with the parts that are missing"


def embed(
    model: str | Path | Encoder,
    source: SourceConfig | str,
    out: str | Path,
    *,
    images: bool = True,
    texts: bool = True,
    batch_size: int | None = None,
    part_rows: int | None = None,
    dtype: Literal["float32", "float16"] | None = None,
    precision: Precision = "auto",
    columns: Sequence[str] | None = None,
    workers: int | None = 0,
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    overwrite: bool = False,
    progress: bool = True,
) -> EmbeddingStore:
    """Embeds a source into a store; row i of the store is the i-th sample that can be used.

    A folder of photographs without any captions gives a store of images, a text file one of
    texts. Where captions are meant and cannot be read, nothing is embedded.

    A store that was begun is gone on with. Under torchrun, or with RANK and WORLD_SIZE set, each
    process begins with its share of the parts, and helps the others then; so do processes that
    are started one by one, on any machines that see the folder. All return the finished store.

    Args:
        model: a run, a model's folder or hub name, or a model that ``clipkit.load`` gave.
        source: what to embed; a path alone will do. ``caption: none`` leaves captions aside.
        out: the store's folder.
        images: whether to embed images.
        texts: whether to embed captions, where there are any.
        batch_size: samples at a time; 256.
        part_rows: samples a part, rounded up to whole batches; 16,384, or an eighth of a small
            source.
        dtype: of the stored arrays; float32.
        precision: what the towers compute in; see ``choose_precision``.
        columns: fields of the samples that get a column in the table, ``none`` for none of them;
            without it all that hold plain values.
        workers: processes that read and decode; None: as many as suit. Captions alone need none
            on a CPU: they are tokenized in less time than a process takes to start.
        max_image_pixels: larger images are skipped.
        overwrite: whether a store that is there is removed first, once it is known that the new one
            can be made: its files and indexes, and nothing else that lies in the folder.
        progress: whether to show a progress bar.

    Raises:
        DataError: nothing is there, or nothing can be used.
        CheckpointError: the model cannot be loaded or gives vectors that are not finite, ``out``
            may not be written, or a store there was begun otherwise.
        ConfigError: the options do not go together, or int8 is asked for and cannot be had.
        Preempted: a signal asked this process to stop.
    """
    if not (images or texts):
        raise ConfigError("embed: neither images nor texts are asked for; ask for one")
    rank, world_size = launched_share()
    if overwrite and world_size > 1:
        raise ConfigError(
            "--overwrite: several ranks cannot each remove the store; remove the folder first"
        )
    folder = Path(os.path.realpath(Path(out).expanduser()))
    _refuse_foreign(folder, overwrite)
    source = SourceConfig(path=source) if isinstance(source, str) else source
    replace = overwrite and files.is_store(str(folder))
    if replace:
        refuse_source_inside(source, folder)
    encoder = model if isinstance(model, Encoder) else load(model, device=launched_device())
    if precision == "int8":
        encoder.refuse_int8()
    show = progress and rank == 0
    reader = open_wanted(source, images=images, texts=texts, progress=show)
    if show:
        remark_source(reader)
    images, texts = images and reader.source.image != NONE, texts and reader.source.caption != NONE
    wanted: dict[str, Any] = {
        **encoder_hashes(encoder),
        "source_fingerprint": reader.fingerprint,
        "source_texts_sha256": texts_sha256(reader),
        "rows": len(reader),
        "source.image": reader.source.image,
        "source.caption": reader.source.caption,
        "images": images,
        "texts": texts,
        "max_image_pixels": max_image_pixels,
        "batch_size": batch_size,
        "dtype": dtype,
        "precision": None if precision == "auto" else precision,
    }
    made = not folder.exists()
    plan = None if replace else read_plan(folder)
    if plan is None:
        plan = _plan(encoder, reader, wanted, precision, columns, part_rows)
        if replace:
            _try_plan(plan, encoder, reader)
            _refuse_workers(folder)
        with plain_errors(folder):
            if replace:
                remove_store(folder)
            folder.mkdir(parents=True, exist_ok=True)
        if not create_json(folder / PLAN, plan.as_json()):
            plan = read_plan(folder)
            assert plan is not None
        elif show:
            _tell(reader, plan)
    if columns is not None:
        wanted["columns"] = find_columns(reader, columns)
    if workers is None:
        share = default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = 0 if not images and encoder.device.type == "cpu" else max(1, share)
    if part_rows is not None:
        wanted["part_rows"] = choose_part_rows(len(reader), plan.batch_size, part_rows)
    refuse_difference(folder, plan, wanted)
    if not (folder / MANIFEST).exists():
        if plan.precision == "int8" and (reason := encoder.why_not_int8()):
            raise CheckpointError(
                f"{folder}: this store was begun in int8, and {reason}; go on where it can be, or "
                "give --overwrite to make it anew"
            )
        parts = Parts(folder, plan, rank=rank, world_size=world_size)
        try:
            with plain_errors(folder), stop_signals() as stop:
                _Work(folder, plan, parts, encoder, reader, workers, show, stop).run()
            _finish(folder, plan, parts, encoder, alone=world_size == 1, made=made)
        except (CheckpointError, OSError):
            # Whoever finished the store removed what was written aside, ours with it.
            if not parts.is_finished():
                raise
        finally:
            parts.release()
    return EmbeddingStore(out)  # by the name that the caller knows


class _Work:
    """Makes parts until all are done, by this process or by others."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        parts: Parts,
        encoder: Encoder,
        reader: Reader,
        workers: int,
        show: bool,
        stop: Stop,
    ) -> None:
        self._folder, self._plan, self._parts = folder, plan, parts
        self._encoder, self._reader, self._workers = encoder, reader, workers
        self._show, self._stop = show, stop

    def run(self) -> None:
        """Returns when all parts are done.

        Raises:
            Preempted: a signal asked to stop.
        """
        parts = self._parts
        for number, damaged in parts.verify():
            if damaged:
                remark(f"{self._folder}: part {number} was damaged, and is made again")
            self._end_if_asked()
        with progress_bar("embed", self._plan.rows, "sample", show=self._show) as bar:
            parts.look()
            while not (parts.complete or parts.is_finished()):
                free = parts.take()
                first = next(free, None)
                if first is None:
                    self._end_if_asked()
                    time.sleep(POLL)
                else:
                    self._make(chain([first], free), bar)
                parts.look()
                _advance(bar, parts.rows_done)
            _advance(bar, self._plan.rows)

    def _make(self, numbers: Iterator[int], bar: tqdm[Any]) -> None:
        plan = self._plan
        loader = build_eval_loader(
            self._reader,
            self._encoder.preprocess,
            self._encoder.tokenizer,
            batch_size=plan.batch_size,
            workers=self._workers,
            max_image_pixels=plan.max_image_pixels,
            images=plan.images,
            texts=plan.texts,
            fields=tuple(plan.columns),
            batches=(batch for number in numbers for batch in plan.batches(number)),
        )
        writer: PartWriter | None = None
        try:
            with self._encoder.computing(DTYPES[plan.precision]):
                for encoded in self._encoder.encode_batches(
                    loader, images=plan.images, texts=plan.texts
                ):
                    refuse_non_finite(self._encoder, encoded)
                    batch, image_embeds, text_embeds = encoded
                    number = batch.step * plan.batch_size // plan.part_rows
                    writer = writer or PartWriter(self._folder, plan, number)
                    valid = np.flatnonzero(batch.valid.numpy()).tolist()
                    start = batch.step * plan.batch_size
                    writer.add(
                        keys=[batch.keys[i] for i in valid],
                        source_rows=[start + i for i in valid],
                        items=[item for item in batch.items if item is not None],
                        image_embeds=image_embeds,
                        text_embeds=text_embeds,
                        skipped=batch.skipped,
                        truncated=batch.truncated,
                        replaced=batch.replaced,
                    )
                    bar.update(len(batch.keys))
                    if batch.step == plan.batches(number)[-1]:
                        self._parts.done(number, writer.finish())
                        writer = None
                    self._end_if_asked()
        finally:
            loader.close()

    def _end_if_asked(self) -> None:
        if self._stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._stop.signal:
            name = signal.Signals(self._stop.signal).name
            raise Preempted(
                f"{self._folder}: stopped by {name}, {len(self._parts.records)} of "
                f"{self._plan.parts} parts are done; {_AGAIN}"
            )


def _finish(
    folder: Path, plan: Plan, parts: Parts, encoder: Encoder, *, alone: bool, made: bool
) -> None:
    """Writes the manifest of a store that has a row; of another nothing stays.

    Args:
        folder: of the store.
        plan: of the store.
        parts: all done.
        encoder: the model.
        alone: whether no other rank may still look at the parts.
        made: whether this run made the folder itself.

    Raises:
        CheckpointError: the model has changed, or the manifest cannot be written.
        DataError: no sample can be used.
    """
    if parts.is_finished():
        return
    hashes = {"weights_sha256": plan.weights_sha256, "preprocess_sha256": plan.preprocess_sha256}
    if encoder_hashes(encoder) != hashes:
        raise CheckpointError(
            f"{encoder.folder}: the model there has changed since it was loaded, so the store "
            "would name the wrong one; embed again into another folder"
        )
    records = parts.records
    if not any(record["rows"] for record in records.values()):
        first = next((record["example"] for _, record in sorted(records.items())), None)
        if alone:
            with plain_errors(folder):
                remove_store(folder)
            with suppress(OSError):  # something else may be in it
                if made:
                    folder.rmdir()
        raise _nothing_usable(plan, first)
    write_manifest(folder, plan, records)


def _nothing_usable(plan: Plan, first: str | None) -> DataError:
    path = plan.source["path"]
    return DataError(f"{path}: none of {plan.rows} samples can be used (the first: {first})")


def _try_plan(plan: Plan, encoder: Encoder, reader: Reader) -> None:
    """Embeds the first samples that can be used, before an old store is removed for a new one.

    Raises:
        DataError: there are none.
        CheckpointError: their embeddings are not finite.
    """
    loader = build_eval_loader(
        reader,
        encoder.preprocess,
        encoder.tokenizer,
        batch_size=_TRIED,
        max_image_pixels=plan.max_image_pixels,
        images=plan.images,
        texts=plan.texts,
    )
    first: str | None = None
    try:
        for batch in loader:
            if bool(batch.valid.any()):
                with encoder.computing(DTYPES[plan.precision]):
                    encoded = encoder.encode_batches([batch], images=plan.images, texts=plan.texts)
                    refuse_non_finite(encoder, next(encoded))
                return
            first = first or next((f"{skip.origin}: {skip.reason}" for skip in batch.skipped), None)
    finally:
        loader.close()
    raise _nothing_usable(plan, first)


def _plan(
    encoder: Encoder,
    reader: Reader,
    wanted: dict[str, Any],
    precision: Precision,
    columns: Sequence[str] | None,
    part_rows: int | None,
) -> Plan:
    """What a store that nobody has begun is to be."""
    batch_size = wanted["batch_size"] or BATCH_SIZE
    chosen, cosines = choose_precision(
        encoder,
        reader,
        precision,
        images=wanted["images"],
        texts=wanted["texts"],
        max_image_pixels=wanted["max_image_pixels"],
    )
    path = reader.source.path
    # As seen from anywhere, for showing the images again, and for searching.
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    name = encoder.name
    if name is not None and Path(name).is_dir():
        name = str(Path(name).absolute())
    return Plan(
        model=name,
        weights_sha256=wanted["weights_sha256"],
        preprocess_sha256=wanted["preprocess_sha256"],
        dim=encoder.embed_dim,
        context_length=encoder.preprocess.context_length,
        source=dataclasses.asdict(dataclasses.replace(reader.source, path=path)),
        source_fingerprint=reader.fingerprint,
        source_texts_sha256=wanted["source_texts_sha256"],
        rows=len(reader),
        images=wanted["images"],
        texts=wanted["texts"],
        max_image_pixels=wanted["max_image_pixels"],
        part_rows=choose_part_rows(len(reader), batch_size, part_rows),
        batch_size=batch_size,
        dtype=wanted["dtype"] or "float32",
        precision=chosen,
        cosines=cosines,
        columns=find_columns(reader, columns),
        dropped=dict(reader.dropped),
    )


def _tell(reader: Reader, plan: Plan) -> None:
    """What the user should know before the work begins."""
    for damage in reader.damage:
        remark(damage)
    if plan.cosines:
        measured = ", ".join(f"{value:.5f} of {what}s" for what, value in plan.cosines.items())
        which = "bf16" if plan.precision == "fp32" else plan.precision
        remark(f"computing in {plan.precision}; least cosine of {which} to float32: {measured}")


def _refuse_foreign(folder: Path, overwrite: bool) -> None:
    """Refuses to write into what is no store, or one that may not be replaced.

    Raises:
        CheckpointError: says what is there.
    """
    if not folder.exists():
        return
    if folder.is_dir() and all(name.startswith(".") for name in os.listdir(folder)):
        return
    if not files.is_store(str(folder)):
        raise CheckpointError(
            f"{folder}: it is there and is no store of embeddings; name another folder"
        )
    if overwrite:
        _refuse_workers(folder)
    elif read_plan(folder) is None:
        raise CheckpointError(
            f"{folder}: this store was made by another clipkit; give --overwrite to replace it, or "
            "another name"
        )


def _refuse_workers(folder: Path) -> None:
    """Refuses to remove a store that is being made.

    Raises:
        CheckpointError: names a process that makes a part of it.
    """
    owner = someone_at_work(folder)
    if owner is not None:
        raise CheckpointError(f"{folder}: {owner} embeds into this folder; wait for it, or end it")


def _advance(bar: tqdm[Any], to: int) -> None:
    """Own batches count as they are done, the parts of others when they are."""
    if to > bar.n:
        bar.update(to - bar.n)

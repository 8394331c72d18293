"""A model + a source of images and captions → a store of embeddings, part by part.

Several processes share the work by sharing the folder: each makes whole parts, a process that
dies costs the part at hand, and the same command run again makes what is missing.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from clipkit.atomic import create_json
from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, build_eval_loader, files
from clipkit.data.reader import NONE
from clipkit.display.console import default_workers, remark
from clipkit.display.source_line import remark_source
from clipkit.encoder import Encoder, load
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.inputs import MAX_IMAGE_PIXELS
from clipkit.interrupt import Stop, stop_signals
from clipkit.launcher import launched_device, launched_share
from clipkit.retrieval.codes import renew_codes
from clipkit.retrieval.columns import find_columns
from clipkit.retrieval.parts import (
    MANIFEST,
    UPDATE,
    Parts,
    has_finished_update,
    remove_replaced,
    remove_store,
    remove_update,
    someone_at_work,
    take_over_update,
)
from clipkit.retrieval.plan import (
    PLAN,
    VERSION,
    Plan,
    choose_part_rows,
    read_plan,
    refuse_difference,
)
from clipkit.retrieval.precision import (
    DTYPES,
    Precision,
    choose_precision,
    refuse_non_finite,
    slower_than_float32,
)
from clipkit.retrieval.sources import open_wanted, refuse_source_inside, texts_sha256
from clipkit.retrieval.store import EmbeddingStore, encoder_hashes, read_manifest
from clipkit.retrieval.work import OldStore, UpdateWork, Work
from clipkit.retrieval.writer import plain_errors, write_manifest

BATCH_SIZE = 256
_TRIED = 16  # samples at a time, in search of one that can be used


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
    update: bool = False,
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
        update: whether a finished store becomes that of the source as it is now: samples that are
            not in it are embedded, and rows whose sample is gone removed. Until all of that is
            done the store is as it was. Without a store, one is made.
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
    if update and overwrite:
        raise ConfigError("embed: --update keeps what --overwrite removes; give one of them")
    rank, world_size = launched_share()
    if overwrite and world_size > 1:
        raise ConfigError(
            "--overwrite: several ranks cannot each remove the store; remove the folder first"
        )
    folder = Path(os.path.realpath(Path(out).expanduser()))
    _refuse_foreign(folder, overwrite)
    source = SourceConfig(path=source) if isinstance(source, str) else source
    if has_finished_update(folder) and not overwrite:
        _take_over(folder, rank)
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
            if slow := slower_than_float32(encoder, precision):
                remark(slow)
    if columns is not None:
        wanted["columns"] = find_columns(reader, columns)
    if workers is None:
        share = default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = 0 if not images and encoder.device.type == "cpu" else max(1, share)
    if part_rows is not None:
        wanted["part_rows"] = choose_part_rows(len(reader), plan.batch_size, part_rows)
    is_finished = (folder / MANIFEST).exists()
    if update and is_finished:
        _update(folder, plan, wanted, encoder, reader, workers, show)
        return EmbeddingStore(out)
    refuse_difference(folder, plan, wanted, is_finished=is_finished)
    if not is_finished:
        _refuse_int8(folder, plan, encoder)
        parts = Parts(folder, plan, rank=rank, world_size=world_size)
        with _at_work(folder, parts) as stop:
            Work(folder, plan, parts, encoder, reader, workers, show, stop).run()
            _finish(folder, plan, parts, encoder, alone=world_size == 1, made=made)
    return EmbeddingStore(out)  # by the name that the caller knows


def _refuse_int8(folder: Path, plan: Plan, encoder: Encoder) -> None:
    """Refuses to go on in int8 where that cannot be computed.

    Raises:
        CheckpointError: says why.
    """
    if plan.precision == "int8" and (reason := encoder.why_not_int8()):
        raise CheckpointError(
            f"{folder}: this store was begun in int8, and {reason}; go on where it can be, or "
            "give --overwrite to make it anew"
        )


@contextmanager
def _at_work(folder: Path, parts: Parts) -> Iterator[Stop]:
    """While parts are made: signals stop it in order, and what is claimed is given up at the end.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    try:
        with plain_errors(folder), stop_signals() as stop:
            yield stop
    except (CheckpointError, OSError):
        # Whoever finished the store removed what was written aside, ours with it.
        if not parts.is_finished():
            raise
    finally:
        parts.release()


def _update(
    folder: Path,
    plan: Plan,
    wanted: dict[str, Any],
    encoder: Encoder,
    reader: Reader,
    workers: int,
    show: bool,
) -> None:
    """Makes a finished store that of the source as it is now.

    Args:
        folder: of the store.
        plan: of the store as it is.
        wanted: what is asked for.
        encoder: the model.
        reader: the source.
        workers: processes that read and decode.
        show: whether to tell the user.

    Raises:
        CheckpointError: the model or an option is not the store's, or the folder cannot be written.
        DataError: nothing of the source can be used.
    """
    rank, world_size = launched_share()
    old = OldStore(EmbeddingStore(folder))
    old.store.check_model(encoder)
    source = ("source_fingerprint", "source_texts_sha256", "rows")
    taken = (*source, "columns")
    options = {name: value for name, value in wanted.items() if name not in taken}
    refuse_difference(folder, plan, options, is_finished=True)
    _refuse_int8(folder, plan, encoder)
    columns = wanted.get("columns", plan.columns)
    if show and "columns" not in wanted:
        _remark_columns(folder, plan, reader)
    plan = dataclasses.replace(
        plan,
        **{name: wanted[name] for name in source},
        source=_absolute_source(reader),
        columns=columns,
        dropped=dict(reader.dropped),
        generation=plan.generation + 1,
        version=VERSION,
    )
    if show and not old.is_known:
        remark(
            f"{folder}: made by an earlier clipkit, which did not record what is in the images; "
            "all of them are embedded again, this once"
        )
    update = folder / UPDATE
    with plain_errors(folder):
        _begin_update(folder, plan, world_size)
    parts = Parts(update, plan, rank=rank, world_size=world_size)
    with _at_work(update, parts) as stop:
        UpdateWork(old, update, plan, parts, encoder, reader, workers, show, stop).run()
        _finish_update(folder, plan, parts, encoder, old, alone=world_size == 1)
    _take_over(folder, rank)
    if show:
        remark(f"{folder}: {_changes(read_manifest(folder))}")


def _remark_columns(folder: Path, plan: Plan, reader: Reader) -> None:
    """Says which fields the source has had since the store was made, or has no more."""
    if not plan.columns:  # perhaps none were wanted
        return
    there = find_columns(reader, None).keys()
    kept = plan.columns.keys()
    names = ",".join(sorted(there | kept))
    if new := sorted(there - kept):
        remark(f"{folder}: no column is made of {', '.join(new)}; --columns {names} makes one")
    if gone := sorted(name for name in kept - there if "." not in name):
        remark(f"{folder}: the source has no {', '.join(gone)} any more; the column is left empty")


def _changes(manifest: dict[str, Any]) -> str:
    """``12 new, 3 changed, 2 removed, 3,602 kept``."""
    return ", ".join(f"{number:,} {what}" for what, number in manifest["update"].items())


def _begin_update(folder: Path, plan: Plan, world_size: int) -> None:
    """Plans an update, and removes one that was begun of another source or state.

    Raises:
        CheckpointError: somebody makes that one.
        ConfigError: several ranks cannot remove it.
    """
    update = folder / UPDATE
    try:
        there = read_plan(update)
    except CheckpointError:
        there = None
    begun = (update / PLAN).exists()
    if begun and (there is None or there.as_json() != plan.as_json()):
        _refuse_workers(folder)
        if world_size > 1:
            raise ConfigError(
                f"{update}: an update was begun there, and the source or the store has changed "
                "since; several ranks cannot each remove it, so remove that folder first"
            )
        remove_update(folder)
    update.mkdir(exist_ok=True)
    create_json(update / PLAN, plan.as_json())


def _finish_update(
    folder: Path, plan: Plan, parts: Parts, encoder: Encoder, old: OldStore, *, alone: bool
) -> None:
    """Writes the manifest of an update of which all parts are done; of another nothing stays.

    Raises:
        CheckpointError: the model has changed, or the manifest cannot be written.
        DataError: no sample can be used, or none is one of the store.
    """
    if parts.is_finished():
        return
    _refuse_changed_model(encoder, plan)
    records = parts.records
    try:
        if not any(record["rows"] for record in records.values()):
            first = next((record["example"] for _, record in sorted(records.items())), None)
            raise _nothing_usable(plan, first)
        write_manifest(folder / UPDATE, plan, records, count_changes=old.count_changes)
    except DataError:
        if alone:
            with plain_errors(folder):
                remove_update(folder)
        raise


def _take_over(folder: Path, rank: int) -> None:
    """Makes a finished update the store, and its codes those of the new vectors.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    with plain_errors(folder):
        take_over_update(folder)
        if rank:
            return
        renew_codes(EmbeddingStore(folder))
        remove_replaced(folder)


def _refuse_changed_model(encoder: Encoder, plan: Plan) -> None:
    """Refuses a model whose folder has changed while it was at work.

    Raises:
        CheckpointError: it has.
    """
    hashes = {"weights_sha256": plan.weights_sha256, "preprocess_sha256": plan.preprocess_sha256}
    if encoder_hashes(encoder) != hashes:
        raise CheckpointError(
            f"{encoder.folder}: the model there has changed since it was loaded, so the store "
            "would name the wrong one; embed again into another folder"
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
    _refuse_changed_model(encoder, plan)
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
    name = encoder.name
    if name is not None and Path(name).is_dir():
        name = str(Path(name).absolute())
    return Plan(
        model=name,
        weights_sha256=wanted["weights_sha256"],
        preprocess_sha256=wanted["preprocess_sha256"],
        dim=encoder.embed_dim,
        context_length=encoder.preprocess.context_length,
        source=_absolute_source(reader),
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


def _absolute_source(reader: Reader) -> dict[str, Any]:
    """The source as seen from anywhere, for showing the images again, and for searching."""
    path = reader.source.path
    path = path if "://" in path else str(Path(path).expanduser().absolute())
    return dataclasses.asdict(dataclasses.replace(reader.source, path=path))


def _tell(reader: Reader, plan: Plan) -> None:
    """What the user should know before the work begins."""
    for damage in reader.damage:
        remark(damage)
    if plan.cosines:
        measured = ", ".join(f"{value:.5f} of {what}s" for what, value in plan.cosines.items())
        which = "a faster one" if plan.precision == "fp32" else plan.precision
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

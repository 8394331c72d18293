"""Any source → shards of one size: WebDataset tars or Parquet files, with a ``sizes.json``.

Which rows a shard holds is fixed before the first is written, and kept in ``.plan.json``.
Shards are written aside, put on the disk and renamed, so that one that has its name is whole;
the same command run again writes those that are missing. The same source and options give the
same bytes, however often it was interrupted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from clipkit.atomic import sync, write_json
from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data.pack_folder import (
    EXTENSIONS,
    PLAN,
    SIZES,
    finished,
    locked,
    read_json,
    record_path,
    refuse_foreign,
    refuse_inside,
    write_card,
)
from clipkit.data.pack_samples import Packing, Sample, make_sample
from clipkit.data.pack_shards import Layout, write_shard
from clipkit.data.reader import NONE, Reader
from clipkit.data.source import open_source
from clipkit.data.workers import WorkerLoader
from clipkit.errors import CheckpointError, DataError
from clipkit.types import Skip

_VERSION = 2  # of the plan: another one would cut the rows, or write them, otherwise
_MEASURED = 128  # samples, to find out how large one is, and what it has
_UNKNOWN_SIZE = 100_000  # bytes a sample, where none of those can be used
_PART = 64  # samples that a worker reads at a time, at most
_PART_BYTES = 16 * 2**20


@dataclass(slots=True)
class Packed:
    """What lies in the folder now.

    Attributes:
        shards: samples, bytes and sha256 by file name.
        kept: shards that were there already.
        skipped: samples that could not be used, by reason.
        examples: where the first of each reason is, of those that were met this time.
        dropped: samples that were left out when the source was indexed, by reason.
        damage: of the source's files, a sentence each.
    """

    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    damage: list[str] = field(default_factory=list)


def pack(
    source: SourceConfig,
    out: str | Path,
    packing: Packing,
    *,
    workers: int,
    begin: Callable[[Reader, int], object] = lambda reader, total: None,
    advance: Callable[[int], object] = lambda _: None,
) -> Packed:
    """Writes the shards that ``out`` lacks.

    Args:
        source: what to read.
        out: a folder that is new, empty, or holds shards of the same plan.
        packing: how to write them.
        workers: processes that read and decode; 0 does it in this one.
        begin: called once, with the source's reader and the number of samples to read.
        advance: called with the number of samples newly done.

    Raises:
        ConfigError: ``out`` is inside the source.
        DataError: the source is missing, or none of its samples can be used.
        CheckpointError: ``out`` holds something else, or cannot be written.
    """
    folder = Path(os.path.realpath(Path(out).expanduser()))
    refuse_inside(folder, source.path)
    refuse_foreign(folder)
    reader = open_source(source)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        for name in (".shard-*", "..shard-*", f".{PLAN}.*", f".{SIZES}.*"):
            for stale in folder.glob(f"{name}.tmp"):  # of one that was killed
                stale.unlink()
        plan = _plan(folder, reader, packing)
        layout = Layout(packing.format, plan["texts"], plan["several"], plan["classes"])
        write_card(folder, packing.format)
        whole, per_shard = len(reader), plan["rows_per_shard"]
        names = [
            f"shard-{number:06d}.{EXTENSIONS[packing.format]}"
            for number in range(-(-whole // per_shard))
        ]
        records = finished(folder, names)
        missing = [number for number, name in enumerate(names) if name not in records]
        packed = Packed(kept=len(records), dropped=dict(reader.dropped), damage=list(reader.damage))
        ranges = [range(n * per_shard, min((n + 1) * per_shard, whole)) for n in missing]
        begin(reader, sum(map(len, ranges)))
        part = max(1, min(_PART, per_shard, _PART_BYTES // plan["bytes_per_sample"]))
        parts = [rows[at : at + part] for rows in ranges for at in range(0, len(rows), part)]
        made = _Made(WorkerLoader(
            _Parts(reader, packing, parts), range(len(parts)), workers=workers, ahead=2 * workers
        ), packed, advance)  # fmt: skip
        with made:
            for number, rows in zip(missing, ranges, strict=True):
                name, parts_here = names[number], -(-len(rows) // part)
                records[name] = write_shard(folder / name, layout, made.take(parts_here))
        packed.shards = {name: records[name] for name in names}
        for record in packed.shards.values():
            packed.skipped.update(record.get("skipped", {}))
        if not any(record["samples"] for record in packed.shards.values()):
            why = ", ".join(f"{n:,} × {reason}" for reason, n in packed.skipped.items())
            raise DataError(f"{source.path}: no sample can be used ({why}).")
        if read_json(folder / SIZES) != packed.shards:
            write_json(folder / SIZES, packed.shards)
            sync(folder)
        for name in names:
            record_path(folder / name).unlink(missing_ok=True)
    return packed


class _Parts(Dataset["list[Sample | Skip] | DataError"]):
    """Part number → its samples, ready to be written."""

    def __init__(self, reader: Reader, packing: Packing, parts: list[range]) -> None:
        self._reader, self._packing, self._parts = reader, packing, parts

    def __getitem__(self, number: int) -> list[Sample | Skip] | DataError:
        try:
            return [make_sample(self._reader, row, self._packing) for row in self._parts[number]]
        except DataError as error:
            return error  # raised in a worker it would come wrapped in a traceback


class _Made:
    """The parts in order, as workers make them; counts what they leave out."""

    def __init__(
        self,
        loader: WorkerLoader[list[Sample | Skip] | DataError],
        packed: Packed,
        advance: Callable[[int], object],
    ) -> None:
        self._loader, self._packed, self._advance = loader, packed, advance
        self._parts: Iterator[list[Sample | Skip] | DataError] = iter(())

    def __enter__(self) -> _Made:
        self._parts = iter(self._loader)
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.close()

    def take(self, parts: int) -> Iterator[Sample | Skip]:
        """The samples of the next parts."""
        for _ in range(parts):
            part = next(self._parts)
            if isinstance(part, DataError):
                raise part
            for item in part:
                if isinstance(item, Skip):
                    self._packed.examples.setdefault(item.reason, item.origin)
                yield item
            self._advance(len(part))


def _plan(folder: Path, reader: Reader, packing: Packing) -> dict[str, Any]:
    """The plan that is there, or a new one.

    Raises:
        CheckpointError: what is there was made from another source or with other options.
    """
    wanted = {
        "version": _VERSION,
        "image": reader.source.image,
        "caption": reader.source.caption,
        "fingerprint": reader.fingerprint,
        "rows": len(reader),
        **asdict(packing),
    }
    there = read_json(folder / PLAN)
    if isinstance(there, dict):
        for name, value in wanted.items():
            if there.get(name) != value:
                what = (
                    "of another source, or the source has changed"
                    if name in ("fingerprint", "rows")
                    else f"made with {name} {there.get(name)}, not {value}"
                )
                raise CheckpointError(
                    f"{folder}: holds shards {what}; name another folder, or remove this one."
                )
        return there
    measured = _measure(reader, packing)
    mean = measured.pop("bytes_per_sample")
    plan = {
        **wanted,
        **measured,
        "bytes_per_sample": mean,
        "rows_per_shard": max(1, packing.shard_size // mean),
    }
    write_json(folder / PLAN, plan)
    sync(folder)
    return plan


def _measure(reader: Reader, packing: Packing) -> dict[str, Any]:
    """Layout of samples from all over the source, and the bytes that one takes up in a shard."""
    whole = len(reader)
    measured = min(_MEASURED, whole)
    several = with_class = False
    texts = not reader.understood.classes and reader.source.caption != NONE
    sizes = []
    for number in range(measured):
        sample = make_sample(reader, number * whole // measured, packing)
        if isinstance(sample, Skip):
            continue
        texts = texts or bool(sample.captions)
        several = several or len(sample.captions) > 1
        with_class = with_class or (sample.class_number, sample.class_name) != (None, None)
        sizes.append(Layout(packing.format, texts, several, None).size_of(sample))
    return {
        "texts": texts,
        "several": several,
        "classes": _class_names(reader) if with_class or reader.understood.classes else None,
        "bytes_per_sample": max(1, sum(sizes) // len(sizes)) if sizes else _UNKNOWN_SIZE,
    }


def _class_names(reader: Reader) -> list[str]:
    """The names of the classes by number: the source's, or all that there are, sorted."""
    if reader.understood.class_names:
        return list(reader.understood.class_names)
    asked = {each.name: getattr(reader.source, each.name) for each in fields(SourceConfig)}
    del asked["filter"], asked["caption"]
    labels = set(open_source(LabelSource(**asked), progress=False).captions()) - {""}
    return [] if all(label.isdecimal() for label in labels) else sorted(labels)

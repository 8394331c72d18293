"""Any source → shards of one size: WebDataset tars or Parquet files, with a ``sizes.json``.

Which rows a shard holds is fixed before the first is written, and kept in ``plan.json``.
Shards are written aside, put on the disk and renamed, so that one that has its name is whole;
the same command run again writes those that are missing. The same source and options give the
same bytes, however often it was interrupted.
"""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch.utils.data import Dataset

from clipkit.atomic import HashedFile, sync, write_json
from clipkit.config.schema import SourceConfig
from clipkit.data import files
from clipkit.data.check import image_kind, usable
from clipkit.data.reader import NONE, Reader, SampleError
from clipkit.data.source import open_source
from clipkit.data.tar import BLOCK
from clipkit.data.tar_index import write_index
from clipkit.data.workers import WorkerLoader
from clipkit.errors import CheckpointError, ConfigError, DataError
from clipkit.types import Pair, Skip

PLAN, SIZES = "plan.json", "sizes.json"
_VERSION = 1  # of the plan: another one would cut the rows, or write them, otherwise
_MEASURED = 128  # samples, to find out how large one is
_UNKNOWN_SIZE = 100_000  # bytes a sample, where none of those can be used
_PART = 64  # samples that a worker reads at a time, at most
_PART_BYTES = 16 * 2**20
_ROW_GROUP_BYTES = 16 * 2**20  # what a reader of one Parquet row has to read at least
_EXTENSIONS = {"webdataset": "tar", "parquet": "parquet"}


@dataclass(frozen=True, slots=True)
class Packing:
    """How shards are written.

    Attributes:
        format: of the shards.
        shard_size: bytes, about.
        resize: pixels of the shorter edge of what is larger, then a JPEG; None keeps every
            image byte for byte.
        quality: of these JPEGs.
    """

    format: Literal["webdataset", "parquet"] = "webdataset"
    shard_size: int = 256 * 10**6
    resize: int | None = None
    quality: int | None = None


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
    begin: Callable[[int], object] = lambda total: None,
    advance: Callable[[int], object] = lambda _: None,
) -> Packed:
    """Writes the shards that ``out`` lacks.

    Args:
        source: what to read.
        out: a folder that is new, empty, or holds shards of the same plan.
        packing: how to write them.
        workers: processes that read and decode; 0 does it in this one.
        begin: called once, with the number of samples to read.
        advance: called with the number of samples newly done.

    Raises:
        ConfigError: ``out`` is inside the source.
        DataError: the source is missing, or none of its samples can be used.
        CheckpointError: ``out`` holds something else, or cannot be written.
    """
    folder = Path(os.path.realpath(Path(out).expanduser()))
    _refuse_inside(folder, source.path)
    _refuse_foreign(folder)
    reader = open_source(source)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        for name in (".shard-*", "..shard-*", f".{PLAN}.*", f".{SIZES}.*"):
            for stale in folder.glob(f"{name}.tmp"):  # of one that was killed
                stale.unlink()
        plan = _plan(folder, reader, packing)
        whole, per_shard = len(reader), plan["rows_per_shard"]
        names = [
            f"shard-{number:06d}.{_EXTENSIONS[packing.format]}"
            for number in range(-(-whole // per_shard))
        ]
        records = _finished(folder, names)
        missing = [number for number, name in enumerate(names) if name not in records]
        packed = Packed(kept=len(records), dropped=dict(reader.dropped), damage=list(reader.damage))
        ranges = [range(n * per_shard, min((n + 1) * per_shard, whole)) for n in missing]
        begin(sum(map(len, ranges)))
        part = max(1, min(_PART, per_shard, _PART_BYTES // plan["bytes_per_sample"]))
        parts = [rows[at : at + part] for rows in ranges for at in range(0, len(rows), part)]
        made = _Made(WorkerLoader(
            _Parts(reader, packing, parts), range(len(parts)), workers=workers, ahead=2 * workers
        ), packed, advance)  # fmt: skip
        with made:
            for number, rows in zip(missing, ranges, strict=True):
                name, parts_here = names[number], -(-len(rows) // part)
                records[name] = _write_shard(folder / name, packing.format, made.take(parts_here))
        packed.shards = {name: records[name] for name in names}
        for record in packed.shards.values():
            packed.skipped.update(record.get("skipped", {}))
        if not any(record["samples"] for record in packed.shards.values()):
            why = ", ".join(f"{n:,} × {reason}" for reason, n in packed.skipped.items())
            raise DataError(f"{source.path}: no sample can be used ({why}).")
        if _read_json(folder / SIZES) != packed.shards:
            write_json(folder / SIZES, packed.shards)
            sync(folder)
        for name in names:
            _record_path(folder / name).unlink(missing_ok=True)
    return packed


@dataclass(slots=True)
class _Sample:
    """One sample as it is written; ``name`` is its row in the source."""

    name: str
    image: bytes | None
    extension: str
    caption: str | None
    metadata: bytes  # JSON


class _Parts(Dataset["list[_Sample | Skip] | DataError"]):
    """Part number → its samples, ready to be written."""

    def __init__(self, reader: Reader, packing: Packing, parts: list[range]) -> None:
        self._reader, self._packing, self._parts = reader, packing, parts

    def __getitem__(self, number: int) -> list[_Sample | Skip] | DataError:
        try:
            return [_make(self._reader, row, self._packing) for row in self._parts[number]]
        except DataError as error:
            return error  # raised in a worker it would come wrapped in a traceback


class _Made:
    """The parts in order, as workers make them; counts what they leave out."""

    def __init__(
        self,
        loader: WorkerLoader[list[_Sample | Skip] | DataError],
        packed: Packed,
        advance: Callable[[int], object],
    ) -> None:
        self._loader, self._packed, self._advance = loader, packed, advance
        self._parts: Iterator[list[_Sample | Skip] | DataError] = iter(())

    def __enter__(self) -> _Made:
        self._parts = iter(self._loader)
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.close()

    def take(self, parts: int) -> Iterator[_Sample | Skip]:
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


def _make(reader: Reader, row: int, packing: Packing) -> _Sample | Skip:
    try:
        pair = reader[row]
        decoded, _ = usable(pair, reader.source)
    except SampleError as error:
        return Skip(reader.locate(row), str(error))
    image = pair.image if decoded else None
    if decoded and packing.resize and min(decoded.size) > packing.resize:
        image = _smaller(decoded, packing.resize, packing.quality or 90)
    caption = pair.caption if reader.source.caption != NONE else None
    if caption is not None:
        # Halves of surrogate pairs, as broken JSON holds them, have no bytes.
        caption = caption.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return _Sample(
        name=f"{row:09d}",
        image=image,
        extension=image_kind(image)[1] if image else "",
        caption=caption,
        metadata=_metadata(pair),
    )


def _smaller(image: Image.Image, edge: int, quality: int) -> bytes:
    """A JPEG whose shorter edge is ``edge`` pixels long."""
    scale = edge / min(image.size)
    size = (max(edge, round(image.width * scale)), max(edge, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS)
    image.info = {}  # a colour profile speaks of the pixels before they were made RGB
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _metadata(pair: Pair) -> bytes:
    """The sample's other fields and its name in the source, as JSON."""
    fields = {**pair.metadata, "key": pair.key}
    text = json.dumps(_plain(fields), ensure_ascii=False, default=str)
    return text.encode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """What JSON has: no bytes, and no number that is none."""
    if isinstance(value, Mapping):
        kept = ((key, each) for key, each in value.items() if not isinstance(each, bytes))
        return {str(key): _plain(each) for key, each in kept}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value if not isinstance(each, bytes)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_shard(path: Path, format: str, items: Iterable[_Sample | Skip]) -> dict[str, Any]:
    """Writes a shard aside and renames it; returns what the manifest says of it."""
    aside = path.with_name(f".{path.name}.tmp")
    skipped: Counter[str] = Counter()
    samples = 0

    def kept() -> Iterator[_Sample]:
        nonlocal samples
        for item in items:
            if isinstance(item, Skip):
                skipped[item.reason] += 1
            else:
                samples += 1
                yield item

    try:
        with aside.open("wb") as file:
            hashed = HashedFile(file)
            (_write_tar if format == "webdataset" else _write_parquet)(hashed, kept())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        aside.unlink(missing_ok=True)
    if format == "webdataset" and samples:
        write_index(path)  # for whoever reads the shard from far away
    record: dict[str, Any] = {
        "samples": samples,
        "bytes": hashed.size,
        "sha256": hashed.hash.hexdigest(),
    }
    if skipped:
        record["skipped"] = dict(sorted(skipped.items()))
    write_json(_record_path(path), record)
    return record


def _write_tar(file: Any, samples: Iterable[_Sample]) -> None:
    # GNU's headers hold nothing of the machine, the user or the time, if they are not told to.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for sample in samples:
            for extension, data in _members(sample):
                info = tarfile.TarInfo(f"{sample.name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _members(sample: _Sample) -> Iterator[tuple[str, bytes]]:
    """The members of a tar that hold a sample, by extension."""
    if sample.image is not None:
        yield sample.extension, sample.image
    if sample.caption is not None:
        yield "txt", sample.caption.encode("utf-8")
    yield "json", sample.metadata


def _write_parquet(file: Any, samples: Iterable[_Sample]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # ``datasets`` reads from this that the column holds images.
    text = {"dtype": "string", "_type": "Value"}
    features = {"key": text, "image": {"_type": "Image"}, "caption": text, "metadata": text}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("key", pa.string()), ("image", image), ("caption", pa.string()),
         ("metadata", pa.string())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    pending = 0
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for sample in samples:
            path = f"{sample.name}.{sample.extension}"
            rows.append(
                {
                    "key": sample.name,
                    "image": sample.image and {"bytes": sample.image, "path": path},
                    "caption": sample.caption,
                    "metadata": sample.metadata.decode("utf-8"),
                }
            )
            pending += _size(sample)
            if pending >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows, pending = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _size(sample: _Sample) -> int:
    return len(sample.image or b"") + len((sample.caption or "").encode()) + len(sample.metadata)


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
    there = _read_json(folder / PLAN)
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
    mean = _measure(reader, packing)
    plan = {
        **wanted,
        "bytes_per_sample": mean,
        "rows_per_shard": max(1, packing.shard_size // mean),
    }
    write_json(folder / PLAN, plan)
    sync(folder)
    return plan


def _measure(reader: Reader, packing: Packing) -> int:
    """Bytes that a sample takes up in a shard, by some from all over the source."""
    whole = len(reader)
    sizes = []
    for number in range(min(_MEASURED, whole)):
        sample = _make(reader, number * whole // min(_MEASURED, whole), packing)
        if isinstance(sample, Skip):
            continue
        if packing.format == "webdataset":  # a header for each member, and whole blocks
            lengths = [len(data) for _, data in _members(sample)]
            size = sum(BLOCK - (-length // BLOCK) * BLOCK for length in lengths)
        else:
            size = _size(sample)
        sizes.append(size)
    return max(1, sum(sizes) // len(sizes)) if sizes else _UNKNOWN_SIZE


def _finished(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What is known of the shards that are there."""
    manifest = _read_json(folder / SIZES)
    found = {}
    for name in names:
        record = _read_json(_record_path(folder / name))
        if not isinstance(record, dict) and isinstance(manifest, dict):
            record = manifest.get(name)
        with suppress(OSError):
            if isinstance(record, dict) and (folder / name).stat().st_size == record.get("bytes"):
                found[name] = record
    return found


def _record_path(shard: Path) -> Path:
    """What is known of one shard until all are there."""
    return shard.with_name(f".{shard.name}.json")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _refuse_inside(folder: Path, source: str) -> None:
    """Shards among what they are made from would be read as part of it the next time."""
    if files.is_url(source) or not os.path.isdir(os.path.expanduser(source)):
        return
    inside = Path(os.path.realpath(os.path.expanduser(source)))
    if folder == inside or inside in folder.parents:
        raise ConfigError(f"{folder}: is inside the source {source}; name a folder outside of it.")


def _refuse_foreign(folder: Path) -> None:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise CheckpointError(f"{folder}: is a file; name a folder.") from None
    # Before the plan there are only our own hidden files.
    if PLAN not in names and any(not name.startswith(".") for name in names):
        raise CheckpointError(
            f"{folder}: is not empty, and clipkit data pack did not write it; name a new folder."
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two that write the same shards at a time would write into one file."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = folder / ".lock"
    with path.open("w") as file:
        try:
            # Not inherited by workers, which may live on for seconds when this process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"{folder}: another clipkit data pack is writing there; wait for it to end."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

"""Samples → one shard: a WebDataset tar or a Parquet file, written aside and renamed."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.atomic import HashedFile, sync, write_json
from clipkit.data.pack_folder import record_path
from clipkit.data.pack_samples import Sample
from clipkit.data.tar import BLOCK
from clipkit.data.tar_index import write_index
from clipkit.errors import CheckpointError
from clipkit.types import Skip

_ROW_GROUP_BYTES = 16 * 2**20  # what a reader of one Parquet row has to read at least


@dataclass(frozen=True, slots=True)
class Layout:
    """Parts that the samples of a packed set have.

    Attributes:
        format: ``webdataset`` or ``parquet``.
        texts: whether they have captions.
        several: whether they have several captions.
        classes: the names of the classes by number; None where samples have no class, and empty
            where the names are not known.
    """

    format: str
    texts: bool
    several: bool
    classes: Sequence[str] | None

    def size_of(self, sample: Sample) -> int:
        """Bytes that a sample takes up in a shard, about."""
        if self.format == "webdataset":  # a header for each member, and whole blocks
            lengths = [len(data) for _, data in self.members(sample)]
            return sum(BLOCK - (-length // BLOCK) * BLOCK for length in lengths)
        texts = sum(len(text.encode()) for text in sample.captions)
        return len(sample.image or b"") + texts + len(sample.fields(captions=False))

    def members(self, sample: Sample) -> Iterator[tuple[str, bytes]]:
        """The members of a tar that hold a sample, by extension."""
        if sample.image is not None:
            yield sample.extension, sample.image
        if sample.captions:
            yield "txt", sample.captions[0].encode("utf-8")
        number = sample.number(self.classes or ())
        if number is not None or sample.class_name is not None:
            text = sample.class_name if number is None else str(number)
            yield "cls", (text or "").encode("utf-8", "replace")
        several = self.several or len(sample.captions) > 1
        yield "json", sample.fields(captions=several and bool(sample.captions))


def write_shard(path: Path, layout: Layout, items: Iterable[Sample | Skip]) -> dict[str, Any]:
    """Writes a shard aside and renames it; returns what the manifest says of it.

    Raises:
        CheckpointError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.tmp")
    skipped: Counter[str] = Counter()
    samples = 0

    def kept() -> Iterator[Sample]:
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
            write = _write_tar if layout.format == "webdataset" else _write_parquet
            write(hashed, layout, kept())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}).") from error
    finally:
        aside.unlink(missing_ok=True)
    if layout.format == "webdataset" and samples:
        write_index(path)  # for whoever reads the shard from far away
    record: dict[str, Any] = {
        "samples": samples,
        "bytes": hashed.size,
        "sha256": hashed.hash.hexdigest(),
    }
    if skipped:
        record["skipped"] = dict(sorted(skipped.items()))
    write_json(record_path(path), record)
    return record


def _write_tar(file: Any, layout: Layout, samples: Iterable[Sample]) -> None:
    # GNU's headers hold nothing of the machine, the user or the time, if they are not told to.
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for sample in samples:
            for extension, data in layout.members(sample):
                info = tarfile.TarInfo(f"{sample.name}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _write_parquet(file: Any, layout: Layout, samples: Iterable[Sample]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(layout)
    rows: list[dict[str, Any]] = []
    pending = 0
    with pq.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for sample in samples:
            rows.append(_row(sample, layout))
            pending += layout.size_of(sample)
            if pending >= _ROW_GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                rows, pending = [], 0
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _schema(layout: Layout) -> Any:
    import pyarrow as pa

    text, image = pa.string(), pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    told_text = {"dtype": "string", "_type": "Value"}
    # (column, type, what ``datasets`` is told of it)
    columns: list[tuple[str, Any, Any]] = [
        ("key", text, told_text),
        ("image", image, {"_type": "Image"}),
    ]
    if layout.texts:
        told = {"feature": told_text, "_type": "List"}
        columns += [("caption", text, told_text), ("captions", pa.list_(text), told)]
    if layout.classes is not None:
        label = {"names": list(layout.classes), "_type": "ClassLabel"}
        number = {"dtype": "int64", "_type": "Value"}
        columns.append(("label", pa.int64(), label if layout.classes else number))
    columns.append(("metadata", text, told_text))
    features = {name: told for name, _, told in columns}
    return pa.schema(
        [(name, kind) for name, kind, _ in columns],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def _row(sample: Sample, layout: Layout) -> dict[str, Any]:
    path = f"{sample.name}.{sample.extension}"
    return {
        "key": sample.name,
        "image": sample.image and {"bytes": sample.image, "path": path},
        "caption": sample.captions[0] if sample.captions else None,
        "captions": sample.captions,
        "label": sample.number(layout.classes or ()),
        "metadata": sample.fields(captions=bool(sample.captions) and not layout.texts).decode(),
    }

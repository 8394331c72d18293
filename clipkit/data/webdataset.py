"""WebDataset shards → pairs: random access into tars by an index; nothing is ever extracted.

Members of one key (the name up to the first dot of its last part) are one sample; member
names are opaque keys, never paths. Only the members that hold the image, the caption and
``.json`` fields are read.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import SourceConfig
from clipkit.data import files, reader
from clipkit.data.index import (
    Advance,
    Arrays,
    indexed,
    load_index,
    pack_json,
    pack_texts,
    unpack_json,
    unpack_text,
)
from clipkit.data.reader import SampleError
from clipkit.data.tar import list_tar
from clipkit.errors import DataError
from clipkit.types import Pair

_KIND = "tar 2"
_KEPT_ROWS = 4_000_000  # of shard indexes in memory, some 60 bytes each
_NAME = re.compile(rb"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # key, extension


# (S,) offsets, -1 where there is none; sizes; CRC-32, -1 where it is not known.
_Places = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(slots=True)
class _Shard:
    """The usable samples of one shard."""

    image: _Places
    caption: _Places
    fields: _Places
    keys: tuple[NDArray[np.uint8], NDArray[np.int64]]
    names: NDArray[np.int64]  # (S,) the sample's number among all, usable or not


class TarReader:
    """Pairs of WebDataset tars; see ``Reader``.

    Args:
        source: ``image`` and ``caption`` name the members' extensions; ``caption`` may be
            ``json.FIELD``.
        paths: the shards, in order.
        progress: show a bar while indexing.

    Raises:
        DataError: a shard is missing, or no sample is usable.
    """

    def __init__(self, source: SourceConfig, paths: list[str], *, progress: bool) -> None:
        self.source = source
        self.dropped: dict[str, int] = {}
        self.damage: list[str] = []
        self.lost = 0
        self._samples: list[int] = []  # a shard, usable or not
        self.shard_sizes: list[int] = []
        self._paths = paths
        self._stats: list[files.FileStat] = []
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._kept_rows = 0
        self._image = [source.image.lower()] if source.image else list(reader.IMAGE_EXTENSIONS)
        self._caption, self._field = self._wanted_caption()
        seen: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        loaded = indexed(paths, _index_tar, kind=_KIND, progress=progress)
        for number, (path, stat, arrays) in enumerate(loaded):
            self._stats.append(stat)
            if not source.caption and not self._field:
                self._look_for_json_captions(path, arrays)
            seen.update(unpack_json(arrays["seen"]))
            shard = self._select(arrays, dropped)
            self._keep(number, shard)
            self.shard_sizes.append(len(shard.names))
            self._note_damage(path, stat, arrays)
        self._compare_with_sizes_json()
        self.dropped = dict(dropped)
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        if len(self) == 0:
            raise DataError(self._nothing_usable(seen))
        names = [path.replace("\\", "/").rsplit("/", 1)[-1] for path in paths]
        sizes = [stat.size for stat in self._stats]
        self.fingerprint = files.digest(
            source.image, source.caption, *names, *sizes, *self.shard_sizes
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> Pair:
        number, i, shard = self._find(row)
        path, key = self._paths[number], unpack_text(*shard.keys, int(shard.names[i]))
        image = self._member(path, shard.image, i, reader.MAX_IMAGE_BYTES)
        raw = self._member(path, shard.fields, i, reader.MAX_CAPTION_BYTES)
        metadata = _parse_fields(raw)
        captions = self._captions(path, shard, i, metadata)
        return Pair(
            key=key,
            image=image,
            caption=captions[0] if captions else None,
            origin=f"{path}, sample {key}",
            metadata=metadata,
            others=captions[1:],
        )

    def locate(self, row: int) -> str:
        number, i, shard = self._find(row)
        return f"{self._paths[number]}, sample {unpack_text(*shard.keys, int(shard.names[i]))}"

    def captions(self) -> Iterator[str]:
        for number in range(len(self._paths)):
            shard = self._shard(number)
            for i in range(len(shard.names)):
                metadata = {}
                if self._field:
                    raw = self._member(self._paths[number], shard.fields, i, 2**20)
                    metadata = _parse_fields(raw)
                yield next(iter(self._captions(self._paths[number], shard, i, metadata)), "")

    def image_names(self) -> None:
        return None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_kept_rows": 0}

    def _note_damage(self, path: str, stat: files.FileStat, arrays: Arrays) -> None:
        samples = len(arrays["key_ends"])
        self._samples.append(samples)
        damage: list[str] = unpack_json(arrays["damage"])
        self.damage += [f"{path}: {what}." for what in damage]
        if damage:
            lost = int(arrays["lost"])
            bytes_a_sample = max(1.0, (stat.size - lost) / max(1, samples))
            self.lost += max(len(damage), round(lost / bytes_a_sample))

    def _compare_with_sizes_json(self) -> None:
        """What a ``sizes.json`` beside the shards says of their samples, held against them."""
        told: dict[str, dict[str, Any]] = {}
        for path, samples in zip(self._paths, self._samples, strict=True):
            folder = files.parent(path)
            if folder not in told:
                told[folder] = _read_sizes(files.join(folder, "sizes.json"))
            name = path.replace("\\", "/").rsplit("/", 1)[-1]
            expected = told[folder].get(name)
            if isinstance(expected, dict):
                expected = expected.get("samples")
            if isinstance(expected, int) and expected > samples:
                self.damage.append(f"{path}: holds {samples} samples; sizes.json says {expected}.")
                self.lost += expected - samples

    def _wanted_caption(self) -> tuple[list[str], str | None]:
        """Extensions to look for, and the JSON field where it is one."""
        wanted = self.source.caption
        if wanted is None:
            return list(reader.CAPTION_EXTENSIONS), None
        if wanted.startswith("json."):
            return ["json"], wanted.removeprefix("json.")
        return [wanted.lower()], None

    def _look_for_json_captions(self, path: str, arrays: Arrays) -> None:
        """Where shards hold no text members, the usual fields of their ``.json`` are tried."""
        names: list[str] = unpack_json(arrays["extensions"])
        if "json" not in names or any(name in names for name in reader.CAPTION_EXTENSIONS):
            return
        first = int(np.flatnonzero(arrays["extension"] == names.index("json"))[0])
        offset, size = int(arrays["offset"][first]), int(arrays["size"][first])
        record = _parse_fields(files.read(path, offset, min(size, reader.MAX_CAPTION_BYTES)))
        for name in reader.CAPTION_COLUMNS:
            if reader.caption_texts(reader.field_of(record, name), self.source):
                self._caption, self._field = ["json"], name
                return

    def _select(self, arrays: Arrays, dropped: Counter[str]) -> _Shard:
        """Keeps the samples that have what is wanted, and counts the others."""
        names: list[str] = unpack_json(arrays["extensions"])
        samples = len(arrays["key_ends"])
        usable = np.ones(samples, dtype=bool)

        def place(wanted: list[str]) -> _Places:
            offset = np.full(samples, -1, dtype=np.int64)
            size = np.zeros(samples, dtype=np.int64)
            checksum = np.full(samples, -1, dtype=np.int64)
            for name in reversed(wanted):  # the first that is there wins
                if name in names:
                    of_name = arrays["extension"] == names.index(name)
                    sample = arrays["sample"][of_name]
                    offset[sample] = arrays["offset"][of_name]
                    size[sample] = arrays["size"][of_name]
                    checksum[sample] = arrays["checksum"][of_name]
            return offset, size, checksum

        def drop(bad: NDArray[np.bool_], reason: str) -> None:
            if count := int((bad & usable).sum()):
                dropped[reason] += count
            usable[bad] = False

        image, caption, fields = place(self._image), place(self._caption), place(["json"])
        if self.source.image != reader.NONE:
            drop(image[0] < 0, "no image")
            drop(image[1] > reader.MAX_IMAGE_BYTES, "image file too large")
        if self.source.caption != reader.NONE:
            drop(caption[0] < 0, "no caption")
        rows = np.flatnonzero(usable)
        return _Shard(
            image=_taken(image, rows),
            caption=_taken(caption, rows),
            fields=_taken(fields, rows),
            keys=(arrays["keys"], arrays["key_ends"]),
            names=rows,
        )

    def _find(self, row: int) -> tuple[int, int, _Shard]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, row - int(self._ends[number]) + self.shard_sizes[number], self._shard(number)

    def _shard(self, number: int) -> _Shard:
        if number in self._shards:
            self._shards.move_to_end(number)
            return self._shards[number]
        path, stat = self._paths[number], self._stats[number]
        arrays = load_index(path, stat, _KIND)
        if arrays is None:  # it could not be kept, or the shard was replaced meanwhile
            now = files.stat(path)
            if now != stat:
                raise DataError(f"{path}: changed since it was indexed; start again.")
            arrays = _index_tar(path, stat, lambda _: None)
        shard = self._select(arrays, Counter())
        self._keep(number, shard)
        return shard

    def _keep(self, number: int, shard: _Shard) -> None:
        self._shards[number] = shard
        self._kept_rows += len(shard.names)
        while self._kept_rows > _KEPT_ROWS and len(self._shards) > 1:
            self._kept_rows -= len(self._shards.popitem(last=False)[1].names)

    def _member(self, path: str, places: _Places, i: int, limit: int) -> bytes | None:
        offset, whole, checksum = (int(of_all[i]) for of_all in places)
        if offset < 0:
            return None
        size = min(whole, limit)
        data = files.read(path, offset, size)
        if len(data) < size:
            raise SampleError("shard cut short")
        if size == whole and checksum >= 0 and zlib.crc32(data) != checksum:
            raise SampleError("bytes changed since the shard was indexed")
        return data

    def _captions(self, path: str, shard: _Shard, i: int, fields: dict[str, Any]) -> list[str]:
        if self._field:
            return reader.caption_texts(reader.field_of(fields, self._field), self.source)
        raw = self._member(path, shard.caption, i, reader.MAX_CAPTION_BYTES)
        return reader.caption_texts(raw, self.source)

    def _nothing_usable(self, seen: Counter[str]) -> str:
        found = ", ".join(f".{name} ({count})" for name, count in seen.most_common(8))
        why = ", ".join(f"{count} with {reason}" for reason, count in self.dropped.items())
        damage = f" {self.damage[0]}" if self.damage else ""
        return (
            f"{self.source.path}: no usable sample in {len(self._paths)} shard(s)"
            f"{': ' + why if why else ''}. Members found: {found or 'none'}; looked for images in "
            f".{', .'.join(self._image)} and captions in .{', .'.join(self._caption)}; "
            f"set image and caption of the source.{damage}"
        )


def _taken(places: _Places, rows: NDArray[np.intp]) -> _Places:
    offset, size, checksum = places
    return offset[rows], size[rows], checksum[rows]


def _index_tar(path: str, stat: files.FileStat, advance: Advance) -> Arrays:
    """One shard's members, grouped into samples; independent of what a run wants of them."""
    listing = list_tar(lambda offset, size: files.read(path, offset, size), stat.size, advance)
    samples: dict[bytes, int] = {}  # the latest sample of each key
    has: set[tuple[int, int]] = set()
    extensions: dict[str, int] = {}
    keys: list[bytes] = []
    members: list[tuple[int, int, int, int, int]] = []
    for (name, offset, size), checksum in zip(listing.members, listing.checksums, strict=True):
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        key = match[1]
        extension = extensions.setdefault(
            match[2].decode("utf-8", "replace").lower(), len(extensions)
        )
        sample = samples.get(key)
        # A key that comes again with what it already had is another sample of the same name,
        # as in shards that were concatenated.
        if sample is None or (sample, extension) in has:
            sample = samples[key] = len(keys)
            keys.append(key)
        has.add((sample, extension))
        members.append((sample, extension, offset, size, checksum))
    table = np.array(members, dtype=np.int64).reshape(-1, 5)
    packed, ends = pack_texts(keys)
    counts = Counter(table[:, 1].tolist())
    names = list(extensions)
    return {
        "keys": packed,
        "key_ends": ends,
        "extensions": pack_json(names),
        "seen": pack_json({names[e]: count for e, count in counts.most_common(20)}),
        "damage": pack_json(listing.damage),
        "lost": np.array(listing.lost),
        "sample": table[:, 0].astype(np.int32),
        "extension": table[:, 1].astype(np.int32),
        "offset": table[:, 2],
        "size": table[:, 3],
        "checksum": table[:, 4],
    }


def _read_sizes(path: str) -> dict[str, Any]:
    try:
        sizes = json.loads(files.read_all(path, 2**28))
    except (OSError, ValueError, DataError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _parse_fields(raw: bytes | None) -> dict[str, Any]:
    try:
        fields = json.loads(raw.decode("utf-8-sig", "replace")) if raw else None
    except (ValueError, RecursionError):  # broken JSON costs the sample its fields, not its life
        return {}
    return fields if isinstance(fields, dict) else {}

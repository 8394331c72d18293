"""WebDataset shards → pairs: random access into tars by an index; nothing is ever extracted.

Members of one key (the name up to the first dot of its last part) are one sample; member
names are opaque keys, never paths. Only the members that hold the image, the captions and
``.json`` fields are read.

How samples are counted (``count`` of the source; ``auto`` is ``index`` for local shards):

- ``index``: every shard is indexed before the first sample is read. Rows are the usable samples.
- ``sizes``: a ``sizes.json`` beside the shards says how many each holds, and a shard is indexed
  when it is first read. Rows are all samples; one that is not usable, or not there, is an error
  of its own.
- ``estimate``: shards have as many rows as their bytes suggest, by the samples of the first one,
  and are indexed when they are first read. In epoch e, row j of a shard with R rows and S usable
  samples is sample (j + e·R) mod S: over the epochs, all of them are read equally often.
"""

from __future__ import annotations

import io
import json
import re
import threading
import warnings
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.image_ids import NO_IMAGE, ImageFiles, number_images
from clipkit.data.index import (
    Advance,
    Arrays,
    has_index_beside,
    indexed,
    open_index,
    pack_json,
    pack_texts,
    unpack_json,
    unpack_text,
)
from clipkit.data.reader import TURN, Access, SampleError
from clipkit.data.tar import list_tar
from clipkit.data.understood import Understood
from clipkit.errors import DataError
from clipkit.types import Pair

_KIND = "tar 2"
_KEPT_ROWS = 4_000_000  # of shard indexes in memory, some 60 bytes each
_CLASS, _ARRAY = "cls", "npy"
_NAME = re.compile(rb"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # key, extension


_MAX_SAMPLES = 2**40  # of a shard, for sizes.json; more is nonsense
# (S,) offsets, -1 where there is none; sizes; CRC-32, -1 where it is not known.
_Places = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class _Wanted(NamedTuple):
    """Where a caption may be: the first of these members that is there, or a JSON field."""

    extensions: tuple[str, ...]
    field: str | None = None


@dataclass(slots=True)
class _Shard:
    """The samples of one shard that have a row."""

    image: _Places
    captions: list[_Places]  # by what is wanted
    fields: _Places
    keys: tuple[NDArray[np.uint8], NDArray[np.int64]]
    names: NDArray[np.int64]  # (S,) the sample's number among all, usable or not


class TarReader:
    """Pairs of WebDataset tars; see ``Reader``.

    Args:
        source: ``image`` and ``caption`` name the members' extensions; a caption may be
            ``json.FIELD``, and there may be several, with commas.
        paths: the shards, in order.
        progress: show a bar while indexing.
        estimate: totals may be estimates, where the source says nothing else.

    Raises:
        DataError: a shard is missing, or no sample is usable.
    """

    def __init__(
        self, source: SourceConfig, paths: list[str], *, progress: bool, estimate: bool = False
    ) -> None:
        self.source = source
        self.dropped: dict[str, int] = {}
        self.damage: list[str] = []
        self.lost = 0
        self.shard_sizes: list[int] = []
        self._paths = paths
        self._stats: list[files.FileStat | None] = [None] * len(paths)  # of those that are indexed
        self._shards: OrderedDict[int, _Shard] = OrderedDict()
        self._kept_rows = 0
        self._lock = threading.RLock()
        self._image = [source.image.lower()] if source.image else list(reader.IMAGE_EXTENSIONS)
        self._captions = self._wanted_captions()
        self._class_names = reader.read_class_names(source)
        told = self._read_sizes()
        self._count = self._how_to_count(told, estimate)
        remote = any(map(files.is_url, paths))
        self.access = Access(
            remote=remote,
            estimated=self._count == "estimate",
            whole_shards=self._count != "index" and not has_index_beside(paths[0]),
        )
        # Also where the others are indexed later, the first one shows what the captions are.
        now = paths if self._count == "index" else paths[:1]
        seen: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        loaded = indexed(now, _index_tar, kind=_KIND, progress=progress)
        for number, (path, stat, arrays) in enumerate(loaded):
            self._stats[number] = stat
            self._look_for_captions(path, arrays)
            seen.update(unpack_json(arrays["seen"]))
            shard = self._select(arrays, dropped)
            self._keep(number, shard)
            self.shard_sizes.append(len(shard.names))
            damage, lost = self._damage(path, stat, arrays, told[number])
            self.damage += damage
            self.lost += lost
        names = [path.replace("\\", "/").rsplit("/", 1)[-1] for path in paths]
        if self._count == "sizes":
            self.shard_sizes = [samples or 0 for samples in told]
            sizes = []
        elif self._count == "estimate":
            sizes = [stat.size for stat in files.stat_all(paths)]
            samples_a_byte = self.shard_sizes[0] / sizes[0]
            self.shard_sizes = [max(1, round(size * samples_a_byte)) for size in sizes]
        else:
            self.dropped = dict(dropped)
            sizes = [stat.size for stat in self._stats if stat is not None]
        self._ends = np.cumsum(self.shard_sizes, dtype=np.int64)
        if len(self) == 0 or (len(self._shards) == 1 and not len(self._shard(0).names)):
            raise DataError(self._nothing_usable(seen))
        self.understood = self._describe_members(seen)
        self.fingerprint = files.digest(
            *(source.image, source.caption, *names, *sizes, *self.shard_sizes),
            *([] if self._count == "index" else [self._count]),
        )

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, row: int) -> Pair:
        number, i, shard = self._find(row)
        path, key = self._paths[number], unpack_text(*shard.keys, int(shard.names[i]))
        if shard.image[1][i] > reader.MAX_IMAGE_BYTES:
            raise SampleError("image file too large")
        image = self._member(path, shard.image, i, reader.MAX_IMAGE_BYTES)
        raw = self._member(path, shard.fields, i, reader.MAX_CAPTION_BYTES)
        metadata = _parse_fields(raw)
        captions = self._texts(path, shard, i, metadata)
        return Pair(
            key=key,
            image=image,
            caption=captions[0] if captions else None,
            origin=f"{path}, sample {key}",
            metadata=metadata,
            others=captions[1:],
        )

    def locate(self, row: int) -> str:
        try:
            number, i, shard = self._find(row)
        except SampleError:
            number, i = self._place(row)
            return f"{self._paths[number]}, sample number {i}"
        return f"{self._paths[number]}, sample {unpack_text(*shard.keys, int(shard.names[i]))}"

    def place(self, row: int) -> tuple[str, int | None]:
        number, i, shard = self._find(row)
        offset = int(shard.image[0][i])
        return self._paths[number], None if offset < 0 else offset

    def captions(self) -> Iterator[str]:
        of_fields = any(wanted.field for wanted in self._captions)
        for number, path in enumerate(self._paths):
            shard = self._shard(number)
            for i in range(self.shard_sizes[number]):
                if i >= len(shard.names):
                    yield ""
                    continue
                raw = self._member(path, shard.fields, i, 2**20) if of_fields else None
                yield next(iter(self._texts(path, shard, i, _parse_fields(raw))), "")

    def image_files(self) -> ImageFiles | None:
        if self._count != "index" and self.access.remote and not self._is_indexed():
            return None
        sizes = np.full(len(self), NO_IMAGE, dtype=np.int64)
        checksums = np.zeros(len(self), dtype=np.int64)
        for number, (end, rows) in enumerate(zip(self._ends, self.shard_sizes, strict=True)):
            offset, size, checksum = self._shard(number).image
            there = np.flatnonzero(offset[:rows] >= 0)
            sizes[end - rows + there] = size[there]
            checksums[end - rows + there] = checksum[there]
        return ImageFiles(np.arange(len(self)), sizes, lambda numbers: checksums[numbers])

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": OrderedDict(), "_kept_rows": 0, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def _is_indexed(self) -> bool:
        """Whether every shard's index lies beside it, so that none need be read for it."""
        return not self.access.estimated and all(map(has_index_beside, self._paths))

    def _how_to_count(self, told: list[int | None], estimate: bool) -> str:
        count = self.source.count
        if count == "auto" and any(map(files.is_url, self._paths)):
            count = "estimate" if None in told else "sizes"
        if count == "sizes" and None in told:
            path = self._paths[told.index(None)]
            raise DataError(
                f"{path}: there is no sizes.json beside it that says how many samples it holds; "
                "set count of the source to index."
            )
        return "index" if count == "auto" or (count == "estimate" and not estimate) else count

    def _read_sizes(self) -> list[int | None]:
        """The samples of each shard, where a ``sizes.json`` beside it tells."""
        told: dict[str, dict[str, Any]] = {}
        sizes: list[int | None] = []
        for path in self._paths:
            folder = files.parent(path)
            if folder not in told:
                told[folder] = _read_json(files.join(folder, "sizes.json"))
            size = told[folder].get(path.replace("\\", "/").rsplit("/", 1)[-1])
            size = size.get("samples") if isinstance(size, dict) else size
            is_told = type(size) is int and 0 <= size < _MAX_SAMPLES
            sizes.append(size if is_told else None)
        return sizes

    def _damage(
        self, path: str, stat: files.FileStat, arrays: Arrays, told: int | None
    ) -> tuple[list[str], int]:
        """What is wrong with a shard, and how many samples that costs, at least."""
        samples = len(arrays["key_ends"])
        damage: list[str] = [f"{path}: {what}." for what in unpack_json(arrays["damage"])]
        lost = 0
        if damage:
            lost_bytes = int(arrays["lost"])
            bytes_a_sample = max(1.0, (stat.size - lost_bytes) / max(1, samples))
            lost = max(len(damage), round(lost_bytes / bytes_a_sample))
        if told is not None and told > samples:
            damage.append(f"{path}: holds {samples} samples; sizes.json says {told}.")
            lost += told - samples
        if told is not None and told < samples and self._count == "sizes":
            damage.append(
                f"{path}: holds {samples} samples; sizes.json says {told}, and no more are read."
            )
        return damage, lost

    def _wanted_captions(self) -> list[_Wanted]:
        if self.source.caption is None:
            labels = isinstance(self.source, LabelSource)
            return [_Wanted((_CLASS,) if labels else reader.CAPTION_EXTENSIONS)]
        if self.source.caption == reader.NONE:
            return []
        return [
            _Wanted(("json",), name.removeprefix("json."))
            if name.startswith("json.")
            else _Wanted((name.lower(),))
            for name in reader.split_names(self.source.caption)
        ]

    def _look_for_captions(self, path: str, arrays: Arrays) -> None:
        """Where shards hold no text members and none are named, the usual fields of their
        ``.json`` are tried, then ``.cls``. Class numbers without names are refused."""
        names: list[str] = unpack_json(arrays["extensions"])

        def first_of(name: str) -> bytes:
            first = int(np.flatnonzero(arrays["extension"] == names.index(name))[0])
            offset, size = int(arrays["offset"][first]), int(arrays["size"][first])
            return files.read(path, offset, min(size, reader.MAX_CAPTION_BYTES))

        if isinstance(self.source, LabelSource):
            return
        usual = self.source.caption is None and self._captions[0].extensions != ("json",)
        if usual and not any(name in names for name in reader.CAPTION_EXTENSIONS):
            record = _parse_fields(first_of("json")) if "json" in names else {}
            for name in reader.CAPTION_COLUMNS:
                if reader.caption_texts([reader.field_of(record, name)], self.source):
                    self._captions = [_Wanted(("json",), name)]
                    return
            if _CLASS in names:
                self._captions = [_Wanted((_CLASS,))]
        of_class = any(_CLASS in wanted.extensions for wanted in self._captions)
        if of_class and _CLASS in names and self._class_names is None:
            content = first_of(_CLASS).strip()
            if content.isdigit():
                raise DataError(
                    f"{path}: its .cls members hold numbers ({int(content)}, for one); set "
                    "class_names of the source to a file with the name of a class in each line."
                )

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

        image, fields = place(self._image), place(["json"])
        captions = [place(list(wanted.extensions)) for wanted in self._captions]
        if self._count == "sizes":
            dropped = Counter()  # every sample has a row
        else:
            if self.source.image != reader.NONE:
                drop(image[0] < 0, "no image")
                drop(image[1] > reader.MAX_IMAGE_BYTES, "image file too large")
            if captions:
                drop(np.all([offset < 0 for offset, _, _ in captions], axis=0), "no caption")
        rows = np.flatnonzero(usable)
        return _Shard(
            image=_taken(image, rows),
            captions=[_taken(caption, rows) for caption in captions],
            fields=_taken(fields, rows),
            keys=(arrays["keys"], arrays["key_ends"]),
            names=rows,
        )

    def _place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and which of its rows it is."""
        if not 0 <= row % TURN < len(self):
            raise IndexError(row)
        number = int(np.searchsorted(self._ends, row % TURN, side="right"))
        return number, row % TURN - int(self._ends[number]) + self.shard_sizes[number]

    def _find(self, row: int) -> tuple[int, int, _Shard]:
        """The shard of a row, and which of its samples it is.

        Raises:
            SampleError: the shard has fewer than it should have.
        """
        number, i = self._place(row)
        shard = self._shard(number)
        samples = len(shard.names)
        if self.access.estimated and samples:
            i = (i + row // TURN * self.shard_sizes[number]) % samples
        if i >= samples:
            raise SampleError(reader.LOST)
        return number, i, shard

    def _shard(self, number: int) -> _Shard:
        with self._lock:
            if number in self._shards:
                self._shards.move_to_end(number)
                return self._shards[number]
            path, known = self._paths[number], self._stats[number]
            stat = files.stat(path)
            if known is not None and stat != known:
                raise DataError(f"{path}: changed since it was indexed; start again.")
            arrays = open_index(path, stat, _index_tar, kind=_KIND)
            self._stats[number] = stat
            if known is None:
                told = self.shard_sizes[number] if self._count == "sizes" else None
                for damage in self._damage(path, stat, arrays, told)[0]:
                    warnings.warn(damage, stacklevel=2)
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
            raise SampleError(reader.CUT)
        if size == whole and checksum >= 0 and zlib.crc32(data) != checksum:
            raise SampleError(reader.CHANGED)
        return data

    def _texts(self, path: str, shard: _Shard, i: int, fields: dict[str, Any]) -> list[str]:
        values: list[Any] = []
        for wanted, places in zip(self._captions, shard.captions, strict=True):
            if wanted.field:
                values.append(reader.field_of(fields, wanted.field))
                continue
            raw = self._member(path, places, i, reader.MAX_CAPTION_BYTES)
            if wanted.extensions == (_CLASS,):
                values.append(self._of_class(raw))
            elif wanted.extensions == (_ARRAY,) and isinstance(self.source, LabelSource):
                values.append(_of_array(raw))
            else:
                values.append(raw)
        return reader.caption_texts(values, self.source)

    def _of_class(self, raw: bytes | None) -> list[str]:
        """The captions that a ``.cls`` member stands for: it holds a class's number or name."""
        name = reader.decode_text(raw or b"").strip()
        if self._class_names is not None and name.isdecimal():
            number = int(name) if len(name) < 10 else -1
            name = self._class_names[number] if 0 <= number < len(self._class_names) else ""
        return reader.class_captions(name, self.source) if name.strip() else []

    def _describe_members(self, seen: Counter[str]) -> Understood:
        images = [f".{name}" for name in self._image if name in seen]
        captions = [
            f"json.{wanted.field}"
            if wanted.field
            else " ".join(f".{name}" for name in wanted.extensions if name in seen)
            for wanted in self._captions
        ]
        known = {*self._image, "json", *(n for w in self._captions for n in w.extensions)}
        others = {name for name in (*reader.CAPTION_EXTENSIONS, _CLASS) if name in seen}
        return Understood(
            images=f"members {' '.join(images)}" if self.source.image != reader.NONE else "",
            captions=f"members {', '.join(captions)}" if captions else "",
            also=sorted(f".{name}" for name in others - known),
            classes=any(wanted.extensions == (_CLASS,) for wanted in self._captions),
        )

    def _nothing_usable(self, seen: Counter[str]) -> str:
        found = ", ".join(f".{name} ({count})" for name, count in seen.most_common(8))
        why = ", ".join(f"{count} with {reason}" for reason, count in self.dropped.items())
        damage = f" {self.damage[0]}" if self.damage else ""
        captions = [name for wanted in self._captions for name in wanted.extensions] or ["none"]
        return (
            f"{self.source.path}: no usable sample in {len(self._paths)} shard(s)"
            f"{': ' + why if why else ''}. Members found: {found or 'none'}; looked for images in "
            f".{', .'.join(self._image)} and captions in .{', .'.join(captions)}; "
            f"set image and caption of the source.{damage}"
        )


def write_index(path: Path) -> None:
    """Indexes a shard that was just written, so that nobody has to read it for that."""
    open_index(str(path), files.stat(str(path)), _index_tar, kind=_KIND)


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


def _of_array(raw: bytes | None) -> list[str]:
    """The numbers of the classes that a NumPy array has a 1 for."""
    try:
        array = np.load(io.BytesIO(raw or b""), allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise SampleError("label that is no array") from None
    return [str(number) for number in np.flatnonzero(array)]


def _read_json(path: str) -> dict[str, Any]:
    try:
        sizes = json.loads(files.read_all(path, 2**28))
    except (OSError, ValueError, DataError):
        return {}
    return sizes if isinstance(sizes, dict) else {}


def _parse_fields(raw: bytes | None) -> dict[str, Any]:
    try:
        fields = json.loads(reader.decode_text(raw)) if raw else None
    except (ValueError, RecursionError):  # broken JSON costs the sample its fields, not its life
        return {}
    return fields if isinstance(fields, dict) else {}

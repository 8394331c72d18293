"""WebDataset shards → pairs: random access into tars by an index; nothing is ever extracted.

Which members are one sample, :mod:`clipkit.data.tar_samples` tells; member names are opaque keys,
never paths. Only the members that hold the image, the captions, the class and ``.json`` fields are
read.

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

import json
import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.image_ids import NO_IMAGE, ImageFiles, is_content, number_images
from clipkit.data.index import (
    Arrays,
    has_index_beside,
    indexed,
    open_index,
    unpack_json,
    unpack_text,
)
from clipkit.data.packed_fields import PackedFields
from clipkit.data.reader import TURN, Access, SampleError
from clipkit.data.tar_captions import CLASS, TarCaptions
from clipkit.data.tar_index import (
    FIELDS,
    KIND,
    Places,
    count_extensions,
    count_further,
    counts_of,
    find_members,
    index_tar,
    keys_to_first_dot,
    lacks_field,
)
from clipkit.data.tar_samples import UNCLEAR
from clipkit.data.understood import Understood
from clipkit.errors import DataError
from clipkit.types import Pair

_KEPT_ROWS = 4_000_000  # of shard indexes in memory, some 80 bytes each
_MAX_SAMPLES = 2**40  # of a shard, for sizes.json; more is nonsense
_KINDS = 20  # of members that are not read, named one by one


@dataclass(slots=True)
class _Shard:
    """The samples of one shard that have a row."""

    image: Places
    captions: list[Places]  # by what is wanted
    fields: Places
    label: Places
    keys: tuple[NDArray[np.uint8], NDArray[np.int64]]
    names: NDArray[np.intp]  # (S,) the sample's number among all, usable or not


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
        self._captions = TarCaptions(source)
        named = [*self._image, *(e for w in self._captions.wanted for e in w.extensions)]
        self._to_first_dot = any("." in extension for extension in named)
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
        dropped: Counter[str] = Counter()
        seen = self._open_shards(now, dropped, told, progress=progress)
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
            raise DataError(self._nothing_usable(seen.members))
        self.understood = self._describe(seen)
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
        captions, packed = self._texts(path, shard, i)
        label = self._member(path, shard.label, i, reader.MAX_CAPTION_BYTES)
        class_number, class_name = self._captions.class_of(label, packed)
        return Pair(
            key=key,
            image=image,
            caption=captions[0] if captions else None,
            origin=f"{path}, sample {key}",
            metadata=packed.metadata,
            others=captions[1:],
            class_number=class_number,
            class_name=class_name,
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

    def texts(self) -> Iterator[list[str]]:
        of_fields = self._captions.of_fields
        for number, path in enumerate(self._paths):
            shard = self._shard(number)
            for i in range(self.shard_sizes[number]):
                if i >= len(shard.names):
                    yield []
                    continue
                try:
                    texts, _ = self._texts(path, shard, i, with_fields=of_fields)
                except SampleError:
                    texts = []
                yield texts

    def captions(self) -> Iterator[str]:
        return reader.first_of(self.texts())

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

    def _open_shards(
        self, paths: list[str], dropped: Counter[str], told: list[int | None], *, progress: bool
    ) -> _Seen:
        """Indexes shards, keeps their samples, and tells what there is."""
        seen = _Seen(Counter(), Counter(), Counter())
        looked = False
        loaded = indexed(paths, index_tar, kind=KIND, progress=progress)
        for number, (path, stat, whole) in enumerate(loaded):
            arrays = self._own_keys(whole)
            self._stats[number] = stat
            if not looked and len(arrays["key_ends"]):
                self._captions.look(path, arrays, find_members(arrays, self._image))
                looked = True
            seen.members += count_extensions(arrays)
            seen.unused.update(unpack_json(arrays["unused"]))
            further = {"further image of a sample": count_further(arrays, self._image)}
            further["further caption of a sample"] = sum(
                count_further(arrays, each.extensions) for each in self._captions.wanted
            )
            seen.unused.update({what: count for what, count in further.items() if count > 0})
            seen.counts.update(counts_of(arrays))
            seen.several += int(arrays["parts"]) > 1
            shard = self._select(arrays, dropped)
            self._keep(number, shard)
            self.shard_sizes.append(len(shard.names))
            damage, lost = self._damage(path, stat, arrays, told[number])
            self.damage += damage
            self.lost += lost
        return seen

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
        samples = len(arrays["key_ends"]) + int(arrays["unclear"])
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

    def _select(self, arrays: Arrays, dropped: Counter[str]) -> _Shard:
        """Keeps the samples that have what is wanted, and counts the others."""
        usable = np.ones(len(arrays["key_ends"]), dtype=bool)

        def drop(bad: NDArray[np.bool_], reason: str) -> None:
            if count := int((bad & usable).sum()):
                dropped[reason] += count
            usable[bad] = False

        image, fields = find_members(arrays, self._image), find_members(arrays, [FIELDS])
        captions = [find_members(arrays, wanted.extensions) for wanted in self._captions.wanted]
        if self._count != "sizes":  # there, every sample has a row
            if self.source.image != reader.NONE:
                drop(image.offset < 0, "no image")
                drop(image.size > reader.MAX_IMAGE_BYTES, "image file too large")
            if captions and not (isinstance(self.source, LabelSource) and self.source.unlabelled):
                drop(np.all([each.offset < 0 for each in captions], axis=0), "no caption")
                empty = [
                    (each.size == 0) | lacks_field(arrays, wanted.field)
                    if wanted.field
                    else each.size == 0
                    for wanted, each in zip(self._captions.wanted, captions, strict=True)
                ]
                drop(np.all(empty, axis=0), "empty caption")
            if unclear := int(arrays["unclear"]):
                dropped[UNCLEAR] += unclear
        rows = np.flatnonzero(usable)
        return _Shard(
            image=image.take(rows),
            captions=[each.take(rows) for each in captions],
            fields=fields.take(rows),
            label=find_members(arrays, [CLASS]).take(rows),
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
            arrays = self._own_keys(open_index(path, stat, index_tar, kind=KIND))
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

    def _own_keys(self, arrays: Arrays) -> Arrays:
        return keys_to_first_dot(arrays) if self._to_first_dot else arrays

    def _member(self, path: str, places: Places, i: int, limit: int) -> bytes | None:
        offset, whole, checksum = (int(of_all[i]) for of_all in places)
        if offset < 0:
            return None
        size = min(whole, limit)
        data = files.read(path, offset, size)
        if len(data) < size:
            raise SampleError(reader.CUT)
        if size == whole and checksum >= 0 and not is_content(data, checksum):
            raise SampleError(reader.CHANGED)
        return data

    def _texts(
        self, path: str, shard: _Shard, i: int, *, with_fields: bool = True
    ) -> tuple[list[str], PackedFields]:
        """The captions of a sample, and its fields; without these, its first caption."""

        def member(places: Places) -> bytes | None:
            if places is shard.fields and not with_fields:
                return None
            return self._member(path, places, i, reader.MAX_CAPTION_BYTES)

        return self._captions.read(member, shard.captions, shard.fields)

    def _describe(self, seen: _Seen) -> Understood:
        wanted = self._captions.wanted
        images = [f".{name}" for name in self._image if name in seen.members]
        captions = [
            f"json.{each.field}"
            if each.field
            else " ".join(f".{name}" for name in each.extensions if name in seen.members)
            for each in wanted
        ]
        read = {*self._image, FIELDS, *(name for each in wanted for name in each.extensions)}
        also = {n for n in (*reader.CAPTION_EXTENSIONS, CLASS) if n in seen.members} - read
        unused = seen.unused.copy()
        if self._count == "index":  # else most of the shards are not seen yet
            others = {n: k for n, k in seen.members.items() if n not in read | also}
            for name, count in sorted(others.items(), key=lambda each: -each[1])[:_KINDS]:
                unused[f"member .{name}"] += count
            if rest := sum(sorted(others.values(), reverse=True)[_KINDS:]):
                unused["member of another extension"] += rest
        return Understood(
            images=f"members {' '.join(images)}" if self.source.image != reader.NONE else "",
            captions=f"members {', '.join(captions)}" if captions else "",
            also=sorted(f".{name}" for name in also),
            classes=self._captions.of_class,
            class_names=self._captions.class_names,
            unused=dict(unused),
            notes=[
                *_notes(seen, 0 if self._to_first_dot else seen.counts["dotted"]),
                *self._captions.notes,
            ],
        )

    def _nothing_usable(self, members: Counter[str]) -> str:
        found = ", ".join(f".{name} ({count})" for name, count in members.most_common(8))
        why = ", ".join(f"{count} with {reason}" for reason, count in self.dropped.items())
        damage = f" {self.damage[0]}" if self.damage else ""
        captions = [n for w in self._captions.wanted for n in w.extensions] or ["none"]
        return (
            f"{self.source.path}: no usable sample in {len(self._paths)} shard(s)"
            f"{': ' + why if why else ''}. Members found: {found or 'none'}; looked for images in "
            f".{', .'.join(self._image)} and captions in .{', .'.join(captions)}; "
            f"set image and caption of the source.{damage}"
        )


@dataclass(slots=True)
class _Seen:
    """Sums over the indexes of some shards.

    Attributes:
        members: by extension.
        unused: members that are of no sample, by kind.
        counts: see :func:`clipkit.data.tar_index.counts_of`.
        several: shards that hold several archives.
    """

    members: Counter[str]
    unused: Counter[str]
    counts: Counter[str]
    several: int = 0


def _notes(seen: _Seen, dotted: int) -> list[str]:
    told = (
        (dotted, "key holds dots and goes up to the last", "keys hold dots and go up to the last"),
        (
            seen.counts["replaced"],
            "member replaced by a later one of its name",
            "members replaced by later ones of their names",
        ),
        (
            seen.counts["again"],
            "sample has the key of an earlier one",
            "samples have the keys of earlier ones",
        ),
        (
            seen.several,
            "tar holds several archives end to end",
            "tars hold several archives end to end",
        ),
    )
    return [f"{count:,} {one if count == 1 else many}" for count, one, many in told if count]


def _read_json(path: str) -> dict[str, Any]:
    try:
        sizes = json.loads(files.read_all(path, 2**28))
    except (OSError, ValueError, DataError):
        return {}
    return sizes if isinstance(sizes, dict) else {}

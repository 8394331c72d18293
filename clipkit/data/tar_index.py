"""A shard's index: its samples, and where the members of each are; kept beside the shard.

The index does not depend on what a run wants of the samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import SourceConfig
from clipkit.data import files, reader
from clipkit.data.index import Advance, Arrays, open_index, pack_json, pack_texts, unpack_json
from clipkit.data.tar import TarListing, list_tar, refuse_compressed
from clipkit.data.tar_samples import Samples, group_members

KIND = "tar 6"
FIELDS = "json"
_FIRST_DOT = "first dot "  # before the names of a second set of arrays


class Places(NamedTuple):
    """Where a member of each of S samples is.

    Attributes:
        offset: (S,) bytes, -1 where there is no such member.
        size: (S,) bytes; 0 of one that is empty or holds white space alone.
        checksum: (S,) ``Checksum``, -1 where it is not known.
    """

    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    checksum: NDArray[np.int64]

    def take(self, samples: NDArray[np.intp]) -> Places:
        """The places of some samples."""
        return Places(self.offset[samples], self.size[samples], self.checksum[samples])


def index_tar(path: str, stat: files.FileStat, advance: Advance) -> Arrays:
    """The arrays of one shard's index.

    Where keys with dots go up to the last dot, the index holds a second set of arrays, in which all
    go up to the first; see :func:`clipkit.data.tar_samples.group_members`.

    Raises:
        DataError: the file cannot be read, or is compressed.
    """
    refuse_compressed(path, files.read(path, 0, 8))
    listing = list_tar(lambda offset, size: files.read(path, offset, size), stat.size, advance)
    samples = group_members(listing)
    texts = {} if files.is_url(path) else _fields_with_text(path, listing, samples)
    unused = listing.passed + samples.unnamed
    arrays = {
        "damage": pack_json(listing.damage),
        "lost": np.array(listing.lost),
        "unused": pack_json(dict(unused)),
        "parts": np.array(listing.parts[-1] + 1 if listing.parts else 0),
        "fields": pack_json(reader.CAPTION_COLUMNS),
        **_arrays_of(samples, listing, texts),
    }
    if samples.dotted:
        first_dot = _arrays_of(group_members(listing, dotted=False), listing, {})
        arrays |= {_FIRST_DOT + name: array for name, array in first_dot.items()}
    return arrays


def write_index(path: Path) -> None:
    """Indexes a shard that was just written, so that nobody has to read it for that."""
    open_index(str(path), files.stat(str(path)), index_tar, kind=KIND)


def keys_to_first_dot(arrays: Arrays) -> Arrays:
    """The index in which keys go up to the first dot, as whoever names ``seg.png`` has them."""
    start = len(_FIRST_DOT)
    second = {name[start:]: a for name, a in arrays.items() if name.startswith(_FIRST_DOT)}
    return arrays | second


def count_extensions(arrays: Arrays) -> Counter[str]:
    """How many members there are of each extension."""
    counts = np.bincount(arrays["extension"]).tolist()
    return Counter(dict(zip(unpack_json(arrays["extensions"]), counts, strict=False)))


def find_members(arrays: Arrays, wanted: Sequence[str]) -> Places:
    """For each sample the first of these members that is there and not empty, or is there."""
    names: list[str] = unpack_json(arrays["extensions"])
    samples = len(arrays["key_ends"])
    offset = np.full(samples, -1, dtype=np.int64)
    size = np.zeros(samples, dtype=np.int64)
    checksum = np.full(samples, -1, dtype=np.int64)
    for name in reversed(wanted):
        if name not in names:
            continue
        of_name = np.flatnonzero(arrays["extension"] == names.index(name))
        sample = arrays["sample"][of_name]
        better = (arrays["size"][of_name] > 0) | (offset[sample] < 0)
        sample, of_name = sample[better], of_name[better]
        offset[sample] = arrays["offset"][of_name]
        size[sample] = arrays["size"][of_name]
        checksum[sample] = arrays["checksum"][of_name]
    return Places(offset, size, checksum)


def count_further(arrays: Arrays, wanted: Sequence[str]) -> int:
    """How many of these members stand in a sample beside another of them."""
    members = sum(count_extensions(arrays)[name] for name in wanted)
    return members - int((find_members(arrays, wanted).offset >= 0).sum())


def lacks_field(arrays: Arrays, name: str) -> NDArray[np.bool_]:
    """(S,) whether the ``.json`` of a sample is known to have no text under one of the usual names
    of captions."""
    usual: list[str] = unpack_json(arrays["fields"])
    lacks = np.zeros(len(arrays["key_ends"]), dtype=bool)
    if name in usual:
        known = arrays["texts"] >= 0
        without = known & (arrays["texts"] >> usual.index(name) & 1 == 0)
        lacks[arrays["sample"][without]] = True
    return lacks


def _fields_with_text(path: str, listing: TarListing, samples: Samples) -> dict[int, int]:
    """Number of each ``.json`` member → a bit for each of the usual names of captions: whether a
    text stands there."""
    found = {}
    source = SourceConfig()
    for members in samples.samples:
        for member in members:
            _, offset, size = listing.members[member.number]
            if member.extension == FIELDS and size <= reader.MAX_CAPTION_BYTES:
                record = reader.json_record(files.read(path, offset, size))
                bits = 0
                for bit, name in enumerate(reader.CAPTION_COLUMNS):
                    value = record.get(name)
                    texts = [] if value is None else reader.caption_texts([value], source)
                    bits |= any(text.strip() for text in texts) << bit
                found[member.number] = bits
    return found


def _arrays_of(samples: Samples, listing: TarListing, texts: dict[int, int]) -> Arrays:
    extensions: dict[str, int] = {}
    rows: list[tuple[int, int, int, int, int, int]] = []
    for sample, members in enumerate(samples.samples):
        for member in members:
            extension = extensions.setdefault(member.extension, len(extensions))
            _, offset, size = listing.members[member.number]
            checksum = listing.checksums[member.number]
            if listing.blank[member.number]:
                size = checksum = 0
            text = texts.get(member.number, -1)
            rows.append((sample, extension, offset, size, checksum, text))
    table = np.array(rows, dtype=np.int64).reshape(-1, 6)
    keys, ends = pack_texts(members[0].key for members in samples.samples)
    return {
        "keys": keys,
        "key_ends": ends,
        "extensions": pack_json(list(extensions)),
        "sample": table[:, 0].astype(np.int32),
        "extension": table[:, 1].astype(np.int32),
        "offset": table[:, 2],
        "size": table[:, 3],
        "checksum": table[:, 4],
        "texts": table[:, 5].astype(np.int32),
        **{name: np.array(getattr(samples, name)) for name in _COUNTS},
    }


_COUNTS = ("unclear", "replaced", "again", "dotted")


def counts_of(arrays: Arrays) -> dict[str, int]:
    """The numbers of :class:`clipkit.data.tar_samples.Samples`."""
    return {name: int(arrays[name]) for name in _COUNTS}

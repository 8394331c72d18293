"""The members of a tar archive, found by their headers alone, and where it is damaged.

Python's ``tarfile`` reads the same formats (ustar, GNU long names, pax); this keeps what
stands before a damage and says where that is, is ten times faster, and cannot extract.

A file may hold several archives end to end, as ``cat a.tar b.tar`` makes it: after the end mark of
one (two to forty blocks of zeros) begins the next. All are read, and each is a part of its own.
A hard link stands for the member of the same part that it names; symbolic links, devices and
sparse files are passed over and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from clipkit.data.image_ids import Checksum
from clipkit.errors import DataError

BLOCK = 512
_ZEROS = bytes(BLOCK)
_READ_AHEAD = 2**20
_MAX_CHECKED = 2**28
_MAGIC, _MAGIC_AT = b"ustar", 257
_MAX_EXTENDED_HEADER = 2**20  # names longer than this are an attack or garbage
_MAX_PADDING = 2 * 20 * BLOCK  # what tar writes after the end mark, and as much again
_MAX_BLANK = 64  # bytes of a text that are looked at
_FILES = (b"0", b"\0", b"7")
_PASSED = {
    b"1": "hard link to a file that is not in the tar",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"6": "named pipe",
}
# How a file begins, what it is then, and what makes a plain tar of it.
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip -c"),
    (b"BZh", "bzip2", "bunzip2 -c"),
    (b"\xfd7zXZ\0", "xz", "unxz -c"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unzstd -c"),
)
_BY_NAME = {"gz": "gunzip -c", "tgz": "gunzip -c", "bz2": "bunzip2 -c", "xz": "unxz -c"}
_ENDING = re.compile(r"(\.tar)?(\.(gz|tgz|bz2|xz|zst))?$", re.I)


@dataclass(slots=True)
class TarListing:
    """Regular files of a tar, and what is wrong with it.

    Attributes:
        members: (name, offset, size) of each; of a hard link, the place of what it names.
        checksums: ``Checksum`` of each one's data; -1 of those above 256 MiB.
        parts: the number of the archive that each is in, where several are laid end to end.
        blank: whether each is empty, or holds white space alone.
        passed: members that are no files, by kind.
        damage: a sentence for each place where it is damaged.
        lost: bytes that were passed over there; how many were cut off, nobody can know.
    """

    members: list[tuple[bytes, int, int]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    parts: list[int] = field(default_factory=list)
    blank: list[bool] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)
    damage: list[str] = field(default_factory=list)
    lost: int = 0

    def drop_last(self) -> None:
        """Forgets the last member."""
        for each in (self.members, self.checksums, self.parts, self.blank):
            del each[-1]


class _Entry(NamedTuple):
    """A header that stands for a member: ``target`` is what a link names, empty for a file;
    ``kind`` the type that the header says."""

    name: bytes
    kind: bytes
    offset: int
    size: int
    target: bytes
    part: int


def refuse_compressed(path: str, start: bytes | None = None) -> None:
    """Refuses a compressed tar: its samples cannot be read in any order.

    Args:
        path: of the file.
        start: its first bytes, six or more; None: its name says whether it is compressed.

    Raises:
        DataError: it is; the command that unpacks it is named.
    """
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    plain = f"{_ENDING.sub('', name)}-plain.tar"
    if start is None:
        if command := _BY_NAME.get(name.rsplit(".", 1)[-1].lower()):
            raise DataError(
                f"{path}: compressed tars cannot be read; unpack it: {command} {name} > {plain}"
            )
        return
    for magic, kind, command in _COMPRESSED:
        if start.startswith(magic):
            raise DataError(
                f"{path}: is compressed with {kind}, whatever its name says, and compressed tars "
                f"cannot be read; unpack it: {command} {name} > {plain}"
            )


class _Damage(Exception):
    def __init__(self, at: int, what: str) -> None:
        super().__init__(what)
        self.at = at


def list_tar(
    read: Callable[[int, int], bytes], size: int, advance: Callable[[int], object]
) -> TarListing:
    """Reads an archive from the start to the end mark. Where it is damaged, it goes on at the
    next valid header, so that what stands before and after the damage is kept.

    Args:
        read: read(offset, size) → bytes, fewer only at the end of the file.
        size: of the file, in bytes.
        advance: called with the bytes newly passed.

    Raises:
        DataError: the file cannot be read at all.
    """
    listing = TarListing()
    blocks = _Blocks(read, size)
    told, start, resumed, part = 0, 0, 0, 0
    places: dict[tuple[int, bytes], int] = {}  # the last member of each name, for links
    while True:
        try:
            for entry in _members(blocks, start, size, part):
                part = entry.part
                _list(listing, entry, blocks, places)
                if blocks.at - told > _READ_AHEAD:
                    advance(blocks.at - told)
                    told = blocks.at
            break
        except _Damage as damage:
            # Bytes that are missing pull the next header into the last member's data.
            inside = listing.members[-1][1] if listing.members else 0
            found = _next_header(read, max(resumed, inside), size, not_at=damage.at)
            if found is None:
                listing.lost += max(0, size - damage.at)
                listing.damage.append(f"{damage}{'; what follows is lost' * (damage.at < size)}")
                break
            listing.lost += max(0, found - damage.at)
            listing.damage.append(f"{damage}; the next member is at byte {found}")
            while listing.members and sum(listing.members[-1][1:]) > found:
                listing.drop_last()
            start, resumed = found, found + 1
    advance(size - told)
    return listing


def _list(
    listing: TarListing, entry: _Entry, blocks: _Blocks, places: dict[tuple[int, bytes], int]
) -> None:
    """Adds a file, or the file that a hard link names; counts what is neither."""
    if entry.kind == b"1":
        number = places.get((entry.part, entry.target.removeprefix(b"./")), -1)
        if 0 <= number < len(listing.members):
            _, offset, size = listing.members[number]
            places[entry.part, entry.name.removeprefix(b"./")] = len(listing.members)
            listing.members.append((entry.name, offset, size))
            listing.checksums.append(listing.checksums[number])
            listing.blank.append(listing.blank[number])
            listing.parts.append(entry.part)
            return
    if entry.kind not in _FILES:
        listing.passed[_PASSED.get(entry.kind, "sparse file")] += 1
        return
    places[entry.part, entry.name.removeprefix(b"./")] = len(listing.members)
    listing.members.append((entry.name, entry.offset, entry.size))
    listing.checksums.append(_checksum(blocks, entry.offset, entry.size))
    listing.blank.append(
        entry.size <= _MAX_BLANK and _is_blank(blocks.get(entry.offset, entry.size))
    )
    listing.parts.append(entry.part)


def _is_blank(data: bytes) -> bool:
    text = data.decode("utf-8", "replace").replace("\0", "").replace("\ufeff", "")
    return not text.strip()


def _checksum(blocks: _Blocks, offset: int, length: int) -> int:
    if length > _MAX_CHECKED:
        return -1
    checksum = Checksum()
    for at in range(offset, offset + length, _READ_AHEAD):
        checksum.add(blocks.get(at, min(_READ_AHEAD, offset + length - at)))
    return checksum.value


def _next_header(
    read: Callable[[int, int], bytes], start: int, size: int, *, not_at: int
) -> int | None:
    """The first valid header at or behind ``start``, at any byte, but for the one known to be
    damaged; None where there is none."""
    at = start
    while at + BLOCK <= size:
        window = read(at, _READ_AHEAD + BLOCK)
        place = window.find(_MAGIC, _MAGIC_AT)
        while place >= 0:
            begin = place - _MAGIC_AT
            header = window[begin : begin + BLOCK]
            if len(header) == BLOCK and at + begin != not_at and _checksum_fits(header):
                return at + begin
            place = window.find(_MAGIC, place + 1)
        at += _READ_AHEAD
    return None


class _Blocks:
    """Reads blocks through a window, so that small members cost one read in many."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size = read, size
        self._window, self._start = b"", 0
        self.at = 0

    def get(self, offset: int, size: int = BLOCK) -> bytes:
        self.at = offset
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._window):
            self._window = self._read(offset, max(size, min(_READ_AHEAD, self._size - offset)))
            self._start, begin = offset, 0
        return self._window[begin : begin + size]


def _next_archive(blocks: _Blocks, at: int, size: int) -> int | None:
    """The first header behind an end mark at ``at``; None where the file ends with it.

    Raises:
        _Damage: something else follows.
    """
    rest = size - at
    following = blocks.get(at, min(rest, _MAX_PADDING + 2 * BLOCK))
    zeros = (len(following) - len(following.lstrip(b"\0"))) // BLOCK * BLOCK
    header = following[zeros : zeros + BLOCK]
    if len(header) == BLOCK and zeros >= 2 * BLOCK and _checksum_fits(header):
        return at + zeros
    if rest > _MAX_PADDING + BLOCK or _MAGIC in following:
        raise _Damage(at, f"its last {rest} bytes are behind an end mark at byte {at}")
    return None


def _members(blocks: _Blocks, at: int, size: int, part: int) -> Iterator[_Entry]:
    long_name: bytes | None = None
    long_target: bytes | None = None
    pax: dict[bytes, bytes] = {}
    while True:
        if at >= size:
            raise _Damage(
                size, f"it ends at byte {size} without an end mark, so it may be cut short"
            )
        header = blocks.get(at)
        if len(header) < BLOCK:
            raise _Damage(at, f"it is cut short inside a header, at byte {size}")
        if header == _ZEROS:
            following = _next_archive(blocks, at, size)
            if following is None:
                return
            at, part = following, part + 1
            continue
        if not _checksum_fits(header):
            raise _Damage(at, f"there is no valid header at byte {at}")
        kind, length, data = header[156:157], _number(header[124:136], at), at + BLOCK
        if kind in b"LKxgX":  # headers that speak of the next member
            if length > _MAX_EXTENDED_HEADER:
                raise _Damage(at, f"the extended header at byte {at} is {length} bytes long")
            content = blocks.get(data, length)
            if len(content) < length:
                raise _Damage(at, f"it is cut short inside a header, at byte {size}")
            if kind == b"L":
                long_name = content.split(b"\0", 1)[0]
            elif kind == b"K":
                long_target = content.split(b"\0", 1)[0]
            elif kind in b"xX":
                pax = _pax_records(content, at)
            at = data + _padded(length)
            continue
        if b"size" in pax:
            length = _decimal(pax[b"size"], at)
        name = pax.get(b"path") or long_name or _short_name(header)
        target = pax.get(b"linkpath") or long_target or header[157:257].split(b"\0", 1)[0]
        sparse = kind == b"S" or any(key.startswith(b"GNU.sparse") for key in pax)
        long_name, long_target, pax = None, None, {}
        if kind == b"S" and header[482]:
            while True:  # the map of a sparse file goes on in blocks of its own
                more = blocks.get(data)
                data += BLOCK
                if len(more) < BLOCK or not more[504]:
                    break
        if kind in b"123456":  # links, devices and folders have no data
            length = 0
        if data + length > size:
            shown = name.decode("utf-8", "replace")[:100]
            raise _Damage(at, f"it is cut short at byte {size}, inside {shown!r}")
        if kind != b"5" and not name.endswith(b"/"):
            yield _Entry(name, b"S" if sparse else kind, data, length, target, part)
        at = data + _padded(length)


def _checksum_fits(header: bytes) -> bool:
    try:
        told = int(header[148:156].split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    if sum(rest) == told:
        return True
    return sum(byte - 256 if byte > 127 else byte for byte in rest) == told  # some old writers


def _number(raw: bytes, at: int) -> int:
    """An octal number, or a large one in base 256."""
    if raw[0] == 0x80:
        return int.from_bytes(raw[1:], "big")
    try:
        value = int(raw.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise _Damage(at, f"the header at byte {at} has no valid size")
    return value


def _decimal(raw: bytes, at: int) -> int:
    if not raw.isdigit() or len(raw) > 18:
        raise _Damage(at, f"the header at byte {at} has no valid size")
    return int(raw)


def _short_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":  # GNU keeps other things in the prefix
        prefix = header[345:500].split(b"\0", 1)[0]
        return prefix + b"/" + name if prefix else name
    return name


def _pax_records(content: bytes, at: int) -> dict[bytes, bytes]:
    """``30 path=some/name\\n``, one after another; the number counts the whole record."""
    records: dict[bytes, bytes] = {}
    while content.strip(b"\0"):
        digits, _, _ = content.partition(b" ")
        length = _decimal(digits, at)
        record, content = content[:length], content[length:]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if length <= len(digits) + 1 or not equals or not record.endswith(b"\n"):
            raise _Damage(at, f"the extended header at byte {at} is garbage")
        records[key] = value
    return records


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK

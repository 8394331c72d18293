"""The members of a tar archive, found by their headers alone, and where it is damaged.

Python's ``tarfile`` reads the same formats (ustar, GNU long names, pax); this keeps what
stands before a damage and says where that is, is ten times faster, and cannot extract.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

BLOCK = 512
_ZEROS = bytes(BLOCK)
_READ_AHEAD = 2**20
_MAX_CHECKED = 2**28
_MAGIC, _MAGIC_AT = b"ustar", 257
_MAX_EXTENDED_HEADER = 2**20  # names longer than this are an attack or garbage
_MAX_PADDING = 2 * 20 * BLOCK  # what tar writes after the end mark, and as much again


@dataclass(slots=True)
class TarListing:
    """Regular files of an archive, and what is wrong with it.

    Attributes:
        members: (name, offset, size) of each.
        checksums: CRC-32 of each one's data; -1 of those above 256 MiB.
        damage: a sentence for each place where it is damaged.
        lost: bytes that were passed over there; how many were cut off, nobody can know.
    """

    members: list[tuple[bytes, int, int]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    lost: int = 0


class _Damage(Exception):
    def __init__(self, at: int, what: str) -> None:
        super().__init__(what)
        self.at = at


def list_tar(
    read: Callable[[int, int], bytes], size: int, advance: Callable[[int], object]
) -> TarListing:
    """Reads an archive from the start to the end mark. Where it is damaged, it goes on at the
    next valid header, so that what stands before and after the damage is kept.

    Links, devices, folders and sparse files are passed over.

    Args:
        read: read(offset, size) → bytes, fewer only at the end of the file.
        size: of the file, in bytes.
        advance: called with the bytes newly passed.

    Raises:
        DataError: the file cannot be read at all.
    """
    listing = TarListing()
    blocks = _Blocks(read, size)
    told, start, resumed = 0, 0, 0
    while True:
        try:
            for name, offset, length in _members(blocks, start, size):
                listing.members.append((name, offset, length))
                listing.checksums.append(_checksum(blocks, offset, length))
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
                del listing.members[-1], listing.checksums[-1]
            start, resumed = found, found + 1
    advance(size - told)
    return listing


def _checksum(blocks: _Blocks, offset: int, length: int) -> int:
    if length > _MAX_CHECKED:
        return -1
    checksum = 0
    for at in range(offset, offset + length, _READ_AHEAD):
        part = blocks.get(at, min(_READ_AHEAD, offset + length - at))
        checksum = zlib.crc32(part, checksum)
    return checksum


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


def _members(blocks: _Blocks, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    long_name: bytes | None = None
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
            rest = size - at
            if rest > _MAX_PADDING + BLOCK or _MAGIC in blocks.get(at, rest):
                raise _Damage(at, f"its last {rest} bytes are behind an end mark at byte {at}")
            return
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
            elif kind in b"xX":
                pax = _pax_records(content, at)
            at = data + _padded(length)
            continue
        if b"size" in pax:
            length = _decimal(pax[b"size"], at)
        name = pax.get(b"path") or long_name or _short_name(header)
        sparse = kind == b"S" or any(key.startswith(b"GNU.sparse") for key in pax)
        long_name, pax = None, {}
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
        if kind in (b"0", b"\0", b"7") and not sparse and not name.endswith(b"/"):
            yield name, data, length
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

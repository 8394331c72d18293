"""Members of a tar → samples: which members belong together, and which cannot be told.

A member's name is a key and an extension. As in WebDataset the key ends at the first dot of the
last part of the name (``00/7.seg.png``: key ``00/7``, extension ``seg.png``), and members of one
key are one sample, wherever in the tar they stand. Beyond that:

- **Several archives end to end** (``cat a.tar b.tar``) are read one by one: a key of one has
  nothing to do with the same key of another.
- **A name that comes again** within one archive, as ``tar -r`` writes a corrected caption: the
  last member of that name counts, as it does where tar unpacks.
- **A key that comes again as a whole**, image and all, is another sample of that name.
- **Images first, then captions, with names that come again**: the first image of a key belongs to
  its first caption, the second to the second, where there are as many of each.
- **Anything else** in which a name comes again does not tell what belongs together: these samples
  are left out and counted. In an archive with keys that come again as a whole, this goes for single
  members that come again, too: they may be part of another sample.
- **Keys with dots** (``photo v1.3.jpg``): where a key has no image under a plain extension, and
  names up to the last dot have an image and something beside it, keys go up to the last dot.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from clipkit.data.reader import IMAGE_EXTENSIONS
from clipkit.data.tar import TarListing

_NAME = re.compile(rb"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # key, extension
UNCLEAR = "no telling which members of one name belong together"


class Member(NamedTuple):
    """A member of a tar: ``number`` in the listing, and the two halves of its name."""

    number: int
    key: bytes
    extension: str


@dataclass(slots=True)
class Samples:
    """The samples of a tar, in the order of their first members.

    Attributes:
        samples: the members of each.
        unclear: samples that are left out, since it cannot be told which members are theirs.
        replaced: members that are not read, since one of the same name comes later.
        again: samples whose key an earlier sample of the same archive has.
        dotted: samples whose key goes up to the last dot.
        unnamed: members whose names are no key and extension, by kind.
    """

    samples: list[list[Member]] = field(default_factory=list)
    unclear: int = 0
    replaced: int = 0
    again: int = 0
    dotted: int = 0
    unnamed: Counter[str] = field(default_factory=Counter)


def group_members(listing: TarListing, *, dotted: bool = True) -> Samples:
    """Finds which members are one sample.

    Args:
        listing: of the tar.
        dotted: whether keys may go up to the last dot; see the module.
    """
    found = Samples()
    parts: dict[int, list[Member]] = defaultdict(list)
    for number, ((name, _, _), part) in enumerate(zip(listing.members, listing.parts, strict=True)):
        match = _NAME.fullmatch(name.removeprefix(b"./"))
        if match is None:
            base = name.rsplit(b"/", 1)[-1]
            hidden = base.startswith(b".")
            found.unnamed["hidden file" if hidden else "file without an extension"] += 1
            continue
        extension = match[2].decode("utf-8", "replace").lower()
        parts[part].append(Member(number, match[1], extension))
    for members in parts.values():
        if dotted:
            members = _with_dotted_keys(members, listing, found)
        _group_archive(members, found)
    found.samples.sort(key=lambda members: members[0].number)
    return found


def is_image(extension: str) -> bool:
    """Whether a member of this extension is an image; of ``seg.png`` the last part says so."""
    return extension.rsplit(".", 1)[-1] in IMAGE_EXTENSIONS


def _with_dotted_keys(members: list[Member], listing: TarListing, found: Samples) -> list[Member]:
    """The members of one archive, with keys up to the last dot where that is what makes pairs."""
    by_key: dict[bytes, list[Member]] = defaultdict(list)
    for member in members:
        if "." in member.extension:
            by_key[member.key].append(member)
    if not by_key:
        return members
    with_image = {m.key for m in members if m.extension in IMAGE_EXTENSIONS}
    plain = {m.key for m in members if "." not in m.extension}
    changed: set[bytes] = set()
    for key, of_key in by_key.items():
        if key in with_image:
            continue
        kinds: dict[str, set[bool]] = defaultdict(set)  # whether there is an image, and another
        for member in of_key:
            kinds[member.extension.rpartition(".")[0]].add(is_image(member.extension))
        numbered = key not in plain and any(
            True in of_middle and re.search(r"\d", middle) for middle, of_middle in kinds.items()
        )
        if numbered or any(len(of_middle) == 2 for of_middle in kinds.values()):
            changed.add(key)
    keys: set[bytes] = set()
    renamed = []
    for member in members:
        if "." in member.extension and member.key in changed:
            key = listing.members[member.number][0].removeprefix(b"./").rpartition(b".")[0]
            keys.add(key)
            member = Member(member.number, key, member.extension.rpartition(".")[2])
        renamed.append(member)
    found.dotted += len(keys)
    return renamed


def _group_archive(members: list[Member], found: Samples) -> None:
    by_key: dict[bytes, list[Member]] = defaultdict(list)
    for member in members:
        by_key[member.key].append(member)
    repeated = []
    whole_again = False  # whether keys of this archive name several samples
    for of_key in by_key.values():
        if len({member.extension for member in of_key}) == len(of_key):
            found.samples.append(of_key)
        elif samples := _each_whole(of_key):
            whole_again = whole_again or len(samples[0]) > 1
            found.samples += samples
            found.again += len(samples) - 1
        else:
            repeated.append(of_key)
    for of_key in repeated:
        if not whole_again and _is_corrected(of_key):
            last = {member.extension: member for member in of_key}
            found.samples.append(sorted(last.values(), key=lambda member: member.number))
            found.replaced += len(of_key) - len(last)
        else:
            found.unclear += max(Counter(member.extension for member in of_key).values())


def _each_whole(of_key: list[Member]) -> list[list[Member]]:
    """The samples of a key that comes again as a whole; none where it does not."""
    rounds = _rounds(of_key)
    extensions = [[member.extension for member in each] for each in rounds]
    if not all(any(map(is_image, each)) for each in extensions):
        return _by_extension(of_key)
    # In another order, one round may end with a corrected caption that the next takes along.
    same = all(each == extensions[0] for each in extensions)
    together = all(len(each) > 1 and _adjacent(each) for each in rounds)
    return rounds if same or together else []


def _is_corrected(of_key: list[Member]) -> bool:
    """Whether the members that come again are newer versions of those of one sample."""
    first, *later = _rounds(of_key)
    images = {member.extension for member in of_key if member.extension in IMAGE_EXTENSIONS}
    return (
        len(first) > 1
        and any(is_image(member.extension) for member in first)
        and len(images) < 2
        and all(len(each) == 1 or not any(is_image(m.extension) for m in each) for each in later)
    )


def _rounds(of_key: list[Member]) -> list[list[Member]]:
    """Cuts the members of a key wherever a name comes again."""
    rounds: list[list[Member]] = [[]]
    for member in of_key:
        if any(member.extension == earlier.extension for earlier in rounds[-1]):
            rounds.append([])
        rounds[-1].append(member)
    return rounds


def _by_extension(of_key: list[Member]) -> list[list[Member]]:
    """``jpg jpg txt txt`` → (jpg, txt), (jpg, txt): the members of a key that stand by extension,
    as many of each; none where they do not."""
    order = [member.extension for member in of_key]
    names = list(dict.fromkeys(order))
    count = len(order) // len(names)
    if len(names) < 2 or not any(map(is_image, names)):
        return []
    if order != [name for name in names for _ in range(count)]:
        return []
    return [of_key[number::count] for number in range(count)]


def _adjacent(members: list[Member]) -> bool:
    return members[-1].number - members[0].number == len(members) - 1

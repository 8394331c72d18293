"""Folders of images → the classes they stand for: one rule for training and evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBERED = re.compile(r"(\D*)(\d+)(\D.*)?", re.S)


def plain_name(label: str) -> str:
    """A class name as it is compared: ``Golden_Retriever`` → ``golden retriever``."""
    return label.replace("_", " ").strip().casefold()


def match_folders(
    folders: Iterable[str], classes: Sequence[Sequence[str]]
) -> tuple[dict[str, int], str] | None:
    """The class of each folder, and by which rule in words; None where no rule fits.

    Folders are by their names, where all of these are in the list. Folders that are numbered are by
    their number: folder k is class k where the list has so many, else the k-th from 1 on, else
    they stand in the order of their numbers where there are as many folders as classes. All
    others stand in the order of the alphabet, where there are as many.

    Args:
        folders: their names.
        classes: the names of each class.
    """
    ordered = sorted(set(folders))
    by_name: dict[str, int] = {}
    for number, names in enumerate(classes):
        for name in names:
            by_name.setdefault(plain_name(name), number)
    exact = {names[0]: number for number, names in enumerate(classes) if names}
    if all(folder in exact or plain_name(folder) in by_name for folder in ordered):
        found = {f: exact[f] if f in exact else by_name[plain_name(f)] for f in ordered}
        return found, "class folders by their names"
    numbers = _numbers(ordered)
    if numbers is not None:
        low, high = min(numbers), max(numbers)
        if high < len(classes):
            found = dict(zip(ordered, numbers, strict=True))
            return found, f"folder {ordered[numbers.index(low)]} is class {low}, counted from 0"
        if low >= 1 and high == len(classes):
            found = {f: number - 1 for f, number in zip(ordered, numbers, strict=True)}
            return found, "folders are numbered from 1: the first is the first class"
        ordered = [folder for _, folder in sorted(zip(numbers, ordered, strict=True))]
    if len(ordered) != len(classes):
        return None
    rule = "their numbers" if numbers is not None else "the alphabet"
    found = {folder: number for number, folder in enumerate(ordered)}
    return found, f"class folders in the order of {rule}: {ordered[0]} is the first class"


def are_numbers(folders: Iterable[str]) -> bool:
    """Whether all folders are called by numbers alone, which say nothing about an image."""
    return all(folder.isdecimal() for folder in folders)


def _numbers(folders: Sequence[str]) -> list[int] | None:
    """The different numbers of ``7``, ``class_7`` or ``007.Cat``; None where not all have one, or
    what stands before it differs."""
    matches = [_NUMBERED.fullmatch(folder) for folder in folders]
    found = [match for match in matches if match is not None]
    if len(found) < len(folders) or len({match[1] for match in found}) > 1:
        return None
    numbers = [int(match[2]) for match in found]
    return numbers if len(set(numbers)) == len(numbers) else None

"""Where the images lie that a table names, if not where the table does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice

from clipkit.data import files

_MOST = 1000  # folders that are looked into
_ABOUT = re.compile(
    r"(\w*[_-])?(annotation|caption|label|text|metadata|meta|split|table|json)s?", re.I
)


def find_image_root(table: str, names: Sequence[str]) -> str | None:
    """The folder from which image names in a table start.

    This is the table's folder, where one of them is there; else the first folder in which half
    of them are: down to two levels below the table's, or, for tables in a folder such as
    ``annotations``, below the one above it. Last they are looked for by their file names alone.
    None where they are in none, and of remote tables.

    Args:
        table: its path.
        names: some of the names in it.
    """
    if files.is_url(table) or not names or any(map(files.is_url, names)):
        return None
    here = os.path.dirname(os.path.abspath(table))
    named = [name.replace("\\", "/") for name in names]
    if any(os.path.isfile(os.path.join(here, name)) for name in named):
        return here
    # Any other folder above may hold another data set, with images of the same names.
    starts = [here, os.path.dirname(here)] if _ABOUT.fullmatch(os.path.basename(here)) else [here]
    for wanted in (named, [name.rsplit("/", 1)[-1] for name in named]):
        for folder in islice(_below(starts), _MOST):
            if 2 * sum(os.path.isfile(os.path.join(folder, n)) for n in wanted) >= len(wanted):
                return folder
    return None


def find_other_root(root: str, names: Sequence[str]) -> str | None:
    """A folder beside ``root`` that has half of these names, too, so that another may be meant."""
    for folder in _folders(os.path.dirname(root)):
        there = sum(os.path.isfile(os.path.join(folder, name)) for name in names)
        if folder != root and 2 * there >= max(1, len(names)):
            return folder
    return None


def _below(starts: Sequence[str]) -> Iterator[str]:
    """The folders, then those inside them, then those inside these."""
    level = list(starts)
    for _ in range(3):
        yield from level
        level = [inner for folder in level for inner in _folders(folder)]


def _folders(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(e.path for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return []

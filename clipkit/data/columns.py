"""The columns of a table → those that hold the images and the captions."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import reader
from clipkit.data.understood import Understood
from clipkit.errors import DataError

# The first values of a column, as many as tell what is in it.
First = Callable[[str], Sequence[Any]]

# A column of one of these names holds captions, whatever they look like; one of the other usual
# names may hold the number of an article, and is looked at.
_PLAIN = ("caption", "captions", "text", "txt")
_NUMBERED = re.compile(r"(captions?|text)[_ -]?(\d+)")
_SPOKEN = re.compile(r"\w\s+\w")  # several words
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_WORDS = re.compile(r"\S\s+\S|[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff]{2}")


def choose_columns(
    source: SourceConfig, columns: list[str], where: str, first: First | None = None
) -> tuple[str | None, list[str]]:
    """The image column and those of the captions: as given, or by their usual names.

    Of several columns with usual names of captions the first in ``CAPTION_COLUMNS`` is taken,
    but one of numbers only where there is no other, and ``title`` or ``description`` and what
    follows only where its values are of several words, or no other's are. Where no column is called
    ``caption``, ``captions``, ``text`` or ``txt``, all numbered ones (``caption_0``, ``caption_1``)
    are taken.

    Args:
        source: ``image`` and ``caption`` name columns, or fields inside one.
        columns: all there are.
        where: what to call the table in a message.
        first: gives the first values of a column.

    Raises:
        DataError: there is none; the columns there are are named. Or the captions are objects;
            their fields are named.
    """
    image = _choose("image", source.image, list(reader.IMAGE_COLUMNS), columns, where)
    if isinstance(source, LabelSource):
        what, usual = "label", list(reader.LABEL_COLUMNS)
    else:
        what, usual = "caption", list(reader.CAPTION_COLUMNS)
        if first is not None:
            usual = _by_what_they_say(usual, columns, first)
    named: list[str | None] = [source.caption]
    if source.caption is None and what == "caption":
        named = [*_numbered(columns)] or [None]
    if source.caption and source.caption not in columns:  # a column's name may hold a comma
        named = [*reader.split_names(source.caption)] or [source.caption]
    chosen = [_choose(what, name, usual, columns, where, first) for name in named]
    captions = [name for name in chosen if name is not None]
    if first is not None:
        for name in captions:
            _refuse_objects(name, columns, first, f"{where}: ", what)
    return image, captions


def columns_understood(
    columns: list[str],
    image: str | None,
    captions: list[str],
    *,
    classes: bool = False,
    notes: Sequence[str] = (),
) -> Understood:
    """Says which columns are read, and which others could be the captions."""
    read = {image, *captions, *(name.split(".")[0] for name in captions)}
    usual = [n for n in columns if _is_like_captions(n) and n not in read]
    of = "columns" if len(captions) > 1 else "column"
    return Understood(
        images=f"column {image}" if image else "",
        captions=f"{of} {', '.join(captions)}" if captions else "",
        also=usual if captions else (),
        classes=classes,
        notes=notes,
    )


def _is_like_captions(name: str) -> bool:
    name = name.lower().strip()
    return name in reader.CAPTION_COLUMNS or _NUMBERED.fullmatch(name) is not None


def _numbered(columns: list[str]) -> list[str]:
    """The columns ``caption_0``, ``caption_1``, … by number; none where one is called ``caption``
    or the like."""
    if any(name.lower().strip() in _PLAIN for name in columns):
        return []
    found = [(m, name) for name in columns if (m := _NUMBERED.fullmatch(name.lower().strip()))]
    first = min((match[1] for match, _ in found), default="")
    found = [(match, name) for match, name in found if match[1] == first]
    return [name for _, name in sorted(found, key=lambda each: int(each[0][2]))]


def text_fields(value: Any, path: str = "") -> list[str]:
    """The paths of fields that hold a text of several words."""
    if isinstance(value, str):
        return [path] if path and _SPOKEN.search(value) else []
    found: list[str] = []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += text_fields(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        spoken = all(
            isinstance(item, dict) and ("from" in item or "role" in item) for item in value
        )
        for number, item in enumerate(value[:4] if spoken else value[:1]):
            is_asked = spoken and str(item.get("from", item.get("role"))) in ("human", "user")
            if not is_asked:
                found += text_fields(item, f"{path}.{number}" if spoken else path)
    return found


def is_number(text: str) -> bool:
    """Whether a text is a number and nothing else."""
    return _NUMBER.fullmatch(text) is not None


def _choose(
    what: str,
    given: str | None,
    usual: list[str],
    columns: list[str],
    where: str,
    first: First | None = None,
) -> str | None:
    if given == reader.NONE:
        return None
    if given is not None:
        if given in columns or given.split(".")[0] in columns:
            return given
        problem = f"no column {given!r}"
    else:
        by_lower = {name.lower().strip(): name for name in reversed(columns)}
        for name in usual:
            if name in by_lower:
                return by_lower[name]
        problem = f"none of its columns looks like the {what}"
    there = reader.name_some(columns) or "none"
    ways = _inner_texts(columns, first) if what == "caption" and first is not None else []
    or_none = " (or to none)" if what == "caption" else ""
    to = f" to {' or '.join(ways[:4])}" if ways else ""
    raise DataError(
        f"{where}: {problem}; its columns are {there}. Set {what} of the source{to}{or_none}."
    )


def _inner_texts(columns: list[str], first: First) -> list[str]:
    """The fields inside columns of objects or lists that hold texts of several words."""
    found: dict[str, None] = {}
    for name in columns:
        for value in first(name)[:20]:
            if isinstance(value, dict | list):
                found |= dict.fromkeys(text_fields(value, name))
    return list(found)


def _by_what_they_say(usual: list[str], columns: list[str], first: First) -> list[str]:
    """The usual names in the order in which they are tried, by what is in their columns."""
    by_lower = {name.lower().strip(): name for name in reversed(columns)}
    there = [name for name in usual if name in by_lower]
    if len(there) < 2:
        return usual
    rank: dict[str, int] = {}
    for name in there:
        texts = [t for value in first(by_lower[name]) for t in reader.all_texts(value) if t.strip()]
        if texts and all(map(is_number, texts)):
            rank[name] = 2
        elif name in _PLAIN or sum(_WORDS.search(t) is not None for t in texts) * 2 > len(texts):
            rank[name] = 0
        else:
            rank[name] = 1
    return sorted(there, key=lambda name: rank[name])


def _refuse_objects(name: str, columns: list[str], first: First, where: str, what: str) -> None:
    """Refuses a column of objects, and a field that no object has; the fields there are are named.

    Raises:
        DataError: as said.
    """
    values = first(name)
    parent = name
    problem = f"column {name} holds objects and no texts"
    if "." in name and name not in columns and all(value is None for value in values):
        parent, _, last = name.rpartition(".")
        values = first(parent)
        problem = f"column {parent} has no field {last!r}"
    if fields := _fields(values):
        told = reader.name_some([f"{parent}.{field}" for field in fields])
        raise DataError(f"{where}{problem}; set {what} of the source to one of its fields: {told}.")


def _fields(values: Sequence[Any]) -> list[str]:
    """The fields of values that are objects, or lists of them; none where a value is a text."""
    fields: dict[str, None] = {}
    for value in values:
        items = value if isinstance(value, list | tuple) else [value]
        for item in items:
            if isinstance(item, dict):
                fields |= dict.fromkeys(map(str, item))
            elif item is not None:
                return []
    return list(fields)

"""A file of labels, or labels between commas → classes in words, and how they were read."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipkit.config.schema import SourceConfig
from clipkit.config.yaml_text import parse_yaml
from clipkit.data import files
from clipkit.errors import ConfigError, DataError

Classes = list[str] | dict[str, list[str]]

_EXTENSIONS = ("txt", "csv", "tsv", "json", "yaml", "yml", "names", "labels")
_LARGEST = 2**24  # bytes
# Headers and keys under which the names of classes stand, the likeliest first.
_NAMES = ("name", "names", "class_name", "class_names", "label", "labels", "class", "classes")
_NUMBERS = ("id", "index", "idx", "number", "class_id", "label_id", "class_index")
_LISTS = ("names", "id2label", "class_names", "classes", "labels", "categories")
_NUMBERED = re.compile(r"(\d+)(\s*[,;:\t.)]\s*|\s+)(\S.*)")
_NUMBER = re.compile(r"\d{1,6}")
_WORDNET = re.compile(r"[nvar]\d{8}")
_ID = re.compile(r"\d+|[nvar]\d{8}")
_SYNSET = re.compile(r"([nvar]\d{8})[,\s]\s*(\S.*)")


@dataclass(frozen=True, slots=True)
class LabelFile:
    """Classes as a file names them.

    Attributes:
        classes: the names in the order of the file; or from each label to its names, where the
            file has both.
        notes: how it was read, where that is not a name a line in UTF-8; a sentence each without a
            full stop.
    """

    classes: Classes
    notes: list[str]

    def labels(self) -> Classes:
        """The classes as they are shown: by their names, where the file has numbers or WordNet
        ids for them."""
        if isinstance(self.classes, dict) and all(map(_ID.fullmatch, self.classes)):
            firsts = unique_labels([names[0] for names in self.classes.values()])
            return dict(zip(firsts, self.classes.values(), strict=True))
        return self.classes

    def by_label(self) -> dict[str, list[str]]:
        """Label → names; a name without a label is its own."""
        if isinstance(self.classes, dict):
            return self.classes
        return {name: [name] for name in self.classes}

    def by_number(self) -> list[str]:
        """The name of each class by its number: by its label, where all of these are numbers, and
        empty where there is none; else in the order of the file."""
        classes = self.by_label()
        firsts = [names[0] for names in classes.values()]
        if not isinstance(self.classes, dict) or not all(map(_NUMBER.fullmatch, classes)):
            return firsts
        numbers = [int(label) for label in classes]
        by_number = dict(zip(numbers, firsts, strict=True))
        return [by_number.get(number, "") for number in range(max(numbers) + 1)]


def unique_labels(names: Sequence[str]) -> dict[str, str]:
    """Label → name, in order: the name itself, and with its number where it was there before, as
    in ImageNet, which has two pairs of classes with one name."""
    labels: dict[str, str] = {}
    for number, name in enumerate(names):
        labels[f"{name} ({number})" if name in labels else name] = name
    return labels


def read_labels(given: str) -> LabelFile:
    """Reads ``--labels``: a file, or labels between commas, in quotes where they hold a comma.

    Raises:
        ConfigError: a quote does not close; the file holds no labels.
        DataError: it looks like a file, and there is none.
    """
    extension = given.rsplit(".", 1)[-1].lower() if "." in given else ""
    is_path = "://" in given or (extension in _EXTENSIONS and ", " not in given)
    has_folder = "," not in given and ("/" in given or "\\" in given)
    if is_path or has_folder or os.path.isfile(given):
        return read_label_file(given)
    try:
        rows = list(csv.reader([given], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ConfigError(
            f"--labels: {given}: {error}; quote a label that has a comma: '\"salt, pepper\",mug'"
        ) from None
    return LabelFile([label.strip() for row in rows for label in row if label.strip()], [])


def read_class_names(source: SourceConfig) -> LabelFile | None:
    """The file that ``class_names`` of a source names; None where it names none.

    Raises:
        ConfigError: it holds no names, or not one a line.
        DataError: it cannot be read.
    """
    if source.class_names is None:
        return None
    return read_label_file(source.class_names, key="class_names", numbered=True)


def read_label_file(path: str, *, key: str = "--labels", numbered: bool = False) -> LabelFile:
    """Reads a name a line, or what CSV, TSV, JSON or YAML say of labels and names.

    Two classes may have one name, as ImageNet's do: the second gets another label.

    Args:
        path: the file, or a URL.
        key: what names it, for messages.
        numbered: classes are numbered by their lines, so that none may be empty.

    Raises:
        ConfigError: it holds no labels, or not one a line; file and line are named.
        DataError: it cannot be read.
    """
    text, notes = _read_text(path, key)
    extension = path.rsplit(".", 1)[-1].lower()
    classes: Classes
    if extension in ("json", "yaml", "yml"):
        classes = _of_tree(_parse(text, path, extension), path, notes)
    elif extension in ("csv", "tsv"):
        classes = _of_rows(_read_rows(text, path, extension), path, notes)
    else:
        classes = _of_lines(re.split(r"\r\n|\r|\n", text), path, notes, numbered)
    if isinstance(classes, list):
        unique = unique_labels(classes)
        twice = [name for name, count in Counter(classes).items() if count > 1]
        if twice:
            notes.append(f"named twice, so that they tie: {_cut(', '.join(twice))}")
        classes = {label: [name] for label, name in unique.items()} if twice else classes
    if not classes:
        raise ConfigError(f"{path}: it holds no labels; give a name a line")
    return LabelFile(classes, [f"{path}: {note}" for note in notes])


def _read_text(path: str, key: str) -> tuple[str, list[str]]:
    if not files.is_url(path) and files.kind(path) == "folder":
        raise ConfigError(f"{path}: a folder; name a file with a label a line")
    try:
        raw = files.read_all(path, _LARGEST)
    except OSError as error:
        hint = "; labels themselves stand between commas" if key == "--labels" else ""
        raise DataError(f"{path}: {key} cannot be read ({error.strerror}){hint}.") from error
    if len(raw) > _LARGEST:
        raise ConfigError(f"{path}: larger than {_LARGEST:,} bytes; name a file of labels")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", "replace"), ["read as UTF-16"]
    if b"\0" in raw:
        raise ConfigError(f"{path}: it is no text; name a file with a label a line")
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace"), ["read as cp1252, since it is not UTF-8"]


def _of_lines(lines: Sequence[str], path: str, notes: list[str], numbered: bool) -> Classes:
    """Names, a line each; numbers or WordNet ids before them are understood."""
    lines = "\n".join(line.strip() for line in lines).rstrip("\n").split("\n")
    empty = [number for number, line in enumerate(lines, 1) if not line]
    if empty and numbered and any(lines):
        raise ConfigError(
            f"{path}, line {empty[0]}: is empty, and classes are numbered by their lines; put a "
            "name there, or take the line out"
        )
    if empty and any(lines):
        notes.append(f"left out {len(empty):,} empty line{'s' * (len(empty) > 1)}")
    names = [_unquoted(line) for line in lines if line]
    if names and all(found := [_SYNSET.fullmatch(name) for name in names]):
        notes.append("each line is a WordNet id and its names")
        return _keyed([(m[1], m[2].split(", ")) for m in found if m is not None], path)
    found = [_NUMBERED.fullmatch(name) for name in names]
    if len(names) > 1 and all(found):
        matches = [match for match in found if match is not None]
        first, separators = int(matches[0][1]), {match[2].strip() for match in matches}
        in_order = [int(m[1]) for m in matches] == list(range(first, first + len(matches)))
        # "1 apple, 2 apples" are names that begin with a number; lists rarely count so from 0.
        if (
            in_order
            and len(separators) == 1
            and (first == 0 or (first == 1 and "" not in separators))
        ):
            return _numbered([(m[1], m[3]) for m in matches], path, notes)
        if len(separators) == 1 and separators <= {",", ";"}:
            return _numbered([(m[1], m[3]) for m in matches], path, notes)
        notes.append(f"names begin with numbers ({names[0]!r}), which are read as part of them")
    return names


def _unquoted(name: str) -> str:
    """``"salt, pepper"`` → salt, pepper."""
    quoted = len(name) > 2 and name[0] == name[-1] == '"' and '"' not in name[1:-1]
    return name[1:-1].strip() if quoted else name


def _numbered(pairs: Sequence[tuple[str, str]], path: str, notes: list[str]) -> Classes:
    """(number, name) pairs → names in order where they count from 0, else number → name."""
    notes.append("each name has its number")
    keyed = _keyed([(str(int(number)), [name]) for number, name in pairs], path)
    ordered = sorted(keyed, key=int)
    if ordered == [str(number) for number in range(len(ordered))]:
        return [keyed[number][0] for number in ordered]
    return {number: keyed[number] for number in ordered}


def _keyed(pairs: Sequence[tuple[str, list[str]]], path: str) -> dict[str, list[str]]:
    keyed = dict(pairs)
    if len(keyed) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ConfigError(f"{path}: the label {twice!r} stands there twice; leave one out")
    return keyed


def _read_rows(text: str, path: str, extension: str) -> list[list[str]]:
    """The rows of a CSV or TSV that are not empty, stripped."""
    lines = re.split(r"\r\n|\r|\n", text)
    first = next((line for line in lines if line.strip()), "")
    delimiter = max(",;|\t", key=first.count) if extension == "csv" else "\t"
    try:
        rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path}: {error}; look for a quote that does not close") from None
    rows = [[cell.strip() for cell in row] for row in rows if any(map(str.strip, row))]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise ConfigError(
                f"{path}, row {number}: has {len(row)} fields, and the first row has "
                f"{len(rows[0])}; put a label with a {delimiter!r} in quotes"
            )
    return rows


def _of_rows(rows: list[list[str]], path: str, notes: list[str]) -> Classes:
    if not rows:
        return []
    header = [cell.lower() for cell in rows[0]]
    named = [name for name in _NAMES if name in header]
    if named and all(each in (*_NAMES, *_NUMBERS) or len(header) > 2 for each in header):
        rows = rows[1:]
        column = header.index(named[0])
        numbers = [i for i, name in enumerate(header) if name in _NUMBERS]
        labels = [header.index(name) for name in named[1:]]
        keys = (numbers or labels)[:1]
        notes.append(f"names are in the column {named[0]}")
    else:
        column, keys = len(rows[0]) - 1, [0] * (len(rows[0]) == 2)
        if len(rows[0]) > 2:
            raise ConfigError(
                f"{path}: {len(rows[0])} columns and none is called name or label; name the one "
                "of the labels so in its first row"
            )
    if not keys:
        return [row[column] for row in rows]
    pairs = [(row[keys[0]], row[column]) for row in rows]
    if all(name.isdecimal() for _, name in pairs):
        pairs = [(name, key) for key, name in pairs]
    if all(key.isdecimal() for key, _ in pairs):
        return _numbered(pairs, path, notes)
    return _keyed([(key, [name]) for key, name in pairs], path)


def _parse(text: str, path: str, extension: str) -> Any:
    if extension != "json":
        return parse_yaml(text, where=path)
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _once(pairs, path))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not JSON ({error})") from None


def _once(pairs: list[tuple[str, Any]], path: str) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ConfigError(f"{path}: the key {twice!r} stands there twice; leave one out")
    return tree


def _of_tree(tree: Any, path: str, notes: list[str]) -> Classes:
    """A list of names, or a mapping of labels to names, of names to numbers or of numbers to
    names; or the one inside a file that says more, such as a model's ``id2label``."""
    if isinstance(tree, Mapping):
        inside = [key for key in _LISTS if isinstance(tree.get(key), list | dict)]
        others = not all(isinstance(_first(value), str) for value in tree.values())
        if inside and (others or len(tree) == 1):
            notes.append(f"names are those of the key {inside[0]}")
            return _of_tree(tree[inside[0]], path, notes)
        values = list(tree.values())
        if values and all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            return _numbered([(str(v), _text(k, path)) for k, v in tree.items()], path, notes)
        keyed = _keyed([(_text(k, path), _texts(v, path)) for k, v in tree.items()], path)
        if all(key.isdecimal() for key in keyed) and all(len(each) == 1 for each in keyed.values()):
            return _numbered([(key, each[0]) for key, each in keyed.items()], path, notes)
        with_id = (len(each) > 1 and _WORDNET.fullmatch(each[0]) for each in keyed.values())
        if all(map(_NUMBER.fullmatch, keyed)) and all(with_id):
            # imagenet_class_index.json: {"0": ["n01440764", "great_white_shark"], …}
            notes.append("each class has its number, a WordNet id and its names")
            ordered = [keyed[key] for key in sorted(keyed, key=int)]
            named = [(i, [name.replace("_", " ") for name in each]) for i, *each in ordered]
            return _keyed(named, path)
        return keyed
    if not isinstance(tree, list):
        raise ConfigError(f"{path}: holds {_cut(repr(tree), 40)}; give a list of names")
    if tree and all(isinstance(each, Mapping) for each in tree):
        key = next((k for k in _NAMES if all(k in each for each in tree)), None)
        number = next((k for k in _NUMBERS if all(k in each for each in tree)), None)
        if key is None:
            raise ConfigError(f"{path}: a list of mappings without a key name; add it")
        if number is None:
            return [_text(each[key], path) for each in tree]
        pairs = [(_text(each[number], path), _text(each[key], path)) for each in tree]
        return _numbered(pairs, path, notes)
    return [_text(each, path) for each in tree]


def _first(value: Any) -> Any:
    """The first of a list's items; anything else itself."""
    return value[0] if isinstance(value, list) and value else value


def _texts(value: Any, path: str) -> list[str]:
    return (
        [_text(each, path) for each in value] if isinstance(value, list) else [_text(value, path)]
    )


def _text(value: Any, path: str) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        raise ConfigError(f"{path}: {_cut(repr(value), 40)} is no text; put it in quotes")
    return str(value).strip()


def _cut(text: str, width: int = 60) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"

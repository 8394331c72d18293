"""Caption files beside the images: ``cat.txt``, ``cat.caption`` or ``cat.json`` for ``cat.jpg``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clipkit.config.schema import SourceConfig
from clipkit.data import files, reader
from clipkit.data.columns import text_fields
from clipkit.data.layouts.found import Captions
from clipkit.data.layouts.tree import ImageTree, extension, same_name, stem
from clipkit.errors import DataError

JSON = "json"
_PROBED = 16  # files that tell what they hold
_DIGIT, _LETTER = re.compile(r"\d"), re.compile(r"[^\W\d_]")
_Files = dict[str, list[tuple[str, str]]]  # image → (caption file, JSON field) each


def find_sidecars(tree: ImageTree, source: SourceConfig) -> tuple[list[Captions], list[str]]:
    """The captions in files beside images, and what looks like such files and is not read.

    Text files have one of ``CAPTION_EXTENSIONS`` in any case, or are JSON with one of the usual
    fields of captions. A source's ``caption`` names extensions and ``json.FIELD``, as in tars.

    Args:
        tree: the folder.
        source: asks for the captions.
    """
    others = _beside(tree)
    if source.caption is not None:
        named = _named(tree, others, reader.split_names(source.caption))
        return ([named] if named else []), []
    found, suspects = [], []
    texts = _texts(tree, others, source) or _texts_elsewhere(tree, source)
    if texts is not None:
        found.append(texts)
    records, suspect = _records(tree, others)
    found += [records] if records else []
    suspects += [suspect] if suspect else []
    return found, suspects


def read_sidecar(folder: str, name: str, field: str) -> tuple[list[Any], dict[str, Any]]:
    """Reads a caption file: values to make captions of, and the record where it is JSON.

    Raises:
        DataError: it vanished.
        SampleError: it cannot be read.
    """
    path = files.join(folder, name)
    try:
        raw = files.read_all(path, reader.MAX_CAPTION_BYTES)
    except FileNotFoundError:
        raise DataError(f"{path}: it vanished; start again.") from None
    except OSError:
        raise reader.SampleError("unreadable caption file") from None
    if not field:
        return [reader.decode_text(raw)], {}
    record = reader.json_record(raw)
    return [reader.field_of(record, field)], record


def files_beside(images: Sequence[str]) -> list[str]:
    """The caption files beside images that are named one by one."""
    usual = (*reader.CAPTION_EXTENSIONS, JSON)
    found: dict[str, None] = {}
    listed: dict[str, set[str]] = {}
    for image in images:
        if files.is_url(image):
            name = f"{stem(image)}.txt"
            found |= {name: None} if files.kind(name) == "file" else {}
            continue
        folder = os.path.dirname(image)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder or "."))
        base = os.path.basename(image)
        for start in (base, stem(base)):
            for name in (f"{start}.{end}" for each in usual for end in (each, each.upper())):
                if name in listed[folder]:
                    found[os.path.join(folder, name)] = None
    return list(found)


def _beside(tree: ImageTree) -> dict[str, dict[str, str]]:
    """Image → the other files of its name, by extension: ``a.txt`` and ``a.jpg.txt``."""
    images = set(tree.images)
    by_stem: dict[str, dict[str, str]] = {}
    for name in tree.names:
        if name not in images:
            by_stem.setdefault(same_name(stem(name)), {}).setdefault(extension(name), name)
    nothing: dict[str, str] = {}
    keys = ((n, same_name(n)) for n in tree.images)
    found = ((n, by_stem.get(k, nothing) | by_stem.get(stem(k), nothing)) for n, k in keys)
    return {image: there for image, there in found if there}


def _named(
    tree: ImageTree, others: dict[str, dict[str, str]], wanted: Sequence[str]
) -> Captions | None:
    parts = [(JSON, name.removeprefix("json.")) if name.startswith("json.") else (name.lower(), "")
             for name in wanted]  # fmt: skip
    found: _Files = {}
    for image, there in others.items():
        if mine := [(there[each], field) for each, field in parts if each in there]:
            found[image] = mine
    return _captions(f"{', '.join(wanted)} beside each image", found) if found else None


def _texts(
    tree: ImageTree, others: dict[str, dict[str, str]], source: SourceConfig
) -> Captions | None:
    found: _Files = {}
    for image, there in others.items():
        name = next((there[each] for each in reader.CAPTION_EXTENSIONS if each in there), None)
        if name is not None:
            found[image] = [(name, "")]
    return _if_captions(tree, found, source, "NAME.{} beside each image")


def _texts_elsewhere(tree: ImageTree, source: SourceConfig) -> Captions | None:
    """``captions/cat.txt`` for ``images/cat.jpg``, where most images have one and no two of a
    kind have the same name."""
    names = [n for n in tree.names if extension(n) in reader.CAPTION_EXTENSIONS]
    bases = Counter(stem(name).rsplit("/", 1)[-1] for name in names)
    by_base = {stem(name).rsplit("/", 1)[-1]: name for name in names}
    images = Counter(stem(name).rsplit("/", 1)[-1] for name in tree.images)
    found: _Files = {}
    for image in tree.images:
        base = stem(image).rsplit("/", 1)[-1]
        if bases[base] == images[base] == 1:
            found[image] = [(by_base[base], "")]
    if 2 * len(found) <= len(tree.images):
        return None
    return _if_captions(tree, found, source, "NAME.{} in a folder of their own")


def _if_captions(
    tree: ImageTree, found: _Files, source: SourceConfig, told: str
) -> Captions | None:
    """Text files as captions, unless they hold nothing but numbers, such as boxes of objects."""
    if not found:
        return None
    probed = [_probe(tree, each[0][0]) for each in list(found.values())[:_PROBED]]
    texts = [reader.decode_text(raw) for raw in probed if raw.strip()]
    if any(map(_DIGIT.search, texts)) and not any(map(_LETTER.search, texts)):
        return None
    notes = reader.texts_notes(texts, source, "caption files")
    ends = Counter(extension(each[0][0]) for each in found.values())
    return _captions(told.format(" or .".join(ends)), found, notes)


def _records(
    tree: ImageTree, others: dict[str, dict[str, str]]
) -> tuple[Captions | None, str | None]:
    found: _Files = {image: [(there[JSON], "")] for image, there in others.items() if JSON in there}
    if not found:
        return None, None
    first = [
        reader.json_record(_probe(tree, each[0][0])) for each in list(found.values())[:_PROBED]
    ]
    usual = [
        name
        for name in reader.CAPTION_COLUMNS
        if any(reader.all_texts(reader.field_of(record, name)) for record in first)
    ]
    if usual:
        named = {image: [(each[0][0], usual[0])] for image, each in found.items()}
        told = f"field {usual[0]} of NAME.json beside each image"
        return _captions(told, named, also=usual[1:]), None
    fields = dict.fromkeys(key for record in first for key in text_fields(record))
    if not fields:
        return None, None
    named_fields = " or ".join(f"caption: json.{key}" for key in list(fields)[:4])
    return None, f"{len(found):,} NAME.json beside images ({named_fields} reads them)"


def _captions(
    told: str, found: _Files, notes: Sequence[str] = (), also: Sequence[str] = ()
) -> Captions:
    used = frozenset(name for each in found.values() for name, _ in each)
    return Captions(told, files=found, used=used, notes=notes, also=also)


def _probe(tree: ImageTree, name: str) -> bytes:
    try:
        return files.read_all(files.join(tree.folder, name), reader.MAX_CAPTION_BYTES)
    except OSError:
        return b""

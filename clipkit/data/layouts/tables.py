"""Tables among the images, whatever they are called → captions by image.

``captions.txt`` of Flickr8k, ``results.csv`` of Flickr30k, ``metadata.csv`` of ``datasets``, COCO's
annotations, tables of one's own: a table belongs to the images that its names are found among.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.columns import choose_columns, text_fields
from clipkit.data.layouts.annotations import has_annotations, read_annotations
from clipkit.data.layouts.found import Captions
from clipkit.data.layouts.tree import ImageTree, extension, parent
from clipkit.data.records import EXTENSIONS, Record, open_records
from clipkit.data.table import TableReader
from clipkit.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_TEXTS = (*reader.CAPTION_EXTENSIONS, "token")
_SAMPLE = 200  # records that tell what is in a column
_SOME = 0.1  # of a column's values, that name images of the folder
_MOST = 100  # tables that are looked at
_NUMBER = re.compile(r"#\d+$")  # of Flickr8k's captions: ``name.jpg#0``
_CELLS = re.compile(r"[,;\t|]")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|valid|validation|val|dev|test)(?![a-z])", re.I)
_LIKE_CAPTIONS = re.compile(r"caption|description|annotation|sentence|prompt", re.I)


@dataclass(frozen=True, slots=True)
class _Table:
    """A table that names images of the folder; ``missing`` are those that are not there."""

    name: str
    columns: str
    texts: dict[str, list[str]]
    records: dict[str, dict[str, Any]]
    missing: int
    also: Sequence[str] = ()
    notes: Sequence[str] = ()


class _NotRead(Exception):
    """A file is no table of these images; its text says why, if it looks like one."""


def find_tables(
    tree: ImageTree, source: SourceConfig, names: Iterable[str]
) -> tuple[Captions | None, list[str]]:
    """The captions in tables, and which files look like such a table and are not read.

    Tables of different images are read together. Of those that name the same images the one
    that names most is read, ``metadata`` first.

    Args:
        tree: the folder.
        source: its ``image`` and ``caption`` name columns.
        names: the files that may be tables, relative to the folder or absolute.

    Raises:
        DataError: a table with captions of these images is broken, or they are of several splits.
    """
    suspects: list[str] = []
    tables: list[_Table] = []
    for name in sorted(filter(may_be_table, names), key=_rank)[:_MOST]:
        try:
            tables.append(_read(tree, source, name))
        except _NotRead as why:
            if str(why):
                suspects.append(str(why))
    tables.sort(key=lambda table: -len(table.texts))  # stable, so that ``metadata`` comes first
    chosen: list[_Table] = []
    taken: set[str] = set()
    for table in tables:
        if taken.isdisjoint(table.texts):
            chosen.append(table)
            taken.update(table.texts)
        elif others := [each for each in chosen if _are_rivals(each, table)]:
            raise DataError(
                f"{tree.folder}: {others[0].name} and {table.name} both have captions of the same "
                f"images; name one of them, e.g. {files.join(tree.folder, others[0].name)}"
            )
    if not chosen:
        return None, suspects
    _refuse_splits(tree.folder, chosen)
    return _joined(chosen, [table for table in tables if table not in chosen]), suspects


def may_be_table(name: str) -> bool:
    """Whether a file's name is that of a table or of a text that may be one."""
    base = name.rsplit("/", 1)[-1]
    return extension(name) in (*EXTENSIONS, *_TEXTS) or base in METADATA


def is_caption_table(path: str) -> bool:
    """Whether a text file is a table of image names and captions, and no text a line."""
    try:
        table = open_records(path)
        sample = _sample(path, table.records(files.stat(path).size, lambda _: None))
    except (DataError, ValueError):
        return False
    columns = [c for c in table.columns if _share(sample, c, _is_image_name) >= 0.9]
    return len(table.columns) > 1 and len(columns) > 0


def _read(tree: ImageTree, source: SourceConfig, name: str) -> _Table:
    path = files.join(tree.folder, name)
    if extension(name) == "json" and has_annotations(path):
        return _read_annotations(tree, source, name, path)
    if extension(name) == "parquet":
        return _read_parquet(tree, source, name, path)
    try:
        table = open_records(path)
        sample = _sample(path, table.records(files.stat(path).size, lambda _: None))
        image, captions = _choose(tree, source, name, table.columns, sample)
    except (DataError, ValueError) as error:
        base = name.rsplit("/", 1)[-1]
        if base in METADATA:
            raise
        alike = _LIKE_CAPTIONS.search(base) is not None or _names_images(tree, name)
        raise _NotRead(f"{name} ({str(error).rstrip('.')})" if alike else "") from error
    # Its own folder: where the images are is found out among those that are listed.
    own = replace(source, path=path, image=image, caption=",".join(captions))
    own.image_root = files.parent(path)
    rows = TableReader(own, [path], progress=False, look=False)
    columns = f"column{'s' * (len(captions) > 1)} {', '.join(captions)}"
    told = rows.understood
    return _located(tree, source, name, columns, rows.records(), told.also, told.notes)


def _names_images(tree: ImageTree, name: str) -> bool:
    """Whether the first lines of a CSV or TSV that cannot be read name images of the folder."""
    if extension(name) not in ("csv", "tsv"):
        return False
    start = reader.decode_text(files.read(files.join(tree.folder, name), 0, 4096))
    cells = [cell.strip(" \"'") for line in start.split("\n")[1:20] for cell in _CELLS.split(line)]
    known = sum(tree.knows(cell) or tree.knows_stem(cell) for cell in cells if cell)
    return known > 2


def _read_annotations(tree: ImageTree, source: SourceConfig, name: str, path: str) -> _Table:
    found = read_annotations(path, source.split)
    nothing: Record = {}
    rows = ((image, texts, nothing) for image, texts in found.captions.items())
    return _located(tree, source, name, found.told, rows, (), found.notes)


def _read_parquet(tree: ImageTree, source: SourceConfig, name: str, path: str) -> _Table:
    import pyarrow.parquet as parquet

    records = parquet.read_table(path).to_pylist()
    columns = list(records[0]) if records else []
    image, captions = _choose(tree, source, name, columns, records[:_SAMPLE])
    rows = (
        (
            str(reader.field_of(record, image) or ""),
            reader.caption_texts([reader.field_of(record, each) for each in captions], source),
            record,
        )
        for record in records
    )
    return _located(tree, source, name, f"column {', '.join(captions)}", rows, (), ())


def _located(
    tree: ImageTree,
    source: SourceConfig,
    name: str,
    columns: str,
    rows: Iterable[tuple[str, list[str], Record]],
    also: Sequence[str],
    notes: Sequence[str],
) -> _Table:
    """A table's rows by the images they name; an image may have a row for each caption."""
    texts: dict[str, list[str]] = {}
    records: dict[str, Record] = {}
    for image, captions, record in rows:
        if any(text.strip() for text in captions):
            texts.setdefault(image, []).extend(captions)
            records.setdefault(image, record)
    base = "" if files.is_url(name) or name.startswith("/") else parent(name)
    images, how = tree.locate(texts, base)
    if not images:
        first = next(iter(texts), "")
        raise _NotRead(f"{name} (the images it names are not here; the first is {first!r})")
    found: dict[str, list[str]] = {}
    for named, image in images.items():
        found.setdefault(image, []).extend(texts[named])
    if source.captions == "join":
        found = {image: [", ".join(each)] for image, each in found.items()}
    elif source.captions == "first":
        found = {image: each[:1] for image, each in found.items()}
    return _Table(
        name,
        columns,
        found,
        {image: records[named] for named, image in images.items() if records[named]},
        missing=len(texts) - len(images),
        also=also,
        notes=[*notes, *([how] if how else [])],
    )


def _choose(
    tree: ImageTree, source: SourceConfig, name: str, columns: list[str], sample: list[Record]
) -> tuple[str, list[str]]:
    """The columns of the images, by what is in them, and of the captions.

    Raises:
        _NotRead: it names no image of the folder, or it is not clear what the captions are.
    """
    image = source.image or _image_column(tree, columns, sample)
    if image is None:
        raise _NotRead(_why_no_image(tree, source, name, columns))

    def first(column: str) -> list[Any]:
        return [reader.field_of(record, column) for record in sample]

    try:
        _, captions = choose_columns(replace(source, image=image), columns, name, first)
        return image, captions
    except DataError as error:
        if source.caption is not None:
            raise
        if isinstance(source, LabelSource):
            raise _NotRead from None
        worded = [c for c in columns if c != image and _share(sample, c, _has_words) >= 0.5]
        if len(worded) == 1:
            return image, worded
        paths = dict.fromkeys(p for record in sample[:20] for p in text_fields(record))
        ways = [f"caption: {path}" for path in paths if path != image]
        if not ways:
            raise _NotRead from None
        what = f"{name} ({' or '.join(ways[:4])} with data.train={files.join(tree.folder, name)}"
        raise _NotRead(f"{what} reads it)") from error


def _image_column(tree: ImageTree, columns: list[str], sample: list[Record]) -> str | None:
    for knows in (tree.knows, tree.knows_stem):
        found = [c for c in columns if _share(sample, c, knows) >= _SOME]
        usual = [c for c in ("file_name", *reader.IMAGE_COLUMNS) if c in map(str.lower, found)]
        if usual:
            return next(c for c in found if c.lower() == usual[0])
        if found:
            return found[0]
    return None


def _why_no_image(tree: ImageTree, source: SourceConfig, name: str, columns: list[str]) -> str:
    """Empty where a file does not look like a table of images and captions at all."""
    base = name.rsplit("/", 1)[-1]
    try:
        image, captions = choose_columns(source, columns, name)
    except DataError:
        if base in METADATA:
            shown = reader.name_some(columns) or "none"
            return f"{name} (no column names images that are here; its columns are {shown})"
        return name if _LIKE_CAPTIONS.search(base) else ""
    return f"{name} (the images of its column {image} are not here)" if captions else ""


def _sample(path: str, records: Iterator[tuple[int, int, Record]]) -> list[Record]:
    return [record for _, _, record in islice(records, _SAMPLE)]


def _share(sample: list[Record], column: str, holds: Callable[[str], bool]) -> float:
    """The share of a column's values that are texts of a kind."""
    values = [value for record in sample if (value := reader.field_of(record, column))]
    known = (isinstance(v, str) and holds(_NUMBER.sub("", v)) for v in values)
    return sum(known) / max(1, len(values))


def _has_words(text: str) -> bool:
    return re.search(r"[^\W\d]\s+\w", text) is not None


def _is_image_name(text: str) -> bool:
    return extension(text) in reader.IMAGE_EXTENSIONS


def _rank(name: str) -> tuple[bool, int, int, str]:
    return name.rsplit("/", 1)[-1] not in METADATA, name.count("/"), len(name), name


def _refuse_splits(folder: str, tables: Sequence[_Table]) -> None:
    """Training on a test set's captions by accident would make every evaluation worthless."""
    splits: dict[str, str] = {}
    for table in tables:
        if match := _SPLIT.search(table.name.rsplit("/", 1)[-1].replace("_", " ")):
            splits.setdefault(match[1].lower(), table.name)
    if len(splits) > 1:
        paths = " or ".join(files.join(folder, name) for name in splits.values())
        raise DataError(f"{folder}: holds captions of several splits; name one of them: {paths}")


def _are_rivals(first: _Table, second: _Table) -> bool:
    """Whether it is not clear which of two tables is meant."""
    if first.name.rsplit("/", 1)[-1] in METADATA or len(first.texts) != len(second.texts):
        return False
    return first.texts != second.texts


def _joined(chosen: Sequence[_Table], others: Sequence[_Table]) -> Captions:
    names = reader.name_some([table.name.rsplit("/", 1)[-1] for table in chosen], 3)
    columns = list(dict.fromkeys(table.columns for table in chosen))
    notes = dict.fromkeys(note for table in chosen for note in table.notes)
    notes |= dict.fromkeys(
        f"{table.name} names the same images and is not read" for table in others
    )
    missing = sum(table.missing for table in chosen)
    return Captions(
        f"{', '.join(columns)} of {names}",
        texts={image: texts for table in chosen for image, texts in table.texts.items()},
        records={image: each for table in chosen for image, each in table.records.items()},
        used=frozenset(table.name for table in chosen),
        also=list(dict.fromkeys(each for table in chosen for each in table.also)),
        notes=list(notes),
        dropped=Counter({"missing image file": missing} if missing else {}),
    )

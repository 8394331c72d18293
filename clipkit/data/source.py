"""A source as a config names it → its reader, chosen by what is there."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter

from clipkit.config.schema import FilterConfig, SourceConfig
from clipkit.data import files, lines
from clipkit.data.arrow import is_saved_dataset, open_dataset
from clipkit.data.filters import keep_wanted
from clipkit.data.folder import FolderReader
from clipkit.data.image_roots import find_image_root
from clipkit.data.layouts.annotations import has_annotations, has_splits, read_annotations
from clipkit.data.layouts.sidecars import files_beside
from clipkit.data.layouts.tables import is_caption_table
from clipkit.data.layouts.tree import extension
from clipkit.data.lines import LineReader
from clipkit.data.magic import content_of, is_parquet
from clipkit.data.parquet import open_parquet
from clipkit.data.reader import IMAGE_EXTENSIONS, NONE, Reader
from clipkit.data.table import EXTENSIONS as TABLE_EXTENSIONS
from clipkit.data.table import TableReader
from clipkit.data.tar import refuse_compressed
from clipkit.data.webdataset import TarReader
from clipkit.errors import DataError

_UNDERSTOOD = (
    "WebDataset tars (.tar), Parquet (.parquet), tables (.csv, .tsv, .jsonl, .json), a folder of "
    "images, a datasets folder or hf://datasets/owner/name, or texts alone, one a line (.txt)"
)
_SPLITS = re.compile(r"(train|training|valid|validation|val|dev|test|held-?out)(?![a-z])", re.I)
# COCO's captions: the file of a split, which leads to its images.
_OF_SPLIT = re.compile(r"captions?_(train|val|test|dev)\w*\.(json|csv|tsv|txt)$", re.I)
_TEXTS = ("token", "text", "caption", "tab")  # that may be tables
_HUB_DATASET = re.compile(r"hf://datasets/[^/]+/[^/*?{\[]+/?")


def open_source(
    source: SourceConfig | str, *, progress: bool = True, estimate: bool = False
) -> Reader:
    """Finds a source's files, makes or reads their indexes, and counts the samples.

    Args:
        source: what to read; a path alone will do.
        progress: show a bar on stderr where there is something to index.
        estimate: totals may be estimates where counting would read all of a remote source, or
            where the source's ``count`` says so. A filter counts.

    Raises:
        DataError: nothing is there, nothing usable is, or it is not clear what is meant; the
            message names the path and says what was looked for.
    """
    source = SourceConfig(path=source) if isinstance(source, str) else source
    if source.filter != FilterConfig():
        whole = _open(source, progress, estimate=False)
        return keep_wanted(whole, source.filter, progress=progress)
    return _open(source, progress, estimate=estimate)


def open_annotated(source: SourceConfig, annotations: str, split: str) -> Reader:
    """The images of a folder with their captions in a JSON of Karpathy or COCO.

    Args:
        source: ``path`` is the folder of the images.
        annotations: the JSON.
        split: of Karpathy's, ``test``, ``val``, ``train`` or ``restval``.

    Raises:
        DataError: a file is missing or of another kind, or the split has no images.
    """
    if files.kind(source.path) != "folder":
        raise DataError(f"{source.path}: no such folder; name the folder of the images")
    read_annotations(annotations, split)  # mistakes in it are told first
    named = dataclasses.replace(source, split=split)
    tables = [os.path.abspath(annotations)]
    return FolderReader(named, source.path, files.walk(source.path), tables=tables)


def _open(source: SourceConfig, progress: bool, *, estimate: bool) -> Reader:
    if not source.path:
        raise DataError("data: a source has no path; set it, e.g. data.train.path=photos/")
    if source.format == "datasets" or (
        source.format == "auto" and _HUB_DATASET.fullmatch(source.path)
    ):
        return open_dataset(source, progress=progress)
    named = files.expand(source.path)
    folders = []
    for path in named:
        what = files.kind(path)
        if what is None:
            where = "" if files.is_url(path) else f" (looked in {os.path.abspath(path)})"
            raise DataError(f"{path}: no such file or folder{where}.")
        if what == "folder":
            folders.append(path)
    if not folders:
        return _open_files(source, named, progress, estimate)
    if len(named) > 1:
        raise DataError(
            f"{source.path}: names {len(named)} files and folders; name files, or one folder."
        )
    return _open_folder(source, named[0], progress, estimate)


def _open_files(source: SourceConfig, paths: list[str], progress: bool, estimate: bool) -> Reader:
    kinds = Counter(_format_of_file(path) for path in paths)
    wanted = source.format if source.format != "auto" else next(iter(kinds))
    if source.format == "auto" and (len(kinds) > 1 or wanted is None):
        raise DataError(f"{source.path}: {_found(paths)}; understood are {_UNDERSTOOD}.")
    if wanted == "webdataset":
        for path in paths:
            refuse_compressed(path)
        return TarReader(source, paths, progress=progress, estimate=estimate)
    if wanted == "parquet":
        return open_parquet(source, paths, progress=progress)
    if wanted == "lines":
        return LineReader(source, paths, progress=progress)
    if wanted == "table":
        if len(paths) == 1 and extension(paths[0]) == "json" and has_annotations(paths[0]):
            return _open_annotations(source, paths[0])
        return TableReader(source, paths, progress=progress)
    if source.caption != NONE:
        paths = paths + files_beside(paths)
    root = files.parent(os.path.commonprefix(paths))  # noqa: RUF071  URLs have no commonpath
    names = [path[len(root) :].lstrip("/\\") if root else path for path in paths]
    return FolderReader(source, root or ".", names)


def _open_folder(source: SourceConfig, folder: str, progress: bool, estimate: bool) -> Reader:
    if not files.is_url(folder) and source.format == "auto" and is_saved_dataset(folder):
        return open_dataset(source, progress=progress)
    names = files.walk(folder)
    if not names:
        raise DataError(f"{folder}: the folder is empty.")
    by_format: dict[str | None, list[str]] = {}
    for name in names:
        by_format.setdefault(_format_of(name), []).append(name)
    # A folder of shards may hold a picture, and one of images a stray shard: what there is most
    # of is meant. One of images may also hold their captions, in any number of tables.
    order = ["webdataset", "parquet", "folder"]
    chosen: str | None = source.format if source.format != "auto" else None
    if chosen is None:
        chosen = max(order, key=lambda candidate: len(by_format.get(candidate, [])))
        chosen = chosen if by_format.get(chosen) else "table"
    usable = by_format.get(chosen, [])
    if not usable:
        raise DataError(f"{folder}: {_found(names)}; understood are {_UNDERSTOOD}.")
    # Of images only the folders' names tell: test_1.jpg and train_1.jpg may be of one set.
    if not any(has_splits(files.join(folder, n)) for n in names if extension(n) == "json"):
        _refuse_several_splits(folder, [n for n in usable if chosen != "folder" or "/" in n], names)
    if chosen == "folder":
        return FolderReader(source, folder, names)
    paths = [files.join(folder, name) for name in usable]
    return _open_files(source, paths, progress, estimate)


def _open_annotations(source: SourceConfig, path: str) -> Reader:
    """Reads a JSON of COCO or Karpathy, whose images lie somewhere near."""
    root = source.image_root
    if root is None:
        images = list(read_annotations(path, source.split).captions)
        root = find_image_root(path, [*images[:3], *images[len(images) // 2 :: len(images)]])
        if root is None:
            raise DataError(
                f"{path}: {images[0]} is not beside it, nor in a folder near it; set image_root of "
                "the source to the folder of the images."
            )
    return FolderReader(source, root, files.walk(root), tables=[os.path.abspath(path)])


def _format_of_file(path: str) -> str | None:
    """The format of a file by its name; of a table or text by its first bytes as well.

    Raises:
        DataError: it is called a table or text, and is something else that is not read.
    """
    by_name = _format_of(path)
    if by_name is None and extension(path) in _TEXTS and is_caption_table(path):
        return "table"
    if by_name not in ("table", "lines") or files.is_url(path) or files.kind(path) != "file":
        return by_name
    start = files.read(path, 0, 512)
    if is_parquet(start):
        return "parquet"
    if found := content_of(start):
        raise DataError(f"{path}: is {found[0]}, whatever its name says; {found[1]}.")
    # captions.txt of Flickr8k: each line has an image and a caption.
    return "table" if by_name == "lines" and is_caption_table(path) else by_name


def _format_of(path: str) -> str | None:
    name = extension(path)
    if name == "tar" or re.search(r"\.(tgz|tar\.(gz|bz2|xz))$", path, re.I):
        return "webdataset"
    if name == "parquet":
        return "parquet"
    if name in TABLE_EXTENSIONS:
        return "table"
    if name == lines.EXTENSION:
        return "lines"
    return "folder" if name in IMAGE_EXTENSIONS else None


def _refuse_several_splits(folder: str, names: list[str], all_names: list[str]) -> None:
    """Training on a folder's test shards by accident would make every evaluation worthless."""
    splits: dict[str, str] = {}
    for name in names:
        first = name.split("/")[0]
        match = _SPLITS.match(first) or _SPLITS.match(_base(name))
        if match:
            splits.setdefault(match[1].lower(), name)
    if len(splits) > 1:
        example, name = min(splits.items(), key=lambda item: not item[0].startswith("train"))
        inside = name.split("/")[0] if "/" in name else f"{example}*.{extension(name)}"
        told = [files.join(folder, n) for n in all_names if _OF_SPLIT.match(_base(n))]
        raise DataError(
            f"{folder}: holds several splits ({', '.join(sorted(splits))}); name one of them, "
            f"e.g. {' or '.join(told[:4]) or files.join(folder, inside)}"
        )


def _found(names: list[str]) -> str:
    counts = Counter(f".{extension(name)}" if extension(name) else "no extension" for name in names)
    shown = ", ".join(f"{count} {name}" for name, count in counts.most_common(5))
    return f"found {len(names)} file(s) ({shown})"


def _base(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]

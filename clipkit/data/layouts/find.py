"""The files of a folder → where the captions of its images are, or why that is not clear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, formats, reader
from clipkit.data.label_file import read_class_names
from clipkit.data.layouts.classes import are_numbers, match_folders
from clipkit.data.layouts.found import Captions
from clipkit.data.layouts.sidecars import find_sidecars
from clipkit.data.layouts.tables import find_tables, may_be_table
from clipkit.data.layouts.tree import ImageTree, extension, parent, stem
from clipkit.errors import DataError

# ``caption: folder`` in a config: the names of folders are the classes.
FOLDER = "folder"
_INDEX = ".clipkit-index.npz"
# Folders of images that are called so are no classes.
_NO_CLASSES = frozenset(
    [
        *("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures"),
        *("pics", "data", "dataset", "jpg", "jpeg", "png", "mask", "masks", "thumbnails", "thumbs"),
        *("train", "training", "val", "valid", "validation", "dev", "test"),
    ]
)


class NoCaptionsError(DataError):
    """A folder has images, and nothing in it looks like captions."""


class NumberedFoldersError(DataError):
    """The folders are the only captions there are, and are called by numbers."""


def find_captions(tree: ImageTree, source: SourceConfig) -> Captions | None:
    """The captions of a folder's images; None where its folders are the classes.

    Of caption files beside the images and of tables those are read that give captions to most
    images. Without any, folders are classes, if there are two or more and nothing looks like
    captions.

    Raises:
        DataError: there are no captions, or it is not clear which are meant; says what is there
            and which key reads it.
    """
    if source.caption == FOLDER:
        return None
    if isinstance(source, LabelSource) and source.caption is None:
        why = _why_no_classes(tree, [])
        if not why:
            return None
        table, _ = find_tables(tree, source, _tables(tree))
        if table is None:
            raise DataError(
                f"{source.path}: {len(tree.images)} images and no classes; looked for a folder for "
                f"each class ({why}). Name the column or field of the classes"
            )
        return table
    found, suspects = find_sidecars(tree, source)
    if found and len(found[0]) == len(tree.images):
        return found[0]
    table, more = find_tables(tree, source, _tables(tree))
    found += [table] if table is not None else []
    if found:
        best = max(found, key=len)  # of equally many the first: files beside the images
        return best if len(found) == 1 else _compared(best, found)
    if source.caption is not None:
        _refuse_caption(tree, source, more)
    suspects += more
    why = _why_no_classes(tree, suspects)
    if why or (source.class_names is None and are_numbers(_folders(tree))):
        error = NumberedFoldersError if not why else DataError if suspects else NoCaptionsError
        raise error(_refusal(tree, source, why, suspects))
    return None


def name_classes(
    tree: ImageTree, source: SourceConfig
) -> tuple[dict[str, str], list[str], list[str]]:
    """The class name of each folder, all classes in order, and how the file of names was read.

    Raises:
        DataError: ``class_names`` and the folders do not match.
    """
    folders = _folders(tree)
    file = read_class_names(source)
    if file is None:
        return {folder: folder for folder in folders}, folders, []
    classes = file.by_label()
    names = [each[0] for each in classes.values()]
    matched = match_folders(folders, [[label, *each] for label, each in classes.items()])
    if matched is None:
        raise DataError(
            f"{source.class_names}: names {len(names)} classes, and there are images in "
            f"{len(folders)} folders of {source.path}."
        )
    numbers, rule = matched
    named = {folder: names[number] for folder, number in numbers.items()}
    return named, names, [*file.notes, rule]


def count_unused(tree: ImageTree, used: frozenset[str]) -> dict[str, int]:
    """Files that are neither images nor read as captions, by kind."""
    counts: Counter[str] = Counter()
    images = set(tree.images)
    stems = _stems(tree)
    for name in tree.names:
        if name in images or name in used or name.endswith(_INDEX):
            continue
        kind = extension(name)
        if package := formats.missing_package(kind):
            counts[f"not read without {package} (.{kind})"] += 1
        elif stem(name) in stems:
            counts[f"beside an image (.{kind})" if kind else "beside an image"] += 1
        elif may_be_table(name):
            counts[f"table or text (.{kind})"] += 1
        else:
            counts[f"not an image file (.{kind})" if kind else "not an image file"] += 1
    return dict(counts)


def _tables(tree: ImageTree) -> list[str]:
    """The files that may be tables: not those beside an image, of which each has its own."""
    stems = _stems(tree)
    return [name for name in tree.names if may_be_table(name) and stem(name) not in stems]


def _stems(tree: ImageTree) -> set[str]:
    """The names of images with and without extension, of those that are not read as well."""
    unread = [n for n in tree.names if formats.missing_package(extension(n))]
    return {each for name in [*tree.images, *unread] for each in (name, stem(name))}


def _folders(tree: ImageTree) -> list[str]:
    """The names of the folders that images are in."""
    return sorted({parent(name).rsplit("/", 1)[-1] for name in tree.images if "/" in name})


def _why_no_classes(tree: ImageTree, suspects: Sequence[str]) -> str:
    """Why the folders are no classes; empty where they are."""
    folders = _folders(tree)
    outside = sum("/" not in name for name in tree.images)
    if not folders:
        return "they are in no folder"
    if outside:
        return f"{outside} of them are in no folder"
    if len(folders) < 2:
        return f"all are in {folders[0]}"
    if odd := [folder for folder in folders if folder.casefold() in _NO_CLASSES]:
        return f"{odd[0]} is no class"
    return "files look like captions" if suspects else ""


def _refuse_caption(tree: ImageTree, source: SourceConfig, tables: Sequence[str]) -> None:
    beside = sorted(
        {extension(n) for n in tree.names if stem(n) in {stem(i) for i in tree.images}}
        - set(reader.IMAGE_EXTENSIONS)
    )
    there = [f"NAME.{each} beside images" for each in beside if each] + list(tables)
    raise DataError(
        f"{source.path}: no caption {source.caption!r} of its {len(tree.images)} images; looked "
        f"for NAME.{source.caption} beside NAME.jpg, json.FIELD and the column of a table; there "
        f"are {', '.join(there) or 'none of these'}."
    )


def _refusal(tree: ImageTree, source: SourceConfig, why: str, suspects: Sequence[str]) -> str:
    start = f"{source.path}: {len(tree.images)} images and no captions"
    folders = _folders(tree)
    if not why:
        lists = [n for n in tree.names if "/" not in n and extension(n) == "txt"]
        hint = f", such as {files.join(tree.folder, lists[0])}" if lists else ""
        return (
            f"{start}: their folders are called by numbers ({', '.join(folders[:3])} …). Set "
            f"class_names of the source to a file with the name of a class in each line{hint}; "
            "or caption to folder where the numbers are meant."
        )
    there = f" What looks like captions: {', '.join(suspects[:5])}." if suspects else ""
    return (
        f"{start}; looked for NAME.txt or NAME.json beside NAME.jpg, a table that names the "
        f"images, and a folder for each class ({why}).{there} Where the names of folders are the "
        "classes, set caption of the source to folder; where no captions are needed, to none."
    )


def _compared(best: Captions, found: Sequence[Captions]) -> Captions:
    """The best of several, which says what else there is."""
    others = [f"{each.told} ({len(each):,} images)" for each in found if each is not best]
    return Captions(
        best.told,
        files=best.files,
        texts=best.texts,
        records=best.records,
        used=best.used,
        also=[*best.also, *others],
        notes=best.notes,
        dropped=best.dropped,
    )

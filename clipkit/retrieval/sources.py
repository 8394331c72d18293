"""What is to be embedded → its reader: pairs, images that have no captions, or texts alone."""

from __future__ import annotations

import dataclasses

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, files, open_source
from clipkit.data.folder import FolderReader, extension
from clipkit.data.lines import EXTENSION as LINES
from clipkit.data.reader import NONE
from clipkit.data.table import EXTENSIONS as TABLE_EXTENSIONS
from clipkit.errors import DataError


def open_wanted(source: SourceConfig, *, images: bool, texts: bool, progress: bool) -> Reader:
    """The source's reader, which is asked for no more than is wanted.

    Args:
        source: what is named; text files have no images, whatever is wanted.
        images: whether images are wanted.
        texts: whether captions are, where there are any.
        progress: show a bar where there is something to index.

    Raises:
        DataError: nothing is there, or its captions cannot be read.
    """
    if not texts:
        source = dataclasses.replace(source, caption=NONE)
    if not images:
        source = dataclasses.replace(source, image=NONE)
    if images and texts and source.image is None and _has_only_texts(source.path):
        source = dataclasses.replace(source, image=NONE)
    try:
        return open_source(source, progress=progress)
    except DataError as error:
        # Perhaps it has images and no captions, and its owner did not say so.
        if source.caption is not None or not images:
            raise
        try:
            alone = open_source(dataclasses.replace(source, caption=NONE), progress=progress)
        except DataError:
            raise error from None
        if _has_only_images(alone):
            return alone
        hint = (
            "Name the captions' field with --caption FIELD, or embed the images alone with "
            "--caption none."
        )
        raise DataError(f"{error} {hint}") from error


def _has_only_images(reader: Reader) -> bool:
    """Whether these are plain image files without a table that may be their captions."""
    path = reader.source.path
    return isinstance(reader, FolderReader) and not (
        files.kind(path) == "folder"
        and any(extension(name) in TABLE_EXTENSIONS for name in files.walk(path))
    )


def _has_only_texts(path: str) -> bool:
    """Whether these are text files, one text a line."""
    return all(extension(name) == LINES for name in files.expand(path))

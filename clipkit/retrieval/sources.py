"""What is to be embedded → its reader: pairs, images that have no captions, or texts alone."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from clipkit.config.schema import SourceConfig
from clipkit.data import Reader, files, open_source
from clipkit.data.folder import FolderReader
from clipkit.data.layouts.find import NoCaptionsError
from clipkit.data.layouts.tables import is_caption_table
from clipkit.data.layouts.tree import extension
from clipkit.data.lines import EXTENSION as LINES
from clipkit.data.lines import LineReader
from clipkit.data.reader import NONE
from clipkit.data.table import TableReader
from clipkit.digest import sha256
from clipkit.errors import ConfigError, DataError


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
    if not texts and source.image is None and source.path and _has_only_texts(source):
        raise DataError(
            f"{source.path}: a text file, one text a line, has no images; embed its texts with "
            "--only texts, or name a source of images"
        )
    if not texts:
        source = dataclasses.replace(source, caption=NONE)
    if not images:
        source = dataclasses.replace(source, image=NONE)
    if images and texts and source.image is None and _has_only_texts(source):
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
        if isinstance(alone, FolderReader) and isinstance(error, NoCaptionsError):
            return alone
        hint = (
            "Name the captions' field with --caption FIELD, or embed the images alone with "
            "--caption none."
        )
        raise DataError(f"{error} {hint}") from error


def texts_sha256(reader: Reader) -> str | None:
    """Of what ``fingerprint``, which is made of names, sizes and numbers, does not see: the content
    of local text files and tables, and of captions that lie beside images in a folder. None of
    other sources, where it would take reading all of them.

    Raises:
        DataError: a file is gone or cannot be read.
    """
    digest = hashlib.sha256()
    if isinstance(reader, FolderReader) and not reader.access.remote:
        for texts in reader.texts():
            for caption in texts or [""]:
                digest.update(f"{len(caption)} {caption}".encode("utf-8", "replace"))
    elif isinstance(reader, LineReader | TableReader) and not any(map(files.is_url, reader.paths)):
        for path in reader.paths:
            try:
                digest.update(sha256(Path(path)).encode())
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    else:
        return None
    return digest.hexdigest()


def refuse_source_inside(source: SourceConfig, folder: Path) -> None:
    """Refuses to read from a store that is about to be removed.

    Args:
        source: what is to be embedded.
        folder: of the store, without links.

    Raises:
        ConfigError: a file or folder of the source lies in it.
        DataError: nothing matches the source's path.
    """
    for path in files.expand(source.path):
        if not files.is_url(path) and Path(path).resolve().is_relative_to(folder):
            raise ConfigError(
                f"--overwrite: {path} lies in {folder}, the store that is to be removed; move it "
                "out of there, or name another folder for the store"
            )


def _has_only_texts(source: SourceConfig) -> bool:
    """Whether these are text files, one text a line, and no tables of images and captions."""
    paths = files.expand(source.path)
    if not all(extension(name) == LINES for name in paths):
        return False
    tables = source.format == "auto" and any(map(is_caption_table, paths))
    return source.format != "table" and not tables

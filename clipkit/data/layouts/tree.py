"""The files of a folder of images, and which of the images a name in a table means."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable
from functools import cached_property, partial

from clipkit.data import files, reader


class ImageTree:
    """A folder that was listed.

    Args:
        folder: what the names are relative to.
        names: all its files, with ``/``, sorted.
        image_root: where relative image paths in its tables start, if that is given.

    Attributes:
        folder: as given.
        names: as given.
        images: those of them that are images, in order.
    """

    def __init__(self, folder: str, names: list[str], image_root: str | None = None) -> None:
        self.folder, self.names = folder, names
        self.images = [name for name in names if extension(name) in reader.IMAGE_EXTENSIONS]
        self._there = {same_name(image): image for image in self.images}
        self._root: str | None = None
        if image_root is not None and not files.is_url(image_root):
            start = os.path.relpath(os.path.abspath(image_root), os.path.abspath(folder))
            self._root = start.replace(os.sep, "/")

    def locate(self, named: Iterable[str], base: str) -> tuple[dict[str, str], str]:
        """The images that the names in a table mean, and how they were found, if unusually.

        The names are relative to the table's folder, to the whole folder or to the image root,
        whichever finds most; where these find none, they are looked for by their file names
        alone, if these are unique, and last without extensions.

        Args:
            named: the names.
            base: the folder of the table, relative to this one; empty for this one.
        """
        wanted = list(dict.fromkeys(named))
        starts = dict.fromkeys([base, "", *([] if self._root is None else [self._root])])
        best: dict[str, str] = {}
        for start in starts:
            found = _found(wanted, partial(self._at, start))
            best = found if len(found) > len(best) else best
        if best:
            return best, ""
        if best := _found(wanted, lambda name: self.by_base.get(_base(name))):
            return best, "images found by their file names alone"
        best = _found(wanted, lambda name: self._by_stem.get(_base(name)))
        return best, "images found by their names without extension" if best else ""

    def knows(self, name: str) -> bool:
        """Whether a text ends with the file name of one of the images."""
        return _base(name) in self.by_base

    def knows_stem(self, name: str) -> bool:
        """Whether a text is the name of one of the images without its extension."""
        return _base(name) in self._by_stem

    @cached_property
    def by_base(self) -> dict[str, str | None]:
        """File name → its image; None where several have it."""
        found: dict[str, str | None] = {}
        for image in self.images:
            base = _base(image)
            found[base] = None if base in found else image
        return found

    @cached_property
    def _by_stem(self) -> dict[str, str | None]:
        found: dict[str, str | None] = {}
        for image in self.images:
            stem = _base(image).rsplit(".", 1)[0]
            found[stem] = None if stem in found else image
        return found

    def _at(self, start: str, name: str) -> str | None:
        name = name.strip().replace("\\", "/")
        if posixpath.isabs(name):
            start, top = "", os.path.abspath(self.folder).replace(os.sep, "/").rstrip("/") + "/"
            if not name.startswith(top):
                return None
            name = name[len(top) :]
        path = posixpath.normpath(posixpath.join(start, name))
        return self._there.get(same_name(path))


def extension(name: str) -> str:
    """``a/b.JPG`` → ``jpg``."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[1].lower() if "." in base else ""


def same_name(name: str) -> str:
    """A file's name as names are compared: accents may be letters of their own, as macOS writes
    them, or not."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem(name: str) -> str:
    """``a/b.jpg`` → ``a/b``."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + (base.rsplit(".", 1)[0] if "." in base else base)


def parent(name: str) -> str:
    """``a/b.jpg`` → ``a``; empty for a file of the folder itself."""
    return name.rpartition("/")[0]


def _base(name: str) -> str:
    return same_name(name.strip().replace("\\", "/").rsplit("/", 1)[-1]).casefold()


def _found(names: list[str], find: Callable[[str], str | None]) -> dict[str, str]:
    return {name: image for name in names if (image := find(name)) is not None}

"""The first bytes of a file → what it is, whatever its name says."""

from __future__ import annotations

_TAR_MAGIC_AT = 257
# The first bytes, what they mean in words, and what to do where that is not read.
_KNOWN = (
    (b"PAR1", "a Parquet file", "call it .parquet"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"BZh", "compressed by bzip2", "unpack it first"),
    (b"\xfd7zXZ\0", "compressed by xz", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard", "unpack it first"),
    (b"PK\x03\x04", "a zip archive or an Excel workbook (.xlsx)", "unpack it, or save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "save it as CSV"),
    (b"SQLite format 3\0", "an SQLite database", "export the table as CSV"),
    (b"ARROW1", "an Arrow file", "save it as Parquet"),
    (b"\x89HDF", "an HDF5 file", "save its images and captions as Parquet"),
    (b"%PDF", "a PDF", "name a table"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    (b"<!doctype html", "a page of a web site (HTML)", "download the file itself"),
    (b"<html", "a page of a web site (HTML)", "download the file itself"),
    (b"\xff\xd8\xff", "an image (JPEG)", "name the folder or table of the images"),
    (b"\x89PNG", "an image (PNG)", "name the folder or table of the images"),
)


def content_of(start: bytes) -> tuple[str, str] | None:
    """Names a file's kind by its first bytes, and what to do where it is not read; None for text
    and the unknown.

    Args:
        start: its first bytes, 512 where it has so many.
    """
    if start[_TAR_MAGIC_AT:][:5] == b"ustar":
        return "a tar", "call it .tar"
    head = start[:32].lower()
    for magic, what, remedy in _KNOWN:
        if start.startswith(magic) or (magic.startswith(b"<") and head.lstrip().startswith(magic)):
            return what, remedy
    return None


def is_parquet(start: bytes) -> bool:
    """Whether a file begins as Parquet does."""
    return start.startswith(b"PAR1")

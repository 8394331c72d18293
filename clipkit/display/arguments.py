"""What several commands take, for argparse: kinds of numbers, a source's columns."""

from __future__ import annotations

import argparse
from typing import Any

from clipkit.config.schema import SourceConfig

FORMATS = ("auto", "webdataset", "parquet", "table", "folder", "datasets")


def positive(text: str) -> int:
    """1, 2, 3 …"""
    return _at_least(1, text)


def count(text: str) -> int:
    """0, 1, 2 …"""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return value


def add_source_arguments(
    parser: argparse.ArgumentParser, *, images: bool = True, format_option: str = "--format"
) -> None:
    """The keys of a config's source as options, the same in each command that reads one.

    Args:
        parser: of the command.
        images: whether the command reads images at all.
        format_option: names the format of the source, where ``--format`` is another's.
    """
    group = parser.add_argument_group("how the source is read")
    if images:
        group.add_argument("--image", metavar="COL", help="the column or member of the images")
    group.add_argument(
        "--caption",
        metavar="COL[,COL]",
        help="the columns or members of the captions, or fields inside them such as json.title"
        + ("; none: images only" if images else ""),
    )
    group.add_argument(
        "--image-root", metavar="FOLDER", help="the folder that image paths in a table start from"
    )
    group.add_argument(
        "--class-names", metavar="FILE", help="names of numbered classes or folders, one a line"
    )
    group.add_argument("--split", metavar="NAME", help="the split of a datasets source (train)")
    group.add_argument(
        format_option,
        dest="source_format",
        choices=FORMATS,
        help="of the source; found by what is there where it is not given",
    )


def source_options(args: argparse.Namespace) -> dict[str, str]:
    """The keys of a source that were given on the command line."""
    given = {
        "image": getattr(args, "image", None),
        "caption": args.caption,
        "image_root": args.image_root,
        "class_names": args.class_names,
        "split": args.split,
        "format": args.source_format,
    }
    return {key: value for key, value in given.items() if value is not None}


def source_from(args: argparse.Namespace, path: str, **more: Any) -> SourceConfig:
    """The source ``path``, read as the command line says.

    Args:
        args: with the options of ``add_source_arguments``.
        path: of the source.
        more: further keys of the source, which stand above those of the command line.
    """
    options: dict[str, Any] = {**source_options(args), **more}
    return SourceConfig(path=path, **options)

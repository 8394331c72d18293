"""What several commands take, for argparse: kinds of numbers, a source's columns."""

from __future__ import annotations

import argparse


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


def add_pair_arguments(parser: argparse.ArgumentParser) -> None:
    """Where a source has its images and captions, and who reads them."""
    parser.add_argument("--image", metavar="COL", help="the column or member of the images")
    parser.add_argument(
        "--caption", metavar="COL", help="the column with the captions; none: images only"
    )
    parser.add_argument("--workers", type=count, metavar="N", help="processes that decode")

"""Kinds of numbers on the command line, for argparse."""

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

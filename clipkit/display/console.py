"""What commands print: tables on stdout; progress and remarks on stderr."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm


def progress_bar(label: str, total: int | None, unit: str, *, show: bool = True) -> tqdm[Any]:
    """A progress bar on stderr; where there is no terminal, a plain line now and then.

    Args:
        label: what is being done.
        total: how many units there are, if that is known.
        unit: what is counted.
        show: whether to show it at all.
    """
    if sys.stderr.isatty() or _is_notebook():
        return tqdm(total=total, desc=label, unit=unit, disable=not show, delay=0.3, **bar_size())
    return tqdm(
        total=total,
        disable=not show,
        file=_Lines(),
        bar_format=label + ": {n_fmt}/{total_fmt} " + unit + "s ({elapsed}, {rate_fmt})",
        unit=unit,
        mininterval=10,
        delay=5,
    )


def _is_notebook() -> bool:
    """Whether this runs in a notebook's kernel; a module of it may be loaded for other reasons."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def bar_size() -> dict[str, Any]:
    """tqdm's room. Some terminals say that they have none, and tqdm then shows nothing."""
    size = shutil.get_terminal_size((100, 24))
    return {"ncols": size.columns, "nrows": size.lines}


class _Lines:
    """tqdm returns to the start of its line; a log wants a new one instead."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            print(text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Each line is flushed as it is written."""


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
) -> str:
    """Columns under a header, padded by what characters take up in a terminal.

    Args:
        header: a title for each column.
        rows: the cells.
        right: the columns that are aligned to the right.
    """
    lines = [header, *rows]
    widths = [max(display_width(line[c]) for line in lines) for c in range(len(header))]
    return "\n".join(
        "  ".join(
            pad(cell, width, right=c in right)
            for c, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def display_width(text: str) -> int:
    """Columns of a terminal that a text takes: Chinese characters and emoji take two."""
    return sum(
        0
        if unicodedata.combining(char) or unicodedata.category(char) == "Cf"
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in text
    )


def pad(text: str, width: int, *, right: bool = False) -> str:
    """A text filled with spaces to ``width`` columns."""
    space = " " * (width - display_width(text))
    return space + text if right else text + space


def shorten(text: str, width: int) -> str:
    """A text of at most ``width`` columns, on one line; an ellipsis says that it was cut."""
    text = "".join(char if char.isprintable() else " " for char in text)
    if display_width(text) <= width:
        return text
    taken = itertools.accumulate(map(display_width, text))  # once over it, however long it is
    return text[: sum(each < width for each in taken)] + "…"


# What moves the cursor, breaks the line or turns the text around; what joins emoji may stay.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_control(text: str) -> str:
    """A text with escapes for what would steer a terminal: a file may have any name."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def short_path(path: str) -> str:
    """A path as seen from the current folder, where it lies below it; anything else as it is."""
    if "://" in path or not os.path.isabs(path):
        return path
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def source_name(path: str) -> str:
    """What to call a data set: ``data/emoji/held-out-*.tar`` → ``held-out``."""
    name = path.rstrip("/").rsplit("/", 1)[-1]
    return re.split(r"[-_.]*[*?{\[]", name)[0] or name


def remark(line: str) -> None:
    """A line on stderr, so that results alone are on stdout."""
    print(f"clipkit: {escape_control(line)}", file=sys.stderr, flush=True)


def remark_cut(cut: int, total: int, context_length: int) -> None:
    """Says how many captions were cut at the context length, if any were."""
    if cut:
        remark(
            f"{cut:,} of {total:,} captions are longer than {context_length} tokens and were cut"
        )


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the place in our code where they arose."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: remark(str(message))
        yield


def default_workers() -> int:
    """Loader processes where none are asked for: one core is left for the model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(8, max(1, (cores or 2) - 1))

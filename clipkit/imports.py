"""A command imports some thousand modules before it does anything."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """For the imports of a command: without looking for reference cycles meanwhile.

    Among what modules make there is nothing to be freed, and looking takes a fifth of the time of
    the import of torch and transformers. What was made is left out of later looks, too. Not for
    imports in somebody else's process, whose own cycles would then be kept as well.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()

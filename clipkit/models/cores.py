"""A batch on a CPU in parts: what a layer makes of one stays in a core's caches, and each core
works on parts of its own, so that none waits for another at every product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

_MOST_THREADS = 16  # with more they would wait for the interpreter
_ROUND = 4  # parts are a multiple of this, so that few cores end together

_T = TypeVar("_T")


def split_rows(rows: Tensor, at_once: int) -> Sequence[Tensor]:
    """(B, …) → parts of at most ``at_once`` rows, of nearly one size. They do not depend on the
    number of cores, so that embeddings do not either, beyond what a library's products round."""
    count = -(-len(rows) // max(1, at_once))
    if count > 1:
        count = -(-count // _ROUND) * _ROUND
    return torch.tensor_split(rows, min(count, len(rows)))


def map_parts(function: Callable[[Tensor], _T], parts: Sequence[Tensor]) -> list[_T]:
    """``function`` of each part, in order; several at a time, with a share of PyTorch's threads
    each. It runs in other threads: dtypes of autocast and modes of autograd are its own."""
    threads = torch.get_num_threads()
    workers = min(threads, len(parts), _MOST_THREADS)
    if workers < 2:
        return [function(part) for part in parts]
    # What it is when a thread begins is what holds there.
    torch.set_num_threads(threads // workers)
    try:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(function, parts))
    finally:
        torch.set_num_threads(threads)

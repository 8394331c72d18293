"""Random numbers that are a function of (seed, purpose, key): what makes the order one too.

NumPy promises that ``SeedSequence`` and the raw bits of ``Philox`` stay as they are over
versions and machines, and promises no such thing of ``Generator``'s methods. Whatever a
resumed run must see again is therefore drawn here from raw bits.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Purpose(IntEnum):
    """What a stream is for, so that no two uses share one. Never renumber."""

    CHUNKS = 1
    WINDOW = 2
    AUGMENT = 3
    HOLDOUT = 4
    MIXTURE = 5
    CAPTION = 6
    SOURCE = 7
    OFFSET = 8
    SPREAD = 9


def raw_bits(seed: int, purpose: Purpose, *key: int, size: int) -> NDArray[np.uint64]:
    """``size`` uint64 of the stream that belongs to (seed, purpose, key)."""
    # The spawn key, unlike the entropy, is not padded with zeros: (1,) and (1, 0) differ.
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(int(purpose), *key))
    return np.random.Philox(sequence).random_raw(size)


def permutation(seed: int, purpose: Purpose, *key: int, size: int) -> NDArray[np.int64]:
    """A permutation of range(size), uniform but for ties of probability below 2**-32 a pair."""
    if size <= 1:
        return np.zeros(size, dtype=np.int64)
    # Each index rides in the low bits of its own random key, so that the sort needs no
    # argsort, and ties are broken in the same way everywhere.
    index_mask = np.uint64((1 << (size - 1).bit_length()) - 1)
    keys = raw_bits(seed, purpose, *key, size=size)
    keys &= ~index_mask
    keys |= np.arange(size, dtype=np.uint64)
    keys.sort()
    keys &= index_mask
    return keys.view(np.int64)


def uniforms(seed: int, purpose: Purpose, *key: int, size: int) -> NDArray[np.float64]:
    """``size`` floats in [0, 1), with 53 random bits each."""
    bits = raw_bits(seed, purpose, *key, size=size) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53

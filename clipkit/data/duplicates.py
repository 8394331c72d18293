"""Images that are there before: byte for byte, nearly the same to look at, or to a model.

Of such images the first stays. A later one goes where one that stays is as near as asked for;
what is near only to an image that goes, stays. Rows with the very same image file are one image
with several captions, which stays or goes as a whole; of rows with equal captions too, the first
stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HASH_BYTES = 16
_SIDE = 32
_FLAT = 1.0  # of a coefficient: less is noise of the encoder, not of the picture
_BLOCK = 1024  # rows that are compared at a time


def perceptual_hash(image: Image.Image) -> bytes:
    """128 bits, of which resizing and encoding change few: the signs of the lowest frequencies
    of the picture, grey and 32 × 32.

    Reference: C. Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions,
    2010, section 3.2 (the hash based on the cosine transform).
    """
    small = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(small, dtype=np.float64)
    return np.packbits((_COSINES @ grey @ _COSINES.T)[_LOWEST] > _FLAT).tobytes()


def _cosines(size: int) -> NDArray[np.float64]:
    """The orthonormal cosine transform (DCT-II), frequencies down the rows."""
    frequency, place = np.ogrid[:size, :size]
    rows = np.cos(np.pi * frequency * (place + 0.5) / size) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


_COSINES = _cosines(_SIDE)
# By the sum of both frequencies; the mean, first of all, says nothing of the picture's shape.
_LOWEST = np.unravel_index(
    np.add.outer(range(_SIDE), range(_SIDE)).argsort(axis=None, kind="stable")[
        1 : 8 * HASH_BYTES + 1
    ],
    (_SIDE, _SIDE),
)


def same_as_before(hashes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N, K) bytes → (N,) whether an earlier row is equal."""
    repeated = np.ones(len(hashes), dtype=bool)
    if len(hashes):
        words = np.ascontiguousarray(hashes).view([("", np.void, hashes.shape[1])])
        repeated[np.unique(words.ravel(), return_index=True)[1]] = False
    return repeated


def duplicate_rows(
    images: NDArray[np.uint8],
    samples: NDArray[np.uint8],
    gone: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of N rows repeat an earlier one, and which are of an image that goes.

    Args:
        images: (N, K) bytes, equal for rows with the same image file.
        samples: (N, K) bytes, equal for rows with the same captions too.
        gone: given the first row of each of I images, ascending, says (I,) which images go; none
            do without it.

    Returns:
        (N,) whether a row is a whole sample again, and (N,) whether its image goes otherwise.
    """
    same = same_as_before(samples)
    near = np.zeros(len(images), dtype=bool)
    if gone is not None and len(images):
        words = np.ascontiguousarray(images).view([("", np.void, images.shape[1])]).ravel()
        _, first, image = np.unique(words, return_index=True, return_inverse=True)
        order = np.argsort(first)
        of_image = np.empty(len(first), dtype=bool)
        of_image[order] = gone(first[order])
        near = of_image[image] & ~same
    return same, near


def near_before(hashes: NDArray[np.uint8], bits: int) -> NDArray[np.bool_]:
    """Whether an earlier hash that stays differs in at most ``bits`` bits; exact.

    Two hashes that differ in ``bits`` bits are equal in one of ``bits`` + 1 parts at least, so
    that only those which share a part are compared.

    Args:
        hashes: (N, K) bytes.
        bits: 0 up to 8 K - 1.
    """
    gone = same_as_before(hashes)
    first = np.flatnonzero(~gone)
    if bits == 0 or len(first) < 2:
        return gone
    of_first = hashes[first]
    pairs = [
        _near_in_group(of_first, group, bits)
        for part in np.array_split(np.unpackbits(of_first, axis=1), bits + 1, axis=1)
        for group in _groups(np.packbits(part, axis=1))
    ]
    if not pairs:
        return gone
    near = np.unique(np.concatenate(pairs), axis=0)
    for later, earlier in first[near]:  # by the later one: what is earlier has been decided
        if not gone[earlier]:
            gone[later] = True
    return gone


def similar_before(embeds: NDArray[np.float32], least: float) -> NDArray[np.bool_]:
    """Whether an earlier row that stays has a cosine of at least ``least``.

    Every row is compared with every one that stays: N² D multiplications at most.

    Args:
        embeds: (N, D), unit length.
        least: above -1, at most 1.
    """
    gone = np.zeros(len(embeds), dtype=bool)
    for start in range(0, len(embeds), _BLOCK):
        block = embeds[start : start + _BLOCK]
        near = np.zeros(len(block), dtype=bool)
        for begin in range(0, start, 16 * _BLOCK):
            earlier = slice(begin, min(begin + 16 * _BLOCK, start))
            staying = embeds[earlier][~gone[earlier]]
            near |= (block @ staying.T >= least).any(axis=1)
        among = block @ block.T >= least
        for row in range(len(block)):
            near[row] |= bool((among[row, :row] & ~near[:row]).any())
        gone[start : start + len(block)] = near
    return gone


def _groups(parts: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
    """Rows that are equal, ascending, two and more of them."""
    order = np.lexsort(parts.T)
    ordered = parts[order]
    begins = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    return [np.sort(group) for group in np.split(order, begins) if len(group) > 1]


def _near_in_group(
    hashes: NDArray[np.uint8], group: NDArray[np.int64], bits: int
) -> NDArray[np.int64]:
    """(P, 2) pairs of rows, the later first."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    for start in range(0, len(group), _BLOCK):
        later = group[start : start + _BLOCK]
        earlier = group[: start + len(later)]
        distance = sum(
            np.bitwise_count(hashes[later, byte, None] ^ hashes[earlier, byte]).astype(np.uint8)
            for byte in range(hashes.shape[1])
        )
        i, j = np.nonzero(distance <= bits)
        pairs = np.stack([later[i], earlier[j]], axis=1)
        found.append(pairs[pairs[:, 1] < pairs[:, 0]])
    return np.concatenate(found)

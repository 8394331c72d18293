"""Images that are there before: hashes that survive resizing, and searches that miss nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from sample_files import encoded

from clipkit.data.duplicates import near_before, perceptual_hash, same_as_before, similar_before


def _picture(seed: int) -> Image.Image:
    """Soft shapes of all sizes, 400 × 300, as photographs have them."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((300, 400, 3))
    for side in (4, 8, 16, 32):
        cells = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        pixels += np.asarray(Image.fromarray(cells).resize((400, 300), Image.Resampling.BICUBIC))
    return Image.fromarray((pixels / 4).astype(np.uint8))


def _bits(image: Image.Image) -> np.ndarray:
    return np.unpackbits(np.frombuffer(perceptual_hash(image), dtype=np.uint8))


def test_a_hash_outlives_resizing_and_encoding_and_tells_pictures_apart() -> None:
    pictures = [_picture(seed) for seed in range(40)]
    hashes = np.stack([_bits(picture) for picture in pictures])
    assert hashes.shape == (40, 128)
    for picture, bits in zip(pictures, hashes, strict=True):
        small = picture.resize((133, 100))
        for copy in (
            small,
            picture.resize((224, 224)),
            picture.convert("L"),
            Image.open(io.BytesIO(encoded(picture, "JPEG", quality=40))),
            Image.open(io.BytesIO(encoded(small, "WEBP", quality=50))),
        ):
            assert (_bits(copy) != bits).sum() <= 8
    between = (hashes[:, None] != hashes).sum(axis=-1)[np.triu_indices(40, 1)]
    assert between.min() > 24


def test_pictures_of_any_shape_have_a_hash() -> None:
    for size in ((1, 1), (3000, 1), (1, 3000), (32, 32)):
        assert not _bits(Image.new("RGB", size, "#a13")).any()  # a plain area has no shape
    assert len(perceptual_hash(Image.new("RGBA", (5, 7)))) == 16


def _clustered(rng: np.random.Generator, count: int, spread: int) -> np.ndarray:
    """(count, 128) bits about a few centres, so that many pairs are near and many just not."""
    centres = rng.integers(0, 2, (6, 128), dtype=np.uint8)
    bits = centres[rng.integers(0, 6, count)]
    for row in bits:
        row[rng.integers(0, 128, rng.integers(0, spread))] ^= 1
    return bits


@pytest.mark.parametrize("bits", [0, 1, 5, 8, 31])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_near_hashes_are_those_that_brute_force_finds(bits: int, count: int) -> None:
    hashes = _clustered(np.random.default_rng(bits), count, 2 * bits + 2)
    staying: list[np.ndarray] = []
    gone = []
    for row in hashes:
        gone.append(any((row != other).sum() <= bits for other in staying))
        if not gone[-1]:
            staying.append(row)
    assert near_before(np.packbits(hashes, axis=1), bits).tolist() == gone
    if count > 1:
        assert 0 < sum(gone) < count - 1


def test_equal_hashes_leave_the_first() -> None:
    hashes = np.array([[1, 2], [3, 4], [1, 2], [1, 3], [3, 4], [1, 2]], dtype=np.uint8)
    assert same_as_before(hashes).tolist() == [False, False, True, False, True, True]
    assert same_as_before(hashes[:0]).tolist() == []


@pytest.mark.parametrize("count", [1, 50, 2500])  # 2,500 are three blocks
def test_similar_embeddings_are_those_that_brute_force_finds(count: int) -> None:
    rng = np.random.default_rng(count)
    centres = rng.normal(size=(max(count // 4, 1), 8))
    embeds = centres[rng.integers(0, len(centres), count)] + 0.2 * rng.normal(size=(count, 8))
    embeds = (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32)
    staying: list[int] = []
    for row in range(count):
        if not staying or (embeds[staying] @ embeds[row]).max() < 0.9:
            staying.append(row)
    gone = similar_before(embeds, 0.9)
    assert np.flatnonzero(~gone).tolist() == staying
    assert count < 2 or 1 < len(staying) < count

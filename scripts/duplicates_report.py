"""How well a perceptual hash tells copies of one's images from different images.

    python scripts/duplicates_report.py SOURCE [--every 2]

Each image is changed as the web changes them; the table says which share of the changed ones lies
within so many bits of the original, and how many pairs of different images do. A pair that is
counted there may well be a true duplicate: look at it.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from clipkit.config.schema import SourceConfig
from clipkit.data import open_source
from clipkit.data.duplicates import perceptual_hash
from clipkit.errors import ClipkitError

BITS = (0, 2, 4, 6, 8, 10, 12, 16)


def encoded(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue()))


def cropped(image: Image.Image) -> Image.Image:
    x, y = image.width // 50, image.height // 50
    return image.crop((x, y, image.width - x, image.height - y))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 50": lambda image: encoded(image, 50),
    "half the size, quality 85": lambda image: encoded(
        image.resize((max(image.width // 2, 1), max(image.height // 2, 1))), 85
    ),
    "160 × 160, quality 30": lambda image: encoded(image.resize((160, 160)), 30),
    "each edge 2% less": cropped,
}


def bits_of(image: Image.Image) -> np.ndarray:
    return np.unpackbits(np.frombuffer(perceptual_hash(image), dtype=np.uint8)).astype(np.int16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="images, as clipkit data filter takes them")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every N-th image")
    args = parser.parse_args()
    try:
        reader = open_source(SourceConfig(path=args.source, caption="none"))
    except ClipkitError as error:
        parser.exit(error.exit_code, f"{error}\n")
    hashes: dict[str, list[np.ndarray]] = {name: [] for name in ("", *CHANGES)}
    for row in range(0, len(reader), args.every):
        image = Image.open(io.BytesIO(reader[row].image or b"")).convert("RGB")
        hashes[""].append(bits_of(image))
        for name, change in CHANGES.items():
            hashes[name].append(bits_of(change(image)))
    originals = np.stack(hashes[""])
    print(f"{len(originals):,} images\n")
    print(f"| within … bits of 128 | {' | '.join(map(str, BITS))} |")
    print(f"|---|{'---|' * len(BITS)}")
    for name in CHANGES:
        apart = (np.stack(hashes[name]) != originals).sum(axis=1)
        print(f"| {name} | {' | '.join(f'{(apart <= bits).mean():.1%}' for bits in BITS)} |")
    apart = originals @ (1 - originals).T + (1 - originals) @ originals.T
    pairs = apart[np.triu_indices(len(originals), 1)]
    counts = " | ".join(f"{(pairs <= bits).sum():,}" for bits in BITS)
    print(f"| different images, of {len(pairs):,} pairs | {counts} |")


if __name__ == "__main__":
    main()

"""Decoded images that stay in memory, so that a small set is decoded once and not once an epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Decoded = Image.Image | NDArray[np.uint8]


class KeptImages:
    """Row → decoded image, up to a number of bytes.

    The first that fit stay. Epochs read in a cycle, so that the image that was used longest ago
    is the one that is needed next: putting new ones in the place of old ones would keep nothing.

    Args:
        max_bytes: of pixels; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._images: dict[int, Decoded] = {}
        self._bytes = 0

    def get(self, row: int) -> Decoded | None:
        """What was put under this row, if it was kept. It must not be written to."""
        return self._images.get(row)

    def put(self, row: int, image: Decoded) -> None:
        """Keeps an image if there is room."""
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        size = 4 * width * height  # Pillow has four bytes a pixel
        if self._bytes + size <= self.max_bytes:
            self._images[row] = image
            self._bytes += size

    def __getstate__(self) -> dict[str, Any]:
        """Another process begins with none."""
        return {"max_bytes": self.max_bytes, "_images": {}, "_bytes": 0}

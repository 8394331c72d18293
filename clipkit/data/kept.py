"""Samples that stay in memory, so that a small set is read, decoded and tokenized once a run and
not once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from clipkit.data.tokenize import Encoded
    from clipkit.types import Pair

_A_TOKEN, _A_TEXT = 8, 200  # bytes in Python's lists and dictionaries


class KeptSample(NamedTuple):
    """What was read, and its image (H, W, 3) uint8. Neither must be written to."""

    pair: Pair
    image: NDArray[np.uint8]


class KeptSamples:
    """Row → sample, and caption → tokens, up to a number of bytes.

    The first that fit stay. Epochs read in a cycle, so that the sample that was used longest ago
    is the one that is needed next: putting new ones in the place of old ones would keep nothing.

    Args:
        max_bytes: of pixels, files and tokens; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._samples: dict[int, KeptSample] = {}
        self._tokens: dict[str, Encoded] = {}
        self._bytes = 0

    def get(self, row: int) -> KeptSample | None:
        """What was put under this row, if it was kept."""
        return self._samples.get(row)

    def put(
        self, row: int, pair: Pair, image: Image.Image | NDArray[np.uint8]
    ) -> Image.Image | NDArray[np.uint8]:
        """Keeps a sample if there is room; returns its image."""
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        if not self._fits(3 * width * height + len(pair.image or b"")):
            return image
        pixels = np.array(image) if isinstance(image, Image.Image) else image
        self._samples[row] = KeptSample(pair, pixels)
        return pixels

    def tokens(
        self, texts: Sequence[str], encode: Callable[[list[str]], list[Encoded]]
    ) -> list[Encoded]:
        """Those of each text; ``encode`` is asked for those that were not kept."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._tokens]
        new = dict(zip(missing, encode(missing), strict=True)) if missing else {}
        found = [new[text] if text in new else self._tokens[text] for text in texts]
        for text, encoded in new.items():
            if self._fits(_A_TOKEN * len(encoded.ids) + len(text) + _A_TEXT):
                self._tokens[text] = encoded
        return found

    def _fits(self, size: int) -> bool:
        fits = self._bytes + size <= self.max_bytes
        if fits:
            self._bytes += size
        return fits

    def __getstate__(self) -> dict[str, Any]:
        """Another process begins with none."""
        return {"max_bytes": self.max_bytes, "_samples": {}, "_tokens": {}, "_bytes": 0}

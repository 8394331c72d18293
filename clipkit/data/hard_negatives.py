"""An order in which samples whose captions share rare words stand in one batch.

In a batch at random few negatives are nearly right, and a model soon tells the others apart.
Putting samples that are alike into one batch makes more of them, and costs nothing a step:
grouped mini-batch sampling (GRIT-VLP, https://arxiv.org/abs/2208.04060, section 4.1). That paper
and its successors group by a model's embeddings; here it is by words, so that it needs no model.

The definition, for N samples in groups of G:

- Captions are taken apart into words, in lower case; each Chinese or Japanese character is one. Of
  the words that stand in more than one caption, the rarest eight are a caption's key, the rarest
  first.
- Rows are sorted by key; rows whose captions are equal, which would be wrong negatives, are dealt
  out: first each caption's first row, then each caption's second row, and so on.
- In epoch e this list begins at an offset that is drawn from (seed, e), and goes round. It is cut
  into groups of G neighbours, and the groups are permuted by a draw from (seed, e).

So an epoch holds each sample exactly once, and a sample meets others of its kind in each epoch.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data import files
from clipkit.data.index import write_arrays
from clipkit.data.order import Order, Rows
from clipkit.data.reader import Reader
from clipkit.data.rng import Purpose, raw_bits

_VERSION = 1
_RAREST = 8  # words of a key
_IDEOGRAMS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Han: no spaces between words
_WORD = re.compile(rf"[{_IDEOGRAMS}]|[^\W{_IDEOGRAMS}]+")


class HardNegativeOrder:
    """The order of samples in groups that are alike; see the module for its definition.

    Args:
        alike: (N,) rows, neighbours alike: see :func:`rows_alike`.
        seed: of the run; not negative.
        group: G, samples that stand together.
    """

    def __init__(self, alike: Rows, *, seed: int, group: int) -> None:
        self._alike, self._seed = alike, seed
        self._order = Order([len(alike)], seed=seed, lanes=1, chunk=group, window=1)

    def rows(self, positions: NDArray[np.integer[Any]]) -> Rows:
        """See :meth:`clipkit.data.order.Order.rows`."""
        n = len(self._alike)
        epochs = np.asarray(positions, dtype=np.int64) // n
        places = self._order.rows(positions)
        for epoch in np.unique(epochs):
            drawn = raw_bits(self._seed, Purpose.OFFSET, int(epoch), size=1)
            places[epochs == epoch] += int(drawn[0]) % n
        return self._alike[places % n]


def rows_alike(reader: Reader) -> Rows:
    """(N,) the rows of a source, neighbours alike, by one pass over its captions.

    It is kept in a cache folder, so that the pass is made once. Eight numbers a sample and the
    captions themselves are in memory meanwhile.
    """
    digest = files.digest("alike", _VERSION, reader.fingerprint, reader.source)
    place = files.cache_folder() / f"{digest}.npz"
    try:
        with np.load(place, allow_pickle=False) as kept:
            return np.asarray(kept["rows"])
    except (OSError, ValueError, KeyError, EOFError):
        rows = sort_alike(reader.captions())
        with contextlib.suppress(OSError):  # it is made anew next time
            write_arrays(place, {"rows": rows})
        return rows


def sort_alike(captions: Iterable[str]) -> Rows:
    """(N,) the numbers of some captions, neighbours alike; see the module for the definition."""
    texts = [caption.casefold() for caption in captions]
    held = Counter(word for text in texts for word in set(_WORD.findall(text)))
    common = sorted((count, word) for word, count in held.items() if count > 1)
    rank = {word: number for number, (_, word) in enumerate(common, start=1)}
    keys = np.zeros((len(texts), _RAREST), dtype=np.uint32)  # 0: no more words
    turns, seen = np.zeros(len(texts), dtype=np.int64), Counter[str]()
    for row, text in enumerate(texts):
        ranks = sorted({rank[word] for word in _WORD.findall(text) if word in rank})[:_RAREST]
        keys[row, : len(ranks)] = ranks
        turns[row] = seen[text]
        seen[text] += 1
    return np.lexsort((*keys.T[::-1], turns))

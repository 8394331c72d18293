"""An order in which samples whose captions share rare words stand in one batch.

In a batch at random few negatives are nearly right, and a model soon tells the others apart.
Putting samples that are alike into one batch makes more of them, and costs nothing a step:
grouped mini-batch sampling (GRIT-VLP, https://arxiv.org/abs/2208.04060, section 4.1). That paper
and its successors group by a model's embeddings; here it is by words, so that it needs no model.

The definition, for N samples in groups of G:

- Captions are taken apart into words, after NFKC and in lower case; each Chinese or Japanese
  character is one. Of the words that stand in more than one caption, the rarest eight are a
  caption's key, the rarest first.
- Rows are dealt out in turns: a row is of the turn after the last one that has its words or its
  image, as equals would be wrong negatives. The rows of a turn are sorted by key, and the turns
  laid end to end.
- Turns of less than 4 · G rows would bring equals together all the same. Their rows are permuted,
  and stand alone among the others, evenly spread.
- In epoch e this list begins at an offset that is drawn from (seed, e), and goes round. It is cut
  into groups of G neighbours, and the groups are permuted by a draw from (seed, e).

So an epoch holds each sample exactly once, and a sample meets others of its kind in each epoch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.data.order import Order, Rows
from clipkit.data.rng import Purpose, permutation, raw_bits

_RAREST = 8  # words of a key
_LEAST_TURN = 4  # groups
_IDEOGRAMS = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Han: no spaces between words
_BETWEEN = r"\s!-/:-@\[-`{-~\u2000-\u206f\u3001-\u3003\u3008-\u303f\u00a1\u00ab\u00b7\u00bb\u00bf"
_WORD = re.compile(rf"[{_IDEOGRAMS}]|[^{_BETWEEN}{_IDEOGRAMS}]+")


class HardNegativeOrder:
    """The order of samples in groups that are alike; see the module for its definition.

    Args:
        alike: (N,) rows, neighbours alike: see :func:`sort_alike`.
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


def sort_alike(captions: Iterable[str], images: Rows | None = None, *, group: int) -> Rows:
    """(N,) the numbers of some captions, neighbours alike; see the module for the definition.
    Their words are in memory meanwhile, as numbers.

    Args:
        captions: N, of which some may be empty.
        images: (N,) the numbers of their images, the same for rows that share one; None where
            no two do.
        group: G, samples that are to stand together.
    """
    numbers: dict[str, int] = {}  # of words, in place of which they are kept
    words = [
        tuple([numbers.setdefault(word, len(numbers)) for word in _words(caption)])
        for caption in captions
    ]
    names = list(numbers)
    held = Counter(word for of_one in words for word in set(of_one))
    common = sorted((count, names[word]) for word, count in held.items() if count > 1)
    rank = {numbers[name]: place for place, (_, name) in enumerate(common, start=1)}
    keys = np.zeros((len(words), _RAREST), dtype=np.uint32)  # 0: no more words
    turns = np.zeros(len(words), dtype=np.int64)
    of_words, of_image = Counter[tuple[int, ...]](), Counter[int]()
    numbered = np.arange(len(words)) if images is None else images
    for row, (of_one, image) in enumerate(zip(words, numbered.tolist(), strict=True)):
        ranks = sorted({rank[word] for word in of_one if word in rank})[:_RAREST]
        keys[row, : len(ranks)] = ranks
        turn = max(of_words[of_one], of_image[image])
        turns[row] = turn
        of_words[of_one] = of_image[image] = turn + 1
    alike = np.lexsort((*keys.T[::-1], turns))
    alone = (np.bincount(turns) < _LEAST_TURN * group)[turns[alike]]
    spread = alike[alone][permutation(0, Purpose.SPREAD, size=int(alone.sum()))]
    together = alike[~alone]
    # The i-th of n stands at (i + 1/2) / n of the whole.
    places = [(np.arange(len(some)) + 0.5) / max(len(some), 1) for some in (together, spread)]
    order = np.argsort(np.concatenate(places), kind="stable")
    rows: Rows = np.concatenate([together, spread])[order]
    return rows


def _words(caption: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", caption).casefold())

"""How many tokens a tokenizer takes for a text: its fertility, by script or by language."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from clipkit.data.tokenize import chunks, clean_caption

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Their words are not set apart by spaces.
_UNSPACED = frozenset({"Chinese", "Japanese", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"})
_KANA = frozenset({"Hiragana", "Katakana"})
_HAN = "Han"
NO_LETTERS = "no letters"
# ``CYRILLIC SMALL LETTER A``, ``HANGUL SYLLABLE GA``: what stands before is the script.
_SCRIPT = re.compile(r"(.+?) (?:CAPITAL|SMALL|LETTER|SYLLABLE|SYLLABICS|VOWEL|SIGN)\b")


@dataclass(slots=True)
class Fertility:
    """Sums over texts.

    Attributes:
        texts: that are not empty.
        words: between spaces, of the texts that ``spaced`` counts.
        spaced: tokens of the texts in scripts that put spaces between words.
        characters: after cleaning.
        tokens: without start and end.
        cut: texts with more tokens than the context holds, start and end included.
    """

    texts: int = 0
    words: int = 0
    spaced: int = 0
    characters: int = 0
    tokens: int = 0
    cut: int = 0

    @property
    def tokens_per_word(self) -> float | None:
        """The fertility; None where no text has spaces between its words."""
        return self.spaced / self.words if self.words else None

    @property
    def tokens_per_character(self) -> float:
        """0 where there are no texts."""
        return self.tokens / self.characters if self.characters else 0.0

    @property
    def tokens_per_text(self) -> float:
        """0 where there are no texts."""
        return self.tokens / self.texts if self.texts else 0.0


def measure_fertility(
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[tuple[str | None, str]],
    *,
    context_length: int,
) -> dict[str, Fertility]:
    """Counts the tokens of texts, group by group.

    Args:
        tokenizer: any fast tokenizer.
        texts: (group, text); by script where the group is None. Empty texts count for nothing.
        context_length: tokens that a text may have.

    Returns:
        By group, the group of most texts first.

    Reference: tokens per word, https://arxiv.org/abs/2012.15613, section 3.2.
    """
    added = tokenizer.num_special_tokens_to_add()
    found: dict[str, Fertility] = {}
    for chunk in chunks(texts, 1000):
        pairs = [(group, clean) for group, text in chunk if (clean := clean_caption(text))]
        if not pairs:
            continue
        encoded = tokenizer(
            [text for _, text in pairs],
            add_special_tokens=False,
            return_attention_mask=False,
            split_special_tokens=True,
            verbose=False,
        )
        for (group, text), ids in zip(pairs, encoded["input_ids"], strict=True):
            script = script_of(text)
            sums = found.setdefault(group or script, Fertility())
            sums.texts += 1
            sums.characters += len(text)
            sums.tokens += len(ids)
            sums.cut += len(ids) + added > context_length
            if script not in _UNSPACED:
                sums.words += len(text.split())
                sums.spaced += len(ids)
    return dict(sorted(found.items(), key=lambda item: (-item[1].texts, item[0])))


def script_of(text: str) -> str:
    """The script of most of a text's letters, as Unicode's character names have it: ``Latin``,
    ``Cyrillic``; ``Chinese`` for Han alone, ``Japanese`` for Han with kana; ``no letters``."""
    letters = (script for character in text if (script := _script(character)))
    counts = Counter(letters)
    if not counts:
        return NO_LETTERS
    kana = sum(counts.pop(name, 0) for name in _KANA)
    han = counts.pop(_HAN, 0)
    if kana or han:
        counts["Japanese" if kana else "Chinese"] = kana + han
    # Of equally many, the first in the alphabet.
    return min(counts, key=lambda name: (-counts[name], name))


@lru_cache(maxsize=2**17)
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    plain = unicodedata.normalize("NFKC", character)[0]  # full-width, mathematical, ligatures
    name = unicodedata.name(plain, "")
    if name.startswith("CJK "):
        return _HAN
    match = _SCRIPT.match(name)
    return (match[1] if match else name.partition(" ")[0]).title() or None

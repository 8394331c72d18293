"""Whether a tokenizer is the one that a model was trained with, and texts get vectors of their own.

A model takes any ids. With another tokenizer, or with half of its own, all texts may have one
vector and every number after it means nothing; so both are compared before the model is used.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from clipkit.data.tokenize import clean_caption, encode, missing_files
from clipkit.digest import text_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_ORDINARY = ("a photo of the cat", "two red dogs")
_CANDIDATES = 256  # words of the vocabulary that are looked at
_PADDING = 127  # tables of embeddings are often filled up to a multiple of 64 or 128
# Of towers that pool a position, tables have been seen with 3% more rows than tokens.
_SPARE_SHARE = 0.04
_SAME = 1e-6  # of a number of a unit vector


class TextTower(NamedTuple):
    """Ids that a text tower takes.

    Attributes:
        vocab_size: rows of the embedding table.
        end: the id at which a text is pooled; None: at its greatest id, or at a position.
        greatest: whether a text is pooled at its greatest id.
        told: ids of special tokens that the config tells, by the tokenizer's name for them.
        sha256: of the vocabulary that the model was saved with; None: unknown.
    """

    vocab_size: int
    end: int | None = None
    greatest: bool = False
    told: dict[str, int] = {}  # noqa: RUF012
    sha256: str | None = None


def text_tower(config: PreTrainedConfig) -> TextTower:
    """The text tower that a config of transformers describes."""
    text: Any = config.text_config
    usual, told = type(text)(), {}
    for name in ("bos", "eos", "pad"):
        key = f"{name}_token_id"
        value = getattr(text, key, None)
        # A default was perhaps never thought of: SigLIP's are ids that no model of it has.
        default = value == getattr(usual, key, None) and not (
            name == "pad" and starts_after_padding(text)
        )
        if isinstance(value, int) and 0 <= value < text.vocab_size and not default:
            told[key] = value
    end, greatest = None, False
    if text.model_type == "clip_text_model":
        end, greatest = int(text.eos_token_id), text.eos_token_id == 2  # 2: of old files
        told = {} if greatest else {key: told[key] for key in ("bos_token_id",) if key in told}
    digest = getattr(config, "tokenizer_sha256", None)
    return TextTower(int(text.vocab_size), None if greatest else end, greatest, told, digest)


def starts_after_padding(text: PreTrainedConfig) -> bool:
    """Whether a text tower counts positions from the id of its padding on, as RoBERTa does."""
    return "roberta" in text.model_type or text.model_type in ("camembert", "mpnet")


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Stands for the tokens and their ids."""
    return text_sha256(json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True))


def why_unfit(tokenizer: PreTrainedTokenizerBase, tower: TextTower, source: str) -> str | None:
    """Why a tokenizer cannot be the one of a model, or None.

    Args:
        tokenizer: as it was loaded.
        tower: of the model.
        source: the folder or hub name that the tokenizer was loaded from.
    """
    ids = [each.ids for each in encode(tokenizer, _ORDINARY, context_length=1024)]
    return (
        _wrong_size(tokenizer, tower, ids)
        or _wrong_end(tower, ids)
        or _wrong_ids(tokenizer, tower)
        or _not_its_file(tokenizer, source)
        or _other_words(tokenizer, tower)
        or _lost_merges(tokenizer, tower)
    )


def advice(source: str) -> str:
    """Says what to do about a tokenizer that does not fit.

    Args:
        source: the folder or hub name of the model that it was loaded from.
    """
    missing = missing_files(source)
    return (
        f"{f'{missing}: ' if missing else ''}copy the tokenizer's files (tokenizer.json, "
        "tokenizer_config.json) from where the model comes from, or name a folder that has them: "
        "clipkit.load(…, tokenizer=FOLDER)"
    )


def different_texts(tokenizer: PreTrainedTokenizerBase, context_length: int) -> list[str]:
    """Three texts of the vocabulary's own words, which differ in the middle where they fit; fewer
    than two where the tokenizer makes the same of everything."""
    words = _known_words(tokenizer, context_length)
    if len(words) < 3:
        return words
    a, b, c = words[0], words[len(words) // 2], words[-1]
    for texts in ([f"{a} {b} {a}", f"{a} {c} {a}", f"{b} {c} {b}"], [a, b, c]):
        encoded = encode(tokenizer, texts, context_length=context_length)
        if len({tuple(each.ids) for each in encoded}) == 3 and not any(e.cut for e in encoded):
            return texts
    return []


def same_vectors(embeds: np.ndarray) -> tuple[int, int] | None:
    """Two rows that are one vector, or None.

    Args:
        embeds: (B, D), unit length.
    """
    for i in range(len(embeds)):
        for j in range(i):
            if np.abs(embeds[i] - embeds[j]).max() < _SAME:
                return j, i
    return None


def _wrong_size(
    tokenizer: PreTrainedTokenizerBase, tower: TextTower, ids: Sequence[list[int]]
) -> str | None:
    vocabulary = tokenizer.get_vocab()
    count = max(vocabulary.values(), default=-1) + 1
    marks = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks |= set(tokenizer.all_special_ids)
    # Special tokens beyond the table do no harm while no text has them.
    used = [id for id in vocabulary.values() if id not in marks] + [i for row in ids for i in row]
    used += [] if tokenizer.pad_token_id is None else [tokenizer.pad_token_id]
    greatest = max(used, default=-1)
    if greatest >= tower.vocab_size:
        return f"it has ids up to {greatest}, where the model takes {tower.vocab_size} tokens"
    pooled_by_id = tower.greatest or tower.end is not None
    spare = 0 if pooled_by_id else int(tower.vocab_size * _SPARE_SHARE)
    if count < tower.vocab_size - max(_PADDING, spare):
        return f"it has {count} tokens, where the model takes {tower.vocab_size}"
    return None


def _wrong_end(tower: TextTower, ids: Sequence[list[int]]) -> str | None:
    for row in ids:
        last = row[-1] if row else None
        if tower.end is not None and (last != tower.end or tower.end in row[:-1]):
            return (
                f"a text ends with the id {last}, where the model takes its embedding from the id "
                f"{tower.end}"
            )
        if tower.greatest and (last is None or last != max(row) or last in row[:-1]):
            return (
                f"a text ends with the id {last}, where the model takes its embedding from the "
                f"greatest id, {max(row, default=None)}"
            )
    return None


def _wrong_ids(tokenizer: PreTrainedTokenizerBase, tower: TextTower) -> str | None:
    for key, id in tower.told.items():
        own = getattr(tokenizer, key, None)
        if own is not None and own != id:
            return f"its {key} is {own}, and {id} in the model's config.json"
    return None


def _not_its_file(tokenizer: PreTrainedTokenizerBase, source: str) -> str | None:
    """Transformers builds the class that tokenizer_config.json names around the vocabulary, and
    with another class the same words get other tokens."""
    path = Path(source) / "tokenizer.json"
    if not (tokenizer.is_fast and path.is_file()):
        return None
    from tokenizers import Tokenizer

    try:
        plain = Tokenizer.from_file(str(path))
    except Exception:  # the loader has read it by other means
        return None
    plain.no_padding()
    plain.no_truncation()
    marks = set(tokenizer.all_special_ids)
    for text in _ORDINARY:
        own, theirs = tokenizer(text)["input_ids"], plain.encode(text).ids
        bare, bare_theirs = ([i for i in row if i not in marks] for row in (own, theirs))
        # A file may leave start and end to the class.
        if bare != bare_theirs or (len(theirs) > len(bare_theirs) and own != theirs):
            kind = type(tokenizer).__name__
            return (
                f"tokenizer.json makes {theirs[:8]} of '{text}', and {kind}, which "
                f"tokenizer_config.json asks for, {own[:8]}"
            )
    return None


def _other_words(tokenizer: PreTrainedTokenizerBase, tower: TextTower) -> str | None:
    if tower.sha256 is None or vocabulary_sha256(tokenizer) == tower.sha256:
        return None
    return "its tokens are others than those the model was saved with (tokenizer_sha256)"


def _lost_merges(tokenizer: PreTrainedTokenizerBase, tower: TextTower) -> str | None:
    """A byte-pair encoding without its merges spells words letter by letter."""
    clip = tower.greatest or tower.end is not None
    if not (clip and tokenizer.is_fast):
        return None
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] != "BPE":
        return None
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    made, suffix = {"".join(pair) for pair in pairs}, model.get("end_of_word_suffix") or ""
    marks = set(tokenizer.all_special_tokens)
    words = [word for word in model["vocab"] if len(word.removesuffix(suffix)) > 1]
    words = [word for word in words if word not in marks]
    lost = sum(word not in made for word in words)
    if lost * 10 <= len(words):
        return None
    return f"for {lost} of its {len(words)} words it has no merges, so it would spell them"


def _known_words(tokenizer: PreTrainedTokenizerBase, context_length: int) -> list[str]:
    """Words, far apart in the vocabulary, that are tokens and no unknown ones; if there are any,
    those of one token."""
    marks = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - marks)
    step = max(1, len(ids) // _CANDIDATES)
    decoded = [clean_caption(tokenizer.decode([id])) for id in ids[::step]]
    words = list(dict.fromkeys(word for word in decoded if word and "\ufffd" not in word))
    short: dict[tuple[int, ...], str] = {}
    long: dict[tuple[int, ...], str] = {}
    for word, each in zip(
        words, encode(tokenizer, words, context_length=context_length), strict=True
    ):
        bare = tuple(id for id in each.ids if id not in marks)
        if bare and not each.cut:
            (short if len(bare) == 1 else long).setdefault(bare, word)
    return list((short if len(short) >= 3 else short | long).values())

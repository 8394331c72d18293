"""Captions → token ids: a CLIP-compatible tokenizer trained on one's own captions, or any other.

The tokenizer made here is transformers' own ``CLIPTokenizer``: saved beside a model, it comes
back from ``AutoTokenizer`` with the same ids and none of our code.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoTokenizer, CLIPTokenizer

from clipkit.errors import CheckpointError, ConfigError
from clipkit.hub import find_folder, first_line

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

# Loader workers are forked after this process has tokenized, and the tokenizer's threads do not
# survive that: it would warn in every worker. A batch of captions needs no threads.
_THREADS = "TOKENIZERS_PARALLELISM"
_chosen_by_user = _THREADS in os.environ
os.environ.setdefault(_THREADS, "false")

_Item = TypeVar("_Item")

# Each of them holds a whole vocabulary; vocab.json needs merges.txt beside it.
_WHOLE = (
    "tokenizer.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model",
)  # fmt: skip
START, END = "<|startoftext|>", "<|endoftext|>"
MAX_CHARACTERS = 10_000
MIN_VOCABULARY = 514  # the bytes, the bytes as ends of words, start and end
_SURROGATES = re.compile("[\ud800-\udfff]")
_INVISIBLE = dict.fromkeys([0x0000, 0xFEFF])  # NUL, and the byte order mark of text files


def clean_caption(text: str | None) -> str | None:
    """The caption as it is tokenized, or None where there is none.

    NFC; runs of whitespace become one space; NUL and byte order marks are removed; halves of
    surrogate pairs, as broken JSON holds them, are joined or replaced; at most 10,000
    characters.
    """
    if text is None:
        return None
    text = text[:1_000_000]  # a bound on the work, far above what is kept
    if _SURROGATES.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = " ".join(text.translate(_INVISIBLE).split())
    # Cut before as well: to order the accents of a letter takes the square of their number.
    text = unicodedata.normalize("NFC", text[:MAX_CHARACTERS])
    return text[:MAX_CHARACTERS].rstrip() or None


def train_tokenizer(
    captions: Iterable[str], *, vocab_size: int, context_length: int
) -> PreTrainedTokenizerFast:
    """A byte-level BPE in CLIP's layout, trained on captions in any language.

    The vocabulary is 256 bytes, the 256 bytes again as ends of words, the merges, the start
    and the end token; every text has ids and comes back from them (lower-cased, and with
    spaces between words and punctuation, as CLIP has it). The same captions give the same
    vocabulary, whatever their order.

    Args:
        captions: texts, read once.
        vocab_size: tokens at most; fewer where the captions hold no more pairs seen twice.
        context_length: tokens a text may have, start and end included.

    Raises:
        ConfigError: ``vocab_size`` has no room for the byte alphabet.

    Reference: CLIP, https://arxiv.org/abs/2103.00020, section 2.4; byte-level BPE,
    https://arxiv.org/abs/1508.07909.
    """
    if vocab_size < MIN_VOCABULARY:
        raise ConfigError(
            f"preprocess.vocab_size: {vocab_size} is less than the {MIN_VOCABULARY} tokens that "
            "the bytes, the start and the end take; use 1024 or more."
        )
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet = letters + [letter + "</w>" for letter in letters]
    backend = Tokenizer(BPE(end_of_word_suffix="</w>"))
    pattern = _clip_tokenizer(alphabet, [], context_length).backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = pattern.normalizer, pattern.pre_tokenizer
    trainer = BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        end_of_word_suffix="</w>",
        show_progress=False,
        # As special tokens they get their ids before the captions are read. Otherwise the ids of
        # the ends of words follow the order of a hash map, other in every process, and with
        # them every tie between two pairs that are equally frequent.
        special_tokens=alphabet,
    )
    with _threads():
        backend.train_from_iterator(chunks(captions, 1000), trainer)
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    return _clip_tokenizer(alphabet, merges, context_length)


def open_tokenizer(name_or_folder: str) -> PreTrainedTokenizerBase:
    """Any tokenizer that ``AutoTokenizer`` loads without running code from its folder, as it is.

    Raises:
        CheckpointError: there is none, or it needs code of its own.
    """
    find_folder(name_or_folder, what="a tokenizer")
    try:
        return AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever the first broken file leads to
        reason = missing_files(name_or_folder) or first_line(error)
        raise CheckpointError(
            f"{name_or_folder}: no tokenizer could be loaded ({reason}); copy the tokenizer's "
            "files from where the model comes from, or name a folder or hub repository that has "
            "them (preprocess.tokenizer of a config; left out, one is trained)."
        ) from error


def missing_files(folder: str) -> str | None:
    """Which files a folder lacks for its tokenizer to be whole; None where none is missing, or for
    a hub name."""
    if not Path(folder).is_dir():
        return None
    there = {path.name for path in Path(folder).iterdir()}
    if not there & set(_WHOLE):
        half = there & {"vocab.json", "merges.txt"}
        if len(half) == 1:
            (lacking,) = {"vocab.json", "merges.txt"} - half
            return f"there is {half.pop()} and no {lacking}"
        if not half:
            return "there is no tokenizer.json"
    return None if "tokenizer_config.json" in there else "there is no tokenizer_config.json"


def load_tokenizer(
    name_or_folder: str, *, context_length: int, slow: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer as clipkit uses it: it cuts and pads on the right, and text is text.

    Args:
        name_or_folder: see ``open_tokenizer``.
        context_length: tokens a text may have, start and end included.
        slow: whether one in pure Python will do, as it does where nothing is trained.

    Raises:
        CheckpointError: there is none, or it is too slow.
    """
    return prepare_tokenizer(open_tokenizer(name_or_folder), context_length, name_or_folder, slow)


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase, context_length: int, name: str, slow: bool = False
) -> PreTrainedTokenizerBase:
    """What ``open_tokenizer`` gave, changed to what ``load_tokenizer`` gives."""
    if not (tokenizer.is_fast or slow):
        raise CheckpointError(
            f"{name}: {type(tokenizer).__name__} is a tokenizer in pure Python, which is "
            "too slow to train with; convert it to a tokenizer.json, or name another."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or _last_token(tokenizer)
    # Set as init_kwargs too, which are what save_pretrained writes.
    settings = {
        "model_max_length": context_length,
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": True,
    }
    for key, value in settings.items():
        setattr(tokenizer, key, value)
    tokenizer.init_kwargs.update(settings)
    return tokenizer


def _last_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """The token that ends a text, in files that do not say which it is."""
    last: str = tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"][-1])
    return last


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, context_length: int
) -> tuple[Tensor, int]:
    """Token ids of a batch, and how many of its texts were cut.

    A text that is too long keeps its start and end tokens. What looks like a special token in
    a text is text. Where the tokenizer has a ``clean_text`` (those of open_clip have one), it
    goes over each text first.

    Returns:
        (B, L) int64, L the longest text of the batch and at most ``context_length``; the
        number of texts that were cut.
    """
    encoded = encode(tokenizer, texts, context_length=context_length)
    return padded(encoded, tokenizer), sum(each.cut for each in encoded)


class Encoded(NamedTuple):
    """The token ids of a text, and whether it was cut."""

    ids: list[int]
    cut: bool


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, context_length: int
) -> list[Encoded]:
    """What ``tokenize`` says of each text, without padding."""
    if not texts:
        return []
    clean = getattr(tokenizer, "clean_text", None)
    words = [clean(text) for text in texts] if clean else list(texts)
    ids = tokenizer(
        words,
        truncation=True,
        max_length=context_length,
        return_attention_mask=False,
        split_special_tokens=True,
        verbose=False,
    )["input_ids"]
    # Counted here: what ``overflowing`` holds differs between versions of tokenizers, and a
    # tokenizer in Python has none. Only texts that fill the context can be longer.
    full = [i for i, each in enumerate(ids) if len(each) >= context_length]
    cut = [False] * len(words)
    if full:
        whole = tokenizer([words[i] for i in full], split_special_tokens=True, verbose=False)
        for i, each in zip(full, whole["input_ids"], strict=True):
            cut[i] = len(each) > context_length
    return [Encoded(*each) for each in zip(ids, cut, strict=True)]


def padded(encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(B, L) int64, padded on the right to the longest."""
    longest = max((len(each.ids) for each in encoded), default=0)
    ids = np.full((len(encoded), longest), tokenizer.pad_token_id, dtype=np.int64)
    for row, each in zip(ids, encoded, strict=True):
        row[: len(each.ids)] = each.ids
    return torch.from_numpy(ids)


def clip_tokenizer(merges: list[tuple[str, ...]], context_length: int) -> CLIPTokenizer:
    """The tokenizer of OpenAI's CLIP, with its ids, made of its merges."""
    return _clip_tokenizer(_openai_alphabet(), merges, context_length)


def _openai_alphabet() -> list[str]:
    """Letters for the 256 bytes and again as ends of words, in the order of OpenAI's ids: the
    printable bytes, then the others, for which letters from 256 upwards stand."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - 188)]
    return letters + [letter + "</w>" for letter in letters]


def _clip_tokenizer(
    alphabet: list[str], merges: list[tuple[str, ...]], context_length: int
) -> CLIPTokenizer:
    """CLIPTokenizer over ``alphabet`` and what ``merges`` make of it; start and end come last."""
    # Two merges can make one token ("a"+"bc", "ab"+"c"), hence the dictionary.
    tokens = list(dict.fromkeys([*alphabet, *("".join(merge) for merge in merges), START, END]))
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,  # never used: the alphabet has every byte
        # CLIP pools the first end token and attends backwards only, so padding with the end
        # token changes nothing, whoever runs the model.
        pad_token=END,
        model_max_length=context_length,
        padding_side="right",
        truncation_side="right",
        split_special_tokens=True,
    )


@contextmanager
def _threads() -> Iterator[None]:
    """All cores, for the one long task; unless the user decided."""
    before = os.environ[_THREADS]
    if not _chosen_by_user:
        os.environ[_THREADS] = "true"
    try:
        yield
    finally:
        os.environ[_THREADS] = before


def chunks(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Lists of ``size`` items, the last one of what is left."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk

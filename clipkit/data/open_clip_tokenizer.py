"""The tokenizer of an open_clip checkpoint, as transformers' with the same ids.

What open_clip does to a text before (ftfy, HTML entities, lower case) is taken from the
installed package, and so are OpenAI's merges.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clipkit.data.tokenize import clip_tokenizer
from clipkit.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def openai_tokenizer(where: str, *, context_length: int, clean: str) -> PreTrainedTokenizerBase:
    """The tokenizer that open_clip has where a config names none.

    Args:
        where: the checkpoint, for messages.
        context_length: tokens a text may have, start and end included.
        clean: what is done to a text first: ``lower``, ``whitespace`` or ``canonicalize``.

    Raises:
        CheckpointError: open_clip_torch is not installed, or has no such cleaning.
    """
    theirs = _package(where).SimpleTokenizer()
    tokenizer = clip_tokenizer(list(theirs.bpe_ranks), context_length)
    assert tokenizer.eos_token_id == theirs.eot_token_id
    # The cleaning comes before, and is all there is: after it, "İ" would be composed again.
    tokenizer.backend_tokenizer.normalizer = None
    return cleaning(tokenizer, where, clean)


def cleaning(tokenizer: PreTrainedTokenizerBase, where: str, clean: str) -> PreTrainedTokenizerBase:
    """The tokenizer, with open_clip's cleaning before it; see ``openai_tokenizer``."""
    tokenizer.clean_text = _cleaner(where, clean)
    tokenizer.cleaning = clean
    return tokenizer


def without_cleaning(tokenizer: PreTrainedTokenizerBase, where: str) -> PreTrainedTokenizerBase:
    """A copy that others load, which does of open_clip's cleaning what a file can say: white
    space and lower case, but neither ftfy nor HTML entities.

    Raises:
        CheckpointError: the cleaning is of another kind.
    """
    if not hasattr(tokenizer, "cleaning"):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    ours = tokenizer.backend_tokenizer.normalizer is None  # an ``openai_tokenizer``
    if tokenizer.cleaning != ("lower" if ours else "whitespace"):
        raise CheckpointError(
            f"{where}: its texts are cleaned as open_clip's {tokenizer.cleaning}, which the files "
            "of a tokenizer cannot say; it cannot be exported."
        )
    if ours:
        plain = clip_tokenizer([], tokenizer.model_max_length).backend_tokenizer
        tokenizer.backend_tokenizer.normalizer = plain.normalizer
    return tokenizer


def _cleaner(where: str, clean: str) -> Callable[[str], str]:
    try:
        cleaner: Callable[[str], str] = _package(where).get_clean_fn(clean)
    except AssertionError as error:
        raise CheckpointError(
            f"{where}: tokenizer_kwargs.clean is {clean}, which the installed open_clip_torch does "
            "not have."
        ) from error
    return cleaner


def _package(where: str) -> Any:
    try:
        from open_clip import tokenizer
    except ImportError as error:
        raise CheckpointError(
            f"{where}: its tokenizer is part of open_clip_torch, which is not installed; run: "
            "pip install 'clipkit-pretraining[open_clip]', or name a folder with a tokenizer."
        ) from error
    return tokenizer

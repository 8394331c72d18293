"""A run's folder: what belongs to a run besides its steps, and whether it may go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from clipkit.config import Config, config_to_dict, flatten
from clipkit.data import Reader
from clipkit.data.reader import some_captions
from clipkit.data.tokenize import load_tokenizer, train_tokenizer
from clipkit.errors import CheckpointError, RunRefused
from clipkit.hub import first_line
from clipkit.training.faults import main_first

# What may differ when a run goes on: none of it changes what is learned.
_FREE = (
    "output",
    "data.evaluate",
    "data.workers",
    "data.cache_gb",
    "data.decoded_gb",
    "data.max_loss_share",
    "data.max_skip_share",
    "train.save_every",
    "train.save_minutes",
    "train.distributed",
    "train.offload",
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.compile",
    "train.keep",
    "train.save_in_background",
    "train.checkpoint",
    "train.log_every",
    "train.trackers",
    "eval",
    "plan",
)


def prepare_tokenizer(
    config: Config, reader: Reader, folder: Path, accelerator: Accelerator, *, keep: bool = True
) -> PreTrainedTokenizerBase:
    """The tokenizer the config names, or one trained on the captions and kept in the run; all
    ranks must call it.

    Args:
        config: ``preprocess``, resolved.
        reader: of the captions.
        folder: the run's; the tokenizer in it is taken where there is one.
        accelerator: for who trains it.
        keep: it; else each rank trains it for itself and writes nothing.

    Raises:
        ConfigError: ``preprocess.vocab_size`` is too small.
        CheckpointError: the one that is named, or the run's, cannot be read.
    """
    length = config.preprocess.context_length
    if config.preprocess.tokenizer is not None:
        return load_tokenizer(config.preprocess.tokenizer, context_length=length)
    own = folder / "tokenizer"
    if not keep and not os.path.lexists(own):
        return _trained(config, reader)

    def load() -> PreTrainedTokenizerBase:
        if not os.path.lexists(own):
            aside = folder / "tokenizer.tmp"
            _trained(config, reader).save_pretrained(aside)
            aside.rename(own)
        try:
            return load_tokenizer(str(own), context_length=length)
        except CheckpointError as error:
            raise CheckpointError(
                f"{own}: the run's tokenizer cannot be read ({_cause(error)}). Restore it from a "
                "copy, or remove it: the same captions make the same one again"
            ) from None

    return main_first(accelerator, load)


def _cause(error: CheckpointError) -> str:
    cause = error.__cause__
    return first_line(cause) if isinstance(cause, Exception) else "it is not a tokenizer's folder"


def _trained(config: Config, reader: Reader) -> PreTrainedTokenizerBase:
    return train_tokenizer(
        some_captions(reader),
        vocab_size=config.preprocess.vocab_size,
        context_length=config.preprocess.context_length,
    )


def check_unchanged(config: Config, folder: Path, allowed: Sequence[str]) -> list[str]:
    """Compares the config with the one that the run was started with.

    Args:
        config: the resolved config of this start.
        folder: the run's.
        allowed: dotted keys, or sections, that may change.

    Returns:
        A line for each key that changed and may.

    Raises:
        RunRefused: a key that decides what is learned has changed, or what the run was started
            with cannot be read.
    """
    path = folder / "config.yaml"
    changed: list[str] = []
    refused: list[str] = []
    if path.is_file():
        # A key that came with a later version was at its default before.
        saved = dict(flatten(_saved_config(path)))
        defaults = dict(flatten(config_to_dict(Config())))
        # An empty section by default is none beside what it now holds.
        held = [key for key, value in defaults.items() if value == {}]
        full = {key for key in held if any(other.startswith(f"{key}.") for other in saved)}
        before = {key: value for key, value in defaults.items() if key not in full} | saved
        now = dict(flatten(config_to_dict(config)))
        if before["train.precision"] == "auto":  # nothing was settled yet
            before["train.precision"] = now["train.precision"]
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) == now.get(key):
                continue
            line = f"{key}: {before.get(key)} → {now.get(key)}"
            covered = any(key == k or key.startswith(f"{k}.") for k in (*_FREE, *allowed))
            (changed if covered else refused).append(line)
    if refused:
        keys = " ".join(f"--allow-change {line.split(':')[0]}" for line in refused)
        raise RunRefused(
            f"{folder}: this run was started with another config ({'; '.join(refused)}). Set "
            f"another output to start anew, or go on with {keys}"
        )
    return changed


def _saved_config(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError):
        tree = None
    if not isinstance(tree, dict):
        raise RunRefused(
            f"{path}: what this run was started with cannot be read. Restore it from a copy, set "
            "another output to start anew, or remove it to go on with the config as it is now"
        )
    return tree

"""Whether a run may go on from its checkpoint: with the same samples, the same tokenizer, to an end
that lies ahead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from clipkit.config import Config
from clipkit.data import Reader
from clipkit.data.tokenize import open_tokenizer
from clipkit.errors import RunRefused
from clipkit.training.saving import Restored


def check_goes_on(
    config: Config,
    folder: Path,
    state: Restored,
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    allowed: Sequence[str],
) -> None:
    """Compares what a checkpoint was trained with and what this start has.

    Args:
        config: of this start.
        folder: the run's.
        state: of the checkpoint; of none, nothing is refused.
        reader: of the training samples.
        tokenizer: of this start.
        steps: that the run is to end at.
        allowed: dotted keys that may change.

    Raises:
        RunRefused: they do not go together.
    """
    if state.checkpoint is None:
        return
    source_key = "data.mix" if config.data.mix else "data.train"
    if state.data not in (None, reader.fingerprint) and source_key not in allowed:
        raise RunRefused(
            f"{reader.source.path}: these are not the samples that {folder} was started with "
            "(files, sizes, counts or filters differ), so the order of samples cannot go on. "
            "Restore them, set another output to start anew, or go on with --allow-change "
            f"{source_key}"
        )
    if state.step > steps:
        raise RunRefused(
            f"{folder}: it is at step {state.step} already, and would have to end at {steps}; set "
            f"train.steps to {state.step} or more, or another output to start anew"
        )
    model = state.checkpoint / "model"
    if (
        "preprocess.tokenizer" not in allowed
        and open_tokenizer(str(model)).get_vocab() != tokenizer.get_vocab()
    ):
        raise RunRefused(
            f"{folder}: its tokenizer is not the one that it was trained with until now, which is "
            f"in {model}. Restore it, set another output to start anew, or go on with "
            "--allow-change preprocess.tokenizer"
        )

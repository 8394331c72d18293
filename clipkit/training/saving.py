"""What a checkpoint of a run holds: put together when it is saved, taken apart when it goes on."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from clipkit._version import __version__
from clipkit.atomic import write_json
from clipkit.config import PreprocessConfig
from clipkit.errors import CheckpointError
from clipkit.models import DualEncoder, save_model
from clipkit.training.checkpoint import (
    find_checkpoint,
    load_tensors,
    optimizer_tensors,
    read_json,
    save_checkpoint,
    save_tensors,
)
from clipkit.training.distributed import like_parameter, whole_tensor
from clipkit.training.ema import WeightAverage


@dataclass
class Restored:
    """Where a run goes on: what a checkpoint says besides weights and moments."""

    checkpoint: Path | None = None
    step: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    data: str | None = None
    damaged: list[str] = field(default_factory=list)


def restore(folder: Path, model: DualEncoder) -> Restored:
    """Loads the weights of a run's newest whole checkpoint, if there is one.

    Raises:
        CheckpointError: all of them are damaged, or the weights are of another model.
    """
    checkpoint, damaged = find_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return Restored()
    weights = load_tensors(checkpoint / "model" / "model.safetensors")
    missing, unexpected = model.backbone.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint}: its weights are of another model ({(missing + unexpected)[0]} does "
            "not fit); set another output to start anew"
        )
    facts = read_json(checkpoint / "state.json")
    lines = [f"damaged and passed over: {line}; going on from {checkpoint}" for line in damaged]
    return Restored(
        checkpoint, facts["step"], facts["counts"], facts["scaler"], facts["data"], lines
    )


class Saver:
    """Saves a run's checkpoints; all ranks call it alike.

    Args:
        folder: the run's.
        model: bare, whole or sharded.
        optimizer: its moments are saved by the names of the model's parameters.
        average: of the weights, if there is one; likewise.
        accelerator: for who writes, and the scaler of fp16.
        preprocess: goes with the model.
        tokenizer: likewise.
        data: the fingerprint of the samples.
        keep: how many checkpoints stay.
        step: that the run starts at.
    """

    def __init__(
        self,
        folder: Path,
        model: DualEncoder,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        accelerator: Accelerator,
        preprocess: PreprocessConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        data: str,
        keep: int,
        step: int,
    ) -> None:
        self.folder, self.model, self.optimizer, self.average = folder, model, optimizer, average
        self.accelerator, self.preprocess, self.tokenizer = accelerator, preprocess, tokenizer
        self.data, self.keep = data, keep
        self.step, self.at = step, time.monotonic()  # the newest that is saved, and when

    def save(self, step: int, counts: dict[str, int]) -> None:
        """Saves what the run is after ``step`` steps.

        Args:
            step: optimizer steps done.
            counts: of samples and skips, over all ranks.

        Raises:
            CheckpointError: it cannot be written.
        """
        weights, tensors = whole_weights(self.model), self._tensors()
        if self.accelerator.is_main_process:

            def write(path: Path) -> None:
                self.save_model(path / "model", weights)
                for name, content in tensors.items():
                    save_tensors(path / name, content)
                scaler = self.accelerator.scaler
                facts = {
                    "step": step,
                    "counts": counts,
                    "scaler": scaler.state_dict() if scaler else None,
                    "data": self.data,
                    "world_size": self.accelerator.num_processes,
                    "versions": versions(),
                }
                write_json(path / "state.json", facts)

            save_checkpoint(self.folder / "checkpoints", step, write, keep=self.keep)
        self.accelerator.wait_for_everyone()
        self.step, self.at = step, time.monotonic()

    def minutes(self) -> float:
        """Since the last save, or the start."""
        return (time.monotonic() - self.at) / 60

    def save_model(self, path: Path, weights: dict[str, Tensor], card: str | None = None) -> None:
        """The Hugging Face folder; the main process calls it."""
        save_model(self.model, path, self.preprocess, self.tokenizer, card=card, weights=weights)

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What is saved beside the weights, by file; all ranks must call it."""
        tensors = {"optimizer.safetensors": optimizer_tensors(self.optimizer, self.model)}
        if self.average is not None:
            own = self.average.tensors.items()
            tensors["ema.safetensors"] = {name: whole_tensor(value) for name, value in own}
        return tensors


def load_average(average: WeightAverage, checkpoint: Path) -> None:
    """Where the average was; all ranks must call it. What it was not taken of, as before
    ``train.ema`` was set, begins at the weight."""
    path = checkpoint / "ema.safetensors"
    saved = load_tensors(path) if path.is_file() else {}
    for name, tensor in average.tensors.items():
        if name in saved:
            tensor.copy_(like_parameter(saved[name], tensor))


def whole_weights(model: DualEncoder) -> dict[str, Tensor]:
    """The backbone's weights by name, whole; all ranks must call it."""
    return {name: whole_tensor(value) for name, value in model.backbone.state_dict().items()}


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "clipkit": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }

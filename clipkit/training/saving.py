"""What a checkpoint of a run holds: put together when it is saved, taken apart when it goes on.

A step waits until weights and moments are copied to the CPU's memory; a thread does the rest.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from clipkit._version import __version__
from clipkit.atomic import write_json
from clipkit.config.schema import PreprocessConfig, TrainConfig
from clipkit.errors import CheckpointError, ClipkitError
from clipkit.models import DualEncoder, save_model
from clipkit.training.checkpoint import find_checkpoint, read_json, save_checkpoint
from clipkit.training.distributed import Ranks, whole_tensor
from clipkit.training.ema import WeightAverage
from clipkit.training.failpoint import failpoint
from clipkit.training.faults import raise_first
from clipkit.training.optim import moments
from clipkit.training.parts import (
    Part,
    SavedTensors,
    has_tensors,
    index_of,
    part_of,
    rank_folder,
    save_tensors,
    whole_file,
)

# Checkpoints of clipkit 0.1.0 have the parameters of a loss among the optimizer's tensors, under
# names that end so.
_OLD = "::parameter"


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
        config: ``keep``, ``checkpoint``, ``save_in_background``.
        data: the fingerprint of the samples.
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
        config: TrainConfig,
        *,
        data: str,
        step: int,
    ) -> None:
        self.folder, self.model, self.optimizer, self.average = folder, model, optimizer, average
        self.accelerator, self.preprocess, self.tokenizer = accelerator, preprocess, tokenizer
        self.data, self.keep = data, config.keep
        self.background = config.save_in_background
        self.sharded = config.checkpoint == "sharded"
        self.step, self.at = step, time.monotonic()  # the newest that is saved, and when
        self.fault: ClipkitError | None = None  # of a save in the background, on this rank
        self._ranks = Ranks(apart=True) if self.sharded else Ranks(alone=True)
        self._main = accelerator.is_main_process
        self._thread: threading.Thread | None = None
        self._crash: BaseException | None = None
        self._memory: dict[str, Tensor] = {}  # used again, as fresh memory is slower
        self._frame: dict[str, bytes] = {}

    def save(self, step: int, counts: dict[str, int]) -> None:
        """Saves what the run is after ``step`` steps, when what was begun before is saved.

        In the background, this returns when all that is saved is copied; :meth:`wait` waits for
        the disk, and ``fault`` says on which rank it failed.

        Args:
            step: optimizer steps done.
            counts: of samples and skips, over all ranks.

        Raises:
            CheckpointError: it, or the one before, cannot be written; the same on all ranks.
        """
        self.wait()
        scaler = self.accelerator.scaler
        facts = {
            "step": step,
            "counts": counts,
            "scaler": scaler.state_dict() if scaler else None,
            "data": self.data,
            "world_size": self.accelerator.num_processes,
            "versions": versions(),
        }
        sets = {name: self._copied(name, tensors) for name, tensors in self._tensors().items()}
        # A bias of the logits stands among these files, and changes.
        if self._main and (not self._frame or self.model.logit_bias is not None):
            self._frame = self._model_files()
        failpoint(f"save-{step}-copied")

        def write(checkpoint: Path) -> Any:
            if self._main:
                for name, content in self._frame.items():
                    (checkpoint / "model" / name).parent.mkdir(parents=True, exist_ok=True)
                    (checkpoint / "model" / name).write_bytes(content)
                write_json(checkpoint / "state.json", facts)
            for name, parts in sets.items():
                path = whole_file(checkpoint, name)
                if self.sharded:
                    path = rank_folder(checkpoint, self._ranks.rank) / f"{name}.safetensors"
                save_tensors(path, {key: part.tensor for key, part in parts.items()})
            return index_of(sets) if self.sharded else None

        if self._main or self.sharded:
            self._start(step, write)
        if not self.background:
            self.wait()
        self.step, self.at = step, time.monotonic()

    def wait(self) -> None:
        """Until what is being saved is on the disk; all ranks must call it.

        Raises:
            CheckpointError: it cannot be written; the same on all ranks.
        """
        self.finish()
        if self._crash is not None:
            raise self._crash
        raise_first(self.fault)

    def finish(self) -> None:
        """Until this rank has no more to do for what is being saved, whatever becomes of it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def minutes(self) -> float:
        """Since the last save, or the start."""
        return (time.monotonic() - self.at) / 60

    def save_model(self, path: Path, card: str) -> None:
        """The Hugging Face folder of the model as it is now; all ranks must call it."""
        weights = {}
        for name, value in self.model.backbone.state_dict().items():
            whole = whole_tensor(value)
            if self._main:
                weights[name] = whole
        if self._main:
            save_model(
                self.model, path, self.preprocess, self.tokenizer, card=card, weights=weights
            )

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """What is saved, by file: a set of tensors each, sharded or whole as they are."""
        tensors = {
            "model": dict(self.model.backbone.state_dict()),
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        if beside := beside_backbone(self.model):
            tensors["objectives"] = beside
        if self.average is not None:
            tensors["ema"] = self.average.tensors
        return tensors

    def _copied(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Part]:
        """What this rank writes of a set, on the CPU; all ranks must call it."""
        parts = {}
        for key, value in tensors.items():
            if self.sharded:
                part = part_of(value.detach())
                # What is not sharded is the first rank's to write.
                mine = part.tensor.numel() > 0 if isinstance(value, DTensor) else self._main
            else:
                part, mine = part_of(whole_tensor(value.detach())), self._main
            if mine:
                part.tensor = self._copy(f"{name}::{key}", part.tensor)
                parts[key] = part
        return parts

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        if not self.background:
            return tensor.cpu().contiguous()
        if name not in self._memory:
            self._memory[name] = torch.empty(
                tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
            )
        return self._memory[name].copy_(tensor)

    def _model_files(self) -> dict[str, bytes]:
        """The files of the model's folder besides the weights."""
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "model"
            save_model(self.model, folder, self.preprocess, self.tokenizer, weights={})
            files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def _start(self, step: int, write: Callable[[Path], Any]) -> None:
        def run() -> None:
            try:
                save_checkpoint(
                    self.folder / "checkpoints", step, write, keep=self.keep, ranks=self._ranks
                )
            except ClipkitError as error:
                self.fault = error
            except BaseException as error:  # a thread's own end is seen by no one
                self._crash = error

        self._thread = threading.Thread(target=run, name="saver", daemon=True)
        self._thread.start()


@dataclass
class Restored:
    """Where a run goes on, and what a checkpoint says besides its tensors."""

    checkpoint: Path | None = None
    step: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    data: str | None = None
    damaged: list[str] = field(default_factory=list)

    @torch.no_grad()
    def load(self, model: DualEncoder, optimizer: torch.optim.Optimizer) -> None:
        """Loads weights and moments, each rank what it holds of them.

        Raises:
            CheckpointError: they are of another model.
        """
        if self.checkpoint is None:
            return
        weights = SavedTensors(self.checkpoint, "model")
        own = model.backbone.state_dict()
        odd = own.keys() ^ set(weights.names())
        odd |= {name for name in own.keys() - odd if weights.shape(name) != own[name].shape}
        if odd:
            raise CheckpointError(
                f"{self.checkpoint}: its weights are of another model ({min(odd)} does not fit); "
                "set another output to start anew"
            )
        for name, value in own.items():
            _fill(value, weights, name)
        of_optimizer = SavedTensors(self.checkpoint, "optimizer")
        is_old = not has_tensors(self.checkpoint, "objectives")
        learned = of_optimizer if is_old else SavedTensors(self.checkpoint, "objectives")
        for name, value in beside_backbone(model).items():
            saved_as = f"{name}{_OLD}" if is_old else name
            if saved_as in learned.names():  # else another loss was allowed, and starts anew
                _fill(value, learned, saved_as)
        load_optimizer_tensors(optimizer, model, of_optimizer)

    @torch.no_grad()
    def load_average(self, average: WeightAverage) -> None:
        """Loads an average of weights. What it was not taken of, as before ``train.ema`` was
        set, stays as it is."""
        if self.checkpoint is None or not has_tensors(self.checkpoint, "ema"):
            return
        saved = SavedTensors(self.checkpoint, "ema")
        for name in average.tensors.keys() & set(saved.names()):
            _fill(average.tensors[name], saved, name)


def restore(folder: Path, ranks: Ranks) -> Restored:
    """Finds a run's newest undamaged checkpoint, if there is one; all ranks must call it.

    Raises:
        CheckpointError: all of them are damaged.
    """
    checkpoint, damaged = find_checkpoint(folder / "checkpoints", ranks)
    if checkpoint is None:
        return Restored()
    facts = read_json(checkpoint / "state.json")
    lines = [f"damaged and passed over: {line}; going on from {checkpoint}" for line in damaged]
    return Restored(
        checkpoint, facts["step"], facts["counts"], facts["scaler"], facts["data"], lines
    )


def beside_backbone(model: DualEncoder) -> dict[str, Tensor]:
    """The parameters of the loss, by name: all that are no part of the towers."""
    return {n: p for n, p in model.named_parameters() if not n.startswith("backbone.")}


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: DualEncoder) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: ``name::exp_avg`` and so on."""
    return {
        f"{name}::{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: DualEncoder, saved: SavedTensors
) -> None:
    """Undoes :func:`optimizer_tensors`. Where the run was allowed to change, what is not trained
    any more has no moments, and those of another optimizer begin anew.

    Raises:
        CheckpointError: the state is of another set of parameters.
    """
    parameters = dict(model.named_parameters())
    keys: dict[str, set[str]] = {}
    for full_name in saved.names():
        name, key = full_name.split("::")
        keys.setdefault(name, set()).add(key)
    wanted = moments(optimizer)
    fused = {p for group in optimizer.param_groups if group.get("fused") for p in group["params"]}
    for full_name in saved.names():
        name, key = full_name.split("::")
        if name == "logit_bias" and model.logit_bias is None:
            continue  # of another loss
        if name not in parameters:
            raise CheckpointError(
                f"{saved.checkpoint}: {name} of its optimizer is no parameter of this model"
            )
        parameter = parameters[name]
        if key not in wanted.get(parameter, ()) or not wanted[parameter] <= keys[name]:
            continue
        elif key != "step" and saved.shape(full_name) == parameter.shape:
            value = torch.empty_like(parameter)
            _fill(value, saved, full_name)
            optimizer.state[parameter][key] = value
        else:
            # A fused optimizer counts its steps where the parameters are.
            device = parameter.device if parameter in fused else None
            optimizer.state[parameter][key] = saved.read(full_name).to(device)


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "clipkit": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


def _fill(tensor: Tensor, saved: SavedTensors, name: str) -> None:
    """Reads this rank's part of a tensor into it."""
    part = part_of(tensor.detach())
    if part.tensor.numel():
        part.tensor.copy_(saved.read(name, part.offset, part.tensor.shape))

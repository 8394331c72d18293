"""Config → what a run begins with, or the sentence that says why it cannot begin: the same for
``clipkit train``, ``--dry-run`` and ``--profile``."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from clipkit.config import Config
from clipkit.config.effects import idle_options
from clipkit.data import Reader
from clipkit.display.source_line import remark_source
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.evaluation.suite import Suite, load_suite
from clipkit.models import DualEncoder
from clipkit.models.precision import Choice
from clipkit.training.build import build_accelerator, build_training_model, settle_precision
from clipkit.training.faults import main_first
from clipkit.training.pretrained import resolve_pretrained
from clipkit.training.run import prepare_tokenizer
from clipkit.training.samples import HOLDOUT, check_damage, open_data, total_steps
from clipkit.training.stages import Stage, build_stages
from clipkit.training.step import parts_of
from clipkit.training.tracking import check_trackers


@dataclass
class Start:
    """What a run begins with.

    Attributes:
        config: with what ``model.pretrained`` decides in its place, and ``train.precision``
            settled.
        precision: how ``train.precision`` was settled.
        accelerator: of this rank.
        parts: that the batch of a step is computed in.
        reader: of the training samples.
        eval_readers: of the splits to evaluate on, by name.
        steps: of the whole run.
        suite: of ``eval.suite``, its data opened; None where there is none.
    """

    config: Config
    precision: Choice
    accelerator: Accelerator
    parts: int
    reader: Reader
    eval_readers: dict[str, Reader]
    steps: int
    suite: Suite | None = None

    @property
    def evaluations(self) -> int:
        """How many results an evaluation of some weights has."""
        return len(self.eval_readers) + (len(self.suite.tasks) if self.suite else 0)

    def build(
        self, folder: Path, *, keep: bool = True, device: torch.device | None = None
    ) -> tuple[PreTrainedTokenizerBase, DualEncoder, list[Stage]]:
        """The tokenizer, the model and the stages of the run; all ranks must call it.

        Args:
            folder: the run's.
            keep: a tokenizer that is trained for it.
            device: of the model; none: the accelerator's.

        Raises:
            ClipkitError: they cannot be made, or do not fit one another.
        """
        config, accelerator = self.config, self.accelerator
        tokenizer = prepare_tokenizer(config, self.reader, folder, accelerator, keep=keep)
        model = build_training_model(config, tokenizer, device or accelerator.device)
        return tokenizer, model, build_stages(config, self.steps, model.patch_size)


def begin(config: Config, *, planned: bool = False, **options: Any) -> Start:
    """Opens a run's data and checks all that decides whether it may start, except what its
    folder holds; all ranks must call it.

    Args:
        config: see :mod:`clipkit.config.schema`.
        planned: for the GPUs of ``config.plan``, where it names them, and not for this machine.
        options: of ``Accelerator``.

    Raises:
        ClipkitError: the run cannot start; the same on all ranks.
    """
    check_trackers(config.train.trackers)
    config, precision = settle_precision(config, planned=planned)
    accelerator = build_accelerator(config, **options)
    ranks = accelerator.num_processes
    parts = parts_of(config, ranks)
    if not (planned and config.plan.gpu_tflops):
        _check_offload(config, accelerator.device)
    if accelerator.is_main_process:
        for line in idle_options(config):
            warnings.warn(line, stacklevel=2)
    config = resolve_pretrained(config)
    reader, eval_readers = main_first(  # the others find the index made
        accelerator, lambda: open_data(config, progress=accelerator.is_main_process)
    )
    if accelerator.is_main_process:
        for each in [reader, *(r for n, r in eval_readers.items() if n != HOLDOUT)]:
            remark_source(each)
    check_damage(reader, config.data.max_loss_share)
    batch_size = config.train.batch_size
    if batch_size > len(reader):
        raise ConfigError(
            f"train.batch_size: {batch_size} is more than the {len(reader)} samples of "
            f"{reader.source.path}, so that pairs would be their own negatives; use "
            f"{2 ** int(math.log2(len(reader)))} or less"
        )
    steps = total_steps(config, len(reader))
    suite = main_first(accelerator, lambda: _open_suite(config, accelerator.is_main_process))
    if suite is not None and accelerator.is_main_process:
        suite.remark_sources()
    return Start(config, precision, accelerator, parts, reader, eval_readers, steps, suite)


def _open_suite(config: Config, progress: bool) -> Suite | None:
    if config.eval.suite is None:
        return None
    suite = load_suite(config.eval.suite)
    suite.open(progress=progress)
    return suite


def build_encoder(config: Config) -> Encoder:
    """The model that a run of this config begins with, ready to embed: a new one, or that of
    ``model.pretrained``. Nothing is written.

    Example:
        >>> before = clipkit.build_encoder(clipkit.load_config("configs/emoji.yaml"))

    Raises:
        ClipkitError: the run could not start.
    """
    begun = begin(config)
    tokenizer, model, _ = begun.build(Path(config.output), keep=False)
    return Encoder(model, begun.config.preprocess, tokenizer, begun.accelerator.device)


def _check_offload(config: Config, device: torch.device) -> None:
    """Refuses ``train.offload`` where nothing would come of it, or it cannot be done.

    Raises:
        ConfigError: there is no accelerator, or no launcher.
    """
    if not config.train.offload:
        return
    if device.type == "cpu":
        raise ConfigError(
            "train.offload: this run is on the CPU, and has no accelerator whose memory it would "
            "spare; leave it out"
        )
    if not dist.is_initialized():
        raise ConfigError(
            "train.offload: it offloads what fsdp shards, for which a launcher is needed, also on "
            "one GPU: torchrun --nproc-per-node 1 -m clipkit train …"
        )

"""Config → the precision, the accelerator and the model of a run, for whatever runs its steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, PartialState
from accelerate.utils import (
    InitProcessGroupKwargs,
    broadcast_object_list,
    parse_flag_from_env,
)
from torch import nn
from transformers import PreTrainedTokenizerBase

from clipkit.config import Config
from clipkit.models import DualEncoder, build_model
from clipkit.models.precision import (
    Choice,
    fastest_precision,
    measure_speed,
    say_speed,
)
from clipkit.training.distributed import shard

# What the towers compute in, by ``train.precision``; None: in float32, as the weights are.
_COMPUTED = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def settle_precision(config: Config, *, planned: bool = False) -> tuple[Config, Choice]:
    """Settles ``train.precision: auto`` for a run, once and for all its ranks, which must all call
    it.

    A run that was started before keeps what its ``config.yaml`` says. Else the main process
    measures; see ``fastest_precision``. A precision that the user sets is obeyed, and the advice
    says so where it is measured to be slower than float32.

    Args:
        config: ``output``, ``train``, ``model.vision.width``, ``plan``.
        planned: for the GPUs of ``config.plan``, where it names them.

    Returns:
        The config with ``fp32``, ``bf16`` or ``fp16``, and why.
    """
    state = PartialState(cpu=_on_cpu(), **_process_group(config))
    told: list[Choice | None] = [None]
    if state.is_main_process:
        told = [_choose(config, state.device, planned=planned and bool(config.plan.gpu_tflops))]
    broadcast_object_list(told)
    choice = told[0]
    assert choice is not None
    train = dataclasses.replace(config.train, precision=choice.precision)  # type: ignore[arg-type]
    return dataclasses.replace(config, train=train), choice


def _choose(config: Config, device: torch.device, *, planned: bool) -> Choice:
    asked, width = config.train.precision, config.model.vision.width
    recorded = _recorded_precision(Path(config.output) / "config.yaml")
    instead = "set train.precision=fp32"
    if asked != "auto":
        choice = Choice(asked)
    elif recorded is not None:
        choice = Choice(recorded, "as the run was started")
        instead += " and --allow-change train.precision to go on in float32"
    elif planned:
        return Choice("bf16", "of the GPUs that are planned for")
    else:
        scaled = config.train.distributed != "fsdp"  # whose gradients no scaler takes
        return fastest_precision(device, width=width, fp16=scaled)
    if choice.precision == "fp32" or planned:
        return choice
    speed = measure_speed(device, choice.precision, width=width)
    if speed >= 1:
        return choice
    advice = f"train.precision: {choice.precision} is measured {say_speed(speed)} here; {instead}"
    return dataclasses.replace(choice, advice=advice)


def _recorded_precision(path: Path) -> str | None:
    """``train.precision`` of the run that a ``config.yaml`` is of; None where it does not say."""
    try:
        precision = yaml.safe_load(path.read_text(encoding="utf-8"))["train"]["precision"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return None  # what cannot be read is refused where the run is resumed
    return precision if precision in _COMPUTED else None


def _on_cpu() -> bool:
    # Else torchrun on a CPU is N runs of one rank.
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def _process_group(config: Config) -> dict[str, Any]:
    """Options of the group of ranks: norms of offloaded gradients are summed on the CPU."""
    if not (config.train.offload and torch.cuda.is_available()):
        return {}
    return {"backend": "cuda:nccl,cpu:gloo"}


def build_accelerator(config: Config, **options: Any) -> Accelerator:
    """accelerate's choice of device and ranks.

    Args:
        config: ``train.precision``, settled; ``train.offload``.
        options: of ``Accelerator``, beside these.
    """
    group = _process_group(config)
    return Accelerator(
        kwargs_handlers=[InitProcessGroupKwargs(**group)] if group else None,
        cpu=_on_cpu(),
        # Of fp16 it is the scaler that is wanted; the model itself knows what to compute in.
        mixed_precision="fp16" if config.train.precision == "fp16" else "no",
        **options,
    )


def build_training_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> DualEncoder:
    """The model as ``config.model`` and ``config.train`` have it, on the device; the precision is
    settled.

    Raises:
        ClipkitError: see ``build_model``.
    """
    model = build_model(
        config.model,
        config.preprocess,
        tokenizer,
        init_temperature=config.loss.init_temperature,
        seed=config.seed,
        init_bias=config.loss.init_bias if config.loss.kind == "sigmoid" else None,
    ).to(device)
    model.compute_dtype = _COMPUTED[config.train.precision]
    if share := config.train.activation_checkpointing:
        model.checkpoint_activations(share)
    if config.train.compile:
        model.compile_layers()
    return model


def is_sharded(accelerator: Accelerator, config: Config) -> bool:
    """Whether the model is sharded over ranks, rather than whole on each. Of one rank, it is where
    that serves to keep it in the CPU's memory."""
    several = accelerator.num_processes > 1 or config.train.offload
    return config.train.distributed == "fsdp" and several


def wrap_model(model: DualEncoder, accelerator: Accelerator, config: Config) -> nn.Module:
    """The model as ranks call it: sharded, in DDP, or itself."""
    if is_sharded(accelerator, config):
        return shard(model, accelerator.device, offload=config.train.offload)
    wrapped: nn.Module = accelerator.prepare_model(model)
    return wrapped

"""Config → the accelerator and the model of a run, for whatever runs its steps."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from transformers import PreTrainedTokenizerBase

from clipkit.config import Config
from clipkit.models import DualEncoder, build_model
from clipkit.training.distributed import shard


def build_accelerator(config: Config, **options: Any) -> Accelerator:
    """accelerate's choice of device and ranks.

    Args:
        config: ``train.precision``, ``train.offload``.
        options: of ``Accelerator``, beside these.
    """
    # The norm of offloaded gradients is summed over ranks on the CPU.
    both = [InitProcessGroupKwargs(backend="cuda:nccl,cpu:gloo")]
    return Accelerator(
        kwargs_handlers=both if config.train.offload and torch.cuda.is_available() else None,
        cpu=not torch.accelerator.is_available(),  # else torchrun on a CPU is N runs of one rank
        # Of fp16 it is the scaler that is wanted; the model itself knows what to compute in.
        mixed_precision="fp16" if config.train.precision == "fp16" else "no",
        **options,
    )


def build_training_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> DualEncoder:
    """The model as ``config.model`` and ``config.train`` have it, on the device.

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
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    model.compute_dtype = dtypes.get(config.train.precision)
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

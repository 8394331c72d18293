"""Batches → gradients: at once, in parts with all negatives, or in parts with their own."""

from __future__ import annotations

import contextlib
import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from clipkit.config import Config
from clipkit.errors import ConfigError
from clipkit.losses import contrastive_loss, sigmoid_loss
from clipkit.models import DualEncoder, DualEncoderOutput
from clipkit.training.build import is_sharded
from clipkit.training.distributed import average_whole
from clipkit.types import Batch


@dataclass
class StepResult:
    """The loss of this rank (the mean over ranks is the global one), the scale, and embeddings
    of this rank's (last) batch, (B, D) without a gradient, with the flags and the groups (B, 2)
    that go with them."""

    loss: Tensor
    scale: Tensor
    image_embeds: Tensor
    text_embeds: Tensor
    valid: Tensor | None
    groups: Tensor


def parts_of(config: Config, ranks: int) -> int:
    """How many parts the batch of a step is computed in.

    Raises:
        ConfigError: it does not divide.
    """
    train = config.train
    size = train.batch_size
    _divides("train.batch_size", size, ranks, f"{ranks} ranks")
    if train.micro_batch is not None:
        micro = min(train.micro_batch, size)
        _divides("train.batch_size", size, micro, f"train.micro_batch {micro}")
        _divides("train.micro_batch", micro, ranks, f"{ranks} ranks")
        return size // micro
    unit = ranks * train.accumulate
    _divides("train.batch_size", size, unit, f"{ranks} ranks × train.accumulate {train.accumulate}")
    return train.accumulate


def _divides(key: str, value: int, unit: int, what: str) -> None:
    if value % unit:
        near = [n for n in (value // unit * unit, -(-value // unit) * unit) if n]
        raise ConfigError(
            f"{key}: {value} is not divisible by {what}; use {' or '.join(map(str, near))}"
        )


class TrainStep:
    """Computes the gradients of one step.

    Args:
        wrapped: the model as it is called: in DDP, sharded, or itself.
        model: the same model, bare.
        accelerator: for precision and the backward pass.
        config: ``loss``, ``train`` and ``seed``.
    """

    def __init__(
        self, wrapped: nn.Module, model: DualEncoder, accelerator: Accelerator, config: Config
    ) -> None:
        self.wrapped, self.model, self.accelerator = wrapped, model, accelerator
        self.config = config
        self.sharded = is_sharded(accelerator, config)
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(self, parts: list[Batch], *, all_valid: bool) -> StepResult:
        """Leaves the gradient of the global loss in every parameter, averaged over ranks.

        Args:
            parts: of this step's batch; of one shape on all ranks.
            all_valid: whether every row of every rank is valid.
        """
        if len(parts) > 1 and self.config.train.micro_batch is not None:
            result = self._cached(parts, all_valid)
        else:
            result = self._plain(parts, all_valid)
        if self.sharded:
            average_whole(self.parameters)
        return result

    def _plain(self, parts: list[Batch], all_valid: bool) -> StepResult:
        total: Tensor | float = 0.0
        for number, part in enumerate(parts):
            with self._sync(number == len(parts) - 1):
                output = self._forward(part)
                loss = self._loss(output, [part], all_valid) / len(parts)
                self.accelerator.backward(loss)
            total = total + loss.detach()
        assert isinstance(total, Tensor)
        return self._result(total, output, [part], all_valid)

    def _cached(self, parts: list[Batch], all_valid: bool) -> StepResult:
        """Embeddings first, without what a backward pass needs; the loss and its gradient by
        the embeddings; then each part again, with that gradient. Random numbers are those of the
        part, so both passes drop out the same.

        Reference: GradCache, https://arxiv.org/abs/2101.06983, section 3.
        """
        with torch.no_grad():
            outputs = [self._forward(part) for part in parts]
        first = outputs[0]
        images = torch.cat([_given(output.image_embeds) for output in outputs])
        texts = torch.cat([_given(output.text_embeds) for output in outputs])
        leaves = [images, texts, first.scale.clone()]
        if first.bias is not None:
            leaves.append(first.bias.clone())
        for leaf in leaves:
            leaf.requires_grad_()
        whole = DualEncoderOutput(*leaves)
        loss = self._loss(whole, parts, all_valid)
        gradients = torch.autograd.grad(loss, leaves)
        size = len(images) // len(parts)
        by_images, by_texts = (torch.split(gradient, size) for gradient in gradients[:2])
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with self._sync(last):
                output = self._forward(part)
                product = (_given(output.image_embeds) * by_images[number]).sum()
                product = product + (_given(output.text_embeds) * by_texts[number]).sum()
                if last:  # the scale and the bias belong to the batch: they count once
                    product = product + output.scale * gradients[2]
                    if output.bias is not None:
                        product = product + output.bias * gradients[3]
                self.accelerator.backward(product)
        return self._result(loss, whole, parts, all_valid)

    def _forward(self, part: Batch) -> DualEncoderOutput:
        # Dropout, like all else that is random, is a function of (seed, step).
        torch.manual_seed(_seed(self.config.seed, part.step, self.accelerator.process_index))
        output: DualEncoderOutput = self.wrapped(**self._inputs(part))
        return output

    def _inputs(self, part: Batch) -> dict[str, Any]:
        """What the model takes, on its device."""
        device = self.accelerator.device
        return {
            "pixel_values": part.pixel_values.to(device, non_blocking=True),
            "input_ids": self.model.pack(part.input_ids).to(device),
        }

    def _loss(self, output: DualEncoderOutput, parts: list[Batch], all_valid: bool) -> Tensor:
        config = self.config.loss
        images, texts = _given(output.image_embeds), _given(output.text_embeds)
        groups = _groups(parts) if config.duplicates == "positives" else None
        bf16 = config.matmul == "bf16"
        valid = _valid(parts, all_valid)
        if config.kind == "sigmoid":
            bias = _given(output.bias)
            return sigmoid_loss(
                images, texts, output.scale, bias, valid, groups=groups, bf16_matmul=bf16
            )
        return contrastive_loss(
            images,
            texts,
            output.scale,
            valid,
            groups=groups,
            label_smoothing=config.label_smoothing,
            bf16_matmul=bf16,
        )

    def _sync(self, last: bool) -> AbstractContextManager[None]:
        """DDP averages once a step. FSDP does with each part, so that no gradient is whole."""
        if last or not isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        waiting: AbstractContextManager[None] = self.wrapped.no_sync()
        return waiting

    def _result(
        self, loss: Tensor, output: DualEncoderOutput, parts: list[Batch], all_valid: bool
    ) -> StepResult:
        return StepResult(
            loss.detach(),
            output.scale.detach(),
            _given(output.image_embeds).detach(),
            _given(output.text_embeds).detach(),
            _valid(parts, all_valid),
            _groups(parts),
        )


def _groups(parts: list[Batch]) -> Tensor:
    return torch.cat([_given(part.groups) for part in parts])


def _valid(parts: list[Batch], all_valid: bool) -> Tensor | None:
    return None if all_valid else torch.cat([part.valid for part in parts])


def _given(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _seed(seed: int, step: int, rank: int) -> int:
    """One stream of random numbers for each step (or part of one) and rank."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1

"""Weights → their moving average, which often does better than any single step's weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WeightAverage:
    """An exponential moving average of the trainable parameters, in float32.

    Args:
        model: bare, whole or sharded; the average is as it is. It begins at its weights.
        decay: what is kept of the average at each step.

    Attributes:
        tensors: the average, by the parameters' names.

    Reference: https://arxiv.org/abs/2411.18704; the warm-up of the decay is that of TensorFlow's
    ``ExponentialMovingAverage``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone().float() for name, p in weights.items()}
        self._weights = list(weights.values())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights in.

        Args:
            step: that they come from, 0 for the first. A decay of (1 + step) / (10 + step), where
                that is less, keeps the weights of the start from staying in a short run.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        averages, weights = zip(*self._pairs(), strict=True)
        torch._foreach_lerp_(averages, [weight.float() for weight in weights], 1 - decay)

    @contextlib.contextmanager
    def in_place_of_weights(self) -> Iterator[None]:
        """The model has the average inside, and its weights again after, to the last bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in self._pairs():
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _pairs(self) -> list[tuple[Tensor, Tensor]]:
        """(average, weight), of a sharded one this rank's part."""
        pairs = zip(self.tensors.values(), self._weights, strict=True)
        return [(_local(average), _local(weight)) for average, weight in pairs]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor

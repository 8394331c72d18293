"""Model, batch → the memory that a training step takes, without the step itself.

Two passes over a few samples are watched: what is alive after each operation. It grows linearly
with the batch, at each operation by another amount, so two passes tell all larger ones.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clipkit.models import DualEncoder
from clipkit.models.flops import text_lengths

Kind = Literal["ddp", "fsdp"]
_LENGTHS = 3  # different captions in a pass, each twice in the smaller, four times in the larger


@dataclass(frozen=True)
class Timeline:
    """Bytes alive after each operation of a forward and a backward pass, besides what was there
    before: ``fixed`` whatever the batch, and ``each`` a sample."""

    fixed: Tensor
    each: Tensor

    def peak(self, samples: int) -> float:
        """The most bytes at one time, for a batch of ``samples``."""
        return float((self.fixed + samples * self.each).max().clamp(min=0))


@dataclass(frozen=True)
class StepMemory:
    """What a step keeps in the memory of one rank, in bytes.

    Attributes:
        batch_size: pairs of a step, B, over all ranks.
        parts: that they are computed in.
        embed_dim: D.
        pixels: of an image.
        weights: all of them.
        gradients: of what is trained.
        state: what the optimizer and a moving average keep.
        first: a pass that makes gradients.
        further: a pass that adds to those that are there.
        layer: weights of the largest layer, which FSDP gathers by itself.
        rest: weights of no layer, which FSDP gathers together.
        block: of the loss's logits, at once.
        offload: whether FSDP keeps its shares in the CPU's memory.
    """

    batch_size: int
    parts: int
    embed_dim: int
    pixels: int
    weights: float
    gradients: float
    state: float
    first: Timeline
    further: Timeline
    layer: float
    rest: float
    block: float
    offload: bool

    def bytes(self, ranks: int, kind: Kind) -> float:
        """On each of ``ranks`` ranks, of n pairs at a time:

            one rank  weights + state + first(n)
            ddp       weights + state + gradients, in buckets + first(n)
            fsdp      (weights + state + gradients) / ranks, unless offloaded, + further(n) +
                      gathered: the rest, two layers, and their gradients
            parts     further(n) + gradients in the place of first(n)
            all       + pixels of all parts + texts of B, their gradient, and, with several ranks,
                      what others add to it + images and their gradient + three blocks of logits
            parts     + texts and images once more, as the parts leave them

        What is not known: what a library keeps for itself, and what an allocator holds in
        between.
        """
        own = self.batch_size // ranks
        many = self.parts > 1
        passed = (self.further if many or self._sharded(ranks, kind) else self.first).peak(
            own // self.parts
        )
        held = self.weights + self.state + (self.gradients if many else 0)
        if self._sharded(ranks, kind):
            shares = (self.weights + self.state + self.gradients) / ranks
            held = 0.0 if self.offload else shares
            held += 2 * self.rest + 4 * self.layer
        elif ranks > 1:
            held += self.gradients
        texts = (3 if ranks > 1 else 2) * self.batch_size
        embeddings = texts + 2 * own + (2 * own if many else 0)
        loss = 4 * self.embed_dim * embeddings + 3 * self.block
        return held + passed + own * self.pixels + loss

    def _sharded(self, ranks: int, kind: Kind) -> bool:
        return kind == "fsdp" and (ranks > 1 or self.offload)


def watch_passes(
    model: DualEncoder, pixel_values: Tensor, input_ids: Tensor
) -> tuple[Timeline, Timeline]:
    """What a forward and backward pass through both towers keeps alive: one that makes
    gradients, and one that adds to them.

    Args:
        model: in training mode.
        pixel_values: (B, 3, H, W) uint8, of any B.
        input_ids: (B, L).
    """
    some = _typical(model, input_ids)
    first: list[Tensor] = []
    further: list[Tensor] = []
    for times in (2, 4):  # not once: operations on one of a kind are others
        rows = some.repeat(times)
        model.zero_grad(set_to_none=True)
        for passes in (first, further):
            passes.append(_alive(model, pixel_values[rows], input_ids[rows]))
    model.zero_grad(set_to_none=True)
    return _line(first, len(some)), _line(further, len(some))


def _line(passes: list[Tensor], count: int) -> Timeline:
    """From passes over 2 and 4 times ``count`` samples."""
    small, large = passes
    assert len(small) == len(large)  # texts of the same lengths, so the same operations
    each = (large - small) / (2 * count)
    return Timeline(small - 2 * count * each, each)


def _typical(model: DualEncoder, input_ids: Tensor) -> Tensor:
    """Rows of texts whose lengths are spread as those of all."""
    order = text_lengths(model, input_ids).argsort()
    rows: Tensor = order[((torch.arange(_LENGTHS) + 0.5) / _LENGTHS * len(order)).long()]
    return rows


def _alive(model: DualEncoder, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
    """(operations,) bytes that were not alive before."""
    with _Alive() as alive:
        output = model(pixel_values=pixel_values, input_ids=input_ids)
        assert output.image_embeds is not None
        assert output.text_embeds is not None
        torch.autograd.backward(output.image_embeds.sum() + output.text_embeds.sum())
    return torch.tensor(alive.bytes, dtype=torch.float64)


class _Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up what operations make, and takes off what is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.bytes: list[int] = []
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {x.untyped_storage()._cdata for x in _tensors((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            number = storage._cdata
            if number not in given and number not in self._seen:
                self._seen.add(number)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, number, storage.nbytes())
        self.bytes.append(self.now)
        return result

    def _freed(self, number: int, size: int) -> None:
        self._seen.discard(number)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]

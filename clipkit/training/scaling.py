"""Rates of a cluster → step time, communication and efficiency from 1 to 4,096 GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clipkit.training.memory import Kind

RANKS = tuple(2**power for power in range(13))  # 1 to 4,096
_LATENCY = 20e-6  # seconds of one hop of a collective between GPUs
_BUCKET = 25 * 2**20  # bytes that DDP averages at once


@dataclass(frozen=True)
class Work:
    """What one step of a run asks for, whatever the number of GPUs.

    Attributes:
        batch_size: pairs, B.
        embed_dim: D.
        flops: of the towers, a pair, forward and backward, F.
        forwards: forward passes of a step for one backward pass: 1; 2 with gradient caching;
            with activation checkpointing its share more.
        parts: that a step's batch is computed in.
        weights: bytes that FSDP gathers for a pass, W: layers in what they compute in, and the
            rest in float32.
        gradients: bytes of those that are trained, G.
        layers: that FSDP gathers one by one.
        matrices: bytes of the updates that Muon computes, M; 0 without it.
    """

    batch_size: int
    embed_dim: int
    flops: float
    forwards: float
    parts: int
    weights: float
    gradients: float
    layers: int
    matrices: float = 0.0


@dataclass(frozen=True)
class Rates:
    """What the GPUs do.

    Attributes:
        towers: FLOP/s of model FLOPs that training the towers reaches on one GPU.
        loss: FLOP/s of the loss's matrix products.
        node: bytes a second that a GPU sends within a node.
        network: bytes a second that a node sends to others, all its GPUs together.
        per_node: GPUs of a node.
    """

    towers: float
    loss: float
    node: float
    network: float
    per_node: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: what computes, what all collectives take, and what of them is not
    hidden; bytes that a GPU sends."""

    compute: float
    collectives: float
    exposed: float
    sent: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed


def step_time(work: Work, ranks: int, rates: Rates, kind: Kind) -> StepTime:
    """One step on ``ranks`` GPUs, B pairs over all of them.

    With n GPUs, s = (n - 1) / n, and w = W / n bytes sharded:

        towers      F · B/n · (2 + forwards) / 3 / rate
        loss        8 · B/n · B · D / rate: 4 products, of images against all texts
        embeddings  texts gathered, their gradient all-reduced: s · 4BD + 2s · 4BD bytes
        ddp         gradients all-reduced: 2s · G, hidden behind all but the last bucket's
                    share of the backward pass
        fsdp        weights gathered by each forward and backward pass of each part, gradients
                    scattered by each part: s · (W · (forwards + 1) + G) · parts, hidden behind
                    the towers but for the first layer's gather and the last one's scatter
        muon        each rank tells the others its share of the updates; with fsdp, matrices are
                    made whole before: s · M or 2s · M bytes

    A collective takes bytes / bandwidth and 20 µs a hop, of log₂ n hops in a tree. Bandwidth is
    that of the slowest link on the ring: a GPU's within a node, and between nodes no more than a
    node sends. Embeddings and updates cannot be hidden. A GPU with few pairs uses less of what it
    can do, which this does not know, nor that it may wait for data or for another GPU.

    Reference: rings, https://arxiv.org/abs/1802.05799, section 2; FSDP,
    https://arxiv.org/abs/2304.11277, section 3.
    """
    own = work.batch_size / ranks
    towers = work.flops * own * (2 + work.forwards) / 3 / rates.towers
    loss = 8 * own * work.batch_size * work.embed_dim / rates.loss
    if ranks == 1:
        return StepTime(towers + loss, 0.0, 0.0, 0.0)
    share = (ranks - 1) / ranks
    bandwidth = rates.node if ranks <= rates.per_node else min(rates.node, rates.network)
    hop = _LATENCY * math.ceil(math.log2(ranks))
    embeddings = share * 3 * 4 * work.batch_size * work.embed_dim
    updates = share * work.matrices * (2 if kind == "fsdp" else 1)
    exposed = (embeddings + updates) / bandwidth + 3 * hop
    backward = towers * 2 / (2 + work.forwards)
    if kind == "ddp":
        sent = 2 * share * work.gradients
        buckets = max(1, math.ceil(work.gradients / _BUCKET))
        took = sent / bandwidth + 2 * hop * buckets
        hidden = min(took, backward / work.parts) * (1 - 1 / buckets)
    else:
        times = work.parts * (work.forwards + 1)
        sent = share * (work.weights * times + work.gradients * work.parts)
        collectives = (work.layers + 1) * (times + work.parts)
        took = sent / bandwidth + hop * collectives
        hidden = min(took * (1 - 1 / (work.layers + 1)), towers)
    return StepTime(
        towers + loss, took + exposed, exposed + took - hidden, sent + embeddings + updates
    )

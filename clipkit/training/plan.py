"""Config → what the run would cost, without running it: ``clipkit train --dry-run``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from clipkit.config import Config
from clipkit.config.schema import PlanConfig
from clipkit.data import build_train_loader
from clipkit.data.reader import samples_text
from clipkit.errors import DataError
from clipkit.losses.blocks import block_bytes
from clipkit.models import DualEncoder
from clipkit.models.flops import (
    image_flops,
    kept_patches,
    text_flops,
    text_lengths,
    training_factors,
)
from clipkit.training.ceiling import find_ceiling
from clipkit.training.memory import Kind, StepMemory, watch_passes
from clipkit.training.optim import build_optimizer, muon_dtype
from clipkit.training.scaling import RANKS, Rates, Work, step_time
from clipkit.training.stages import Stage
from clipkit.training.start import begin
from clipkit.types import Batch

_PROBE = 64  # samples of the passes that are timed
_SINGLE = 1 / 16  # of a GPU's FLOP/s in bf16, without tensor cores: what float32 gets


def dry_run(config: Config) -> str | None:
    """Loads one batch, watches a few small passes, and says what the run would take.

    Returns:
        On the main process a table: samples, steps, parameters, FLOPs, memory, hours. A second
        one, of step time, communication and efficiency by the number of GPUs, where several are
        asked for: by a key of ``plan``, by a launcher, or by a machine that has several. None
        on other ranks.

    Raises:
        ClipkitError: whatever would stop the run at its start.
    """
    # Not compiled: operations are watched one by one.
    plain = dataclasses.replace(config, train=dataclasses.replace(config.train, compile=False))
    begun = begin(plain, planned=True)
    tokenizer, model, stages = begun.build(
        Path(config.output), keep=False, device=torch.device("cpu")
    )
    if not begun.accelerator.is_main_process:
        return None
    config, reader, steps, parts = begun.config, begun.reader, begun.steps, begun.parts
    preprocess, batch_size = config.preprocess, config.train.batch_size
    loader = build_train_loader(
        reader,
        config.data,
        preprocess,
        tokenizer,
        seed=config.seed,
        batch_size=batch_size,
        start_step=0,
        steps=1,
    )
    batch = next(iter(loader))
    loader.close()
    if batch.skipped and not batch.valid.any() and config.data.max_skip_share < 1:
        first = batch.skipped[0]
        raise DataError(
            f"{first.origin}: {first.reason}; none of the {len(batch.valid)} samples of a batch "
            "can be used"
        )
    model.train()
    works = [_work(model, _cut(model, batch, stage), config, parts) for stage in stages]
    work, largest = max(zip(works, stages, strict=True), key=lambda pair: pair[0].flops)
    most = _cut(model, batch, largest)
    memory = _memory(model, most, config, parts)
    rates, told = _rates(model, most, config, work)
    whole = list(zip(works, (stage.end - stage.first for stage in stages), strict=True))
    flops = sum(each.flops * count for each, count in whole) * batch_size
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    tokens = float(text_lengths(model, most.input_ids).float().mean())
    epochs = steps * batch_size / len(reader)
    kind, ranks = config.train.distributed, begun.accelerator.num_processes
    several = config.plan != PlanConfig() or ranks > 1 or torch.accelerator.device_count() > 1
    rows = [
        ("samples", f"{samples_text(reader)} in {len(reader.shard_sizes):,} shards"),
        ("steps", f"{steps:,} of {batch_size:,} pairs, {epochs:.1f} epochs"),
        *_stage_rows(stages, works, largest),
        ("vocabulary", f"{len(tokenizer):,} tokens, captions up to {preprocess.context_length}"),
        ("parameters", f"{total / 1e6:.2f} M, {trained / 1e6:.2f} M of them trained"),
        (
            "FLOPs a sample",
            f"{work.flops / 1e9:.3f} G forward and backward, captions of {tokens:.1f} tokens",
        ),
        ("FLOPs of the run", f"{flops / 1e15:.3f} P"),
        (
            "memory estimate",
            f"{_gib(memory.bytes(1, kind))} on one rank: weights, gradients and optimizer "
            f"{_gib(memory.weights + memory.gradients + memory.state)}",
        ),
        (
            "one batch",
            f"pixel_values {tuple(batch.pixel_values.shape)} uint8, input_ids "
            f"{tuple(batch.input_ids.shape)}, {int((~batch.valid).sum())} skipped",
        ),
        ("precision", str(begun.precision)),
        *([("", begun.precision.advice)] if begun.precision.advice else []),
        ("rates", told),
        *_time_rows(config, rates, whole, several),
    ]  # fmt: skip
    lines = [f"{name:<17} {text}" for name, text in rows]
    if several:
        lines += ["", *_by_ranks(config, work, memory, rates, whole)]
    return "\n".join(lines)


def _time_rows(
    config: Config, rates: Rates, whole: list[tuple[Work, int]], several: bool
) -> list[tuple[str, str]]:
    """How long this machine takes alone; of several GPUs, how they are connected."""
    plan = config.plan
    if several:
        links = (
            f"{plan.gpus_per_node} GPUs a node; {plan.gpu_gb_s:g} GB/s of a GPU in it, "
            f"{plan.node_gb_s:g} GB/s of a node"
        )
        return [("links", links)]
    seconds = [step_time(work, 1, rates, "ddp").seconds for work, _ in whole]
    hours = sum(s * count for s, (_, count) in zip(seconds, whole, strict=True)) / 3600
    return [("time", f"{max(seconds):.3g} s a step, {hours:.3g} hours the whole run")]


def _by_ranks(
    config: Config,
    work: Work,
    memory: StepMemory,
    rates: Rates,
    whole: list[tuple[Work, int]],
) -> list[str]:
    """A line for each number of GPUs that the batch divides by.

    Args:
        config: ``train``.
        work: of a step.
        memory: likewise.
        rates: of the GPUs.
        whole: what the run's steps are: the work of one, and how many there are of it.
    """
    train = config.train
    kinds: tuple[Kind, ...] = ("ddp", "fsdp")
    lines = [
        f"{'':>5} {'pairs':>7} | " + " | ".join(f"{kind:<32}" for kind in kinds) + " |   whole run",
        f"{'GPUs':>5} {'each':>7} | "
        + " | ".join(f"{'GiB':>6} {'sent MiB':>9} {'s/step':>8} {'eff.':>6}" for _ in kinds)
        + f" | {train.distributed:>5}, hours",
    ]
    for ranks in RANKS:
        if train.batch_size % (ranks * work.parts):
            break
        cells = []
        for kind in kinds:
            one = step_time(work, 1, rates, kind).seconds
            time = step_time(work, ranks, rates, kind)
            efficiency = one / ranks / time.seconds
            cells.append(
                f"{memory.bytes(ranks, kind) / 2**30:>6.2f} {time.sent / 2**20:>9.1f} "
                f"{time.seconds:>8.4f} {efficiency:>6.0%}"
            )
        times = (
            step_time(each, ranks, rates, train.distributed).seconds * count
            for each, count in whole
        )
        hours = sum(times) / 3600
        lines.append(
            f"{ranks:>5} {train.batch_size // ranks:>7} | {' | '.join(cells)} | {hours:>12.2f}"
        )
    else:
        return lines
    parts = f" in {work.parts} parts" if work.parts > 1 else ""
    return [*lines, f"{ranks:>5} or more do not divide train.batch_size {train.batch_size}{parts}"]


def _stage_rows(stages: list[Stage], works: list[Work], largest: Stage) -> list[tuple[str, str]]:
    if len(stages) == 1:
        return []
    told = []
    for stage, work in zip(stages, works, strict=True):
        told += [("stage", str(stage)), ("", f"{work.flops / 1e9:.3f} GFLOPs a sample")]
    steps = f"steps {largest.first + 1} to {largest.end}"
    told.append(("planned for", f"{steps}, the largest stage; the whole run counts all stages"))
    return told


def _cut(model: DualEncoder, batch: Batch, stage: Stage) -> Batch:
    """A batch of the model's own size in the shapes of a stage, which the model is set to."""
    model.patch_dropout = stage.patch_dropout
    size, length = stage.preprocess.image_size, stage.preprocess.context_length
    ids, lengths = batch.input_ids[:, :length].clone(), text_lengths(model, batch.input_ids)
    longer = lengths > length
    ids[longer, -1] = batch.input_ids[longer, lengths[longer] - 1]  # the end
    return dataclasses.replace(
        batch, pixel_values=batch.pixel_values[:, :, :size, :size], input_ids=ids
    )


def _work(model: DualEncoder, batch: Batch, config: Config, parts: int) -> Work:
    image_factor, text_factor = training_factors(model)
    _, _, height, width = batch.pixel_values.shape
    lengths = text_lengths(model, batch.input_ids)
    flops: float = image_factor * image_flops(model, kept_patches(model, height, width))
    flops += text_factor * text_flops(model, lengths) / len(lengths)
    cached = parts > 1 and config.train.micro_batch is not None
    layers = sum(_bytes(layer.parameters()) for layer in model.blocks())
    rounded = 0.5 if model.compute_dtype is not None else 1.0
    return Work(
        batch_size=config.train.batch_size,
        embed_dim=model.embed_dim,
        flops=flops,
        forwards=1 + cached + float(config.train.activation_checkpointing),
        parts=parts,
        weights=_bytes(model.parameters()) - layers + layers * rounded,
        gradients=_bytes(p for p in model.parameters() if p.requires_grad),
        layers=len(model.blocks()),
        matrices=sum(p.numel() for p in _matrices(model, config))
        * muon_dtype(config.train.precision).itemsize,
    )


def _memory(model: DualEncoder, batch: Batch, config: Config, parts: int) -> StepMemory:
    first, further = watch_passes(model, batch.pixel_values, batch.input_ids)
    trained = _bytes(p for p in model.parameters() if p.requires_grad)
    layers = [_bytes(layer.parameters()) for layer in model.blocks()]
    size = config.train.batch_size
    return StepMemory(
        batch_size=size,
        parts=parts,
        embed_dim=model.embed_dim,
        pixels=batch.pixel_values[0].nbytes,
        weights=_bytes(model.parameters()),
        gradients=trained,
        state=_optimizer_bytes(model, config) + (trained if config.train.ema else 0),
        first=first,
        further=further,
        layer=max(layers),
        rest=_bytes(model.parameters()) - sum(layers),
        block=block_bytes(size, size, gpu=config.plan.gpu_tflops is not None),
        offload=config.train.offload,
    )


def _rates(model: DualEncoder, batch: Batch, config: Config, work: Work) -> tuple[Rates, str]:
    """What a GPU does, given or measured here; and how that is known."""
    plan = config.plan
    bf16 = config.loss.matmul == "bf16"
    if plan.gpu_tflops is not None:
        peak = plan.gpu_tflops * 1e12
        towers, loss = peak * plan.utilisation, peak * (1 if bf16 else _SINGLE) * plan.utilisation
        told = f"GPUs of {plan.gpu_tflops:g} TFLOP/s, {plan.utilisation:.0%} of it used"
    else:
        pixels, ids = batch.pixel_values[:_PROBE], batch.input_ids[:_PROBE]
        for _ in range(2):  # the first makes ready
            begin = time.perf_counter()
            output = model(pixel_values=pixels, input_ids=ids)
            assert output.image_embeds is not None
            assert output.text_embeds is not None
            torch.autograd.backward(output.image_embeds.sum() + output.text_embeds.sum())
            seconds = time.perf_counter() - begin
        model.zero_grad(set_to_none=True)
        towers = work.flops * len(ids) * (2 + work.forwards) / 3 / seconds
        loss = find_ceiling(torch.device("cpu"), config.loss.matmul).flops_per_second
        told = f"{towers / 1e12:.3f} TFLOP/s, measured here"
    rates = Rates(
        towers=towers,
        loss=loss,
        node=plan.gpu_gb_s * 1e9,
        network=plan.node_gb_s * 1e9,
        per_node=plan.gpus_per_node,
    )
    return rates, told


def _optimizer_bytes(model: DualEncoder, config: Config) -> int:
    """Two moments a parameter; Muon has one."""
    trained = (p for p in model.parameters() if p.requires_grad)
    return 2 * _bytes(trained) - _bytes(_matrices(model, config))


def _matrices(model: DualEncoder, config: Config) -> list[nn.Parameter]:
    """What Muon updates."""
    optimizer = build_optimizer(model.parameters_by_depth(), config.optim, config.train.precision)
    groups = (group for group in optimizer.param_groups if "betas" not in group)
    return [p for group in groups for p in group["params"]]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"

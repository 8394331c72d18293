"""Config → what the run would cost, without running it: ``clipkit train --dry-run``."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from clipkit.config import Config
from clipkit.data import build_train_loader
from clipkit.data.reader import samples_text, some_captions
from clipkit.data.tokenize import load_tokenizer, train_tokenizer
from clipkit.losses import contrastive_loss
from clipkit.models import DualEncoder
from clipkit.training.build import build_training_model
from clipkit.training.run import resolve_preprocess
from clipkit.training.samples import open_data, total_steps
from clipkit.types import Batch

_PROBE = 8  # samples that one measured forward pass takes


def dry_run(config: Config) -> str:
    """Loads one batch, measures one small forward pass, and says what the run would take.

    Returns:
        A table: samples, steps, parameters, FLOPs a sample (forward and backward), memory.

    Raises:
        ClipkitError: whatever would stop the run at its start.
    """
    config = resolve_preprocess(config)
    reader, _ = open_data(config)
    preprocess = config.preprocess
    if preprocess.tokenizer is None:
        tokenizer = train_tokenizer(
            some_captions(reader),
            vocab_size=preprocess.vocab_size,
            context_length=preprocess.context_length,
        )
    else:
        tokenizer = load_tokenizer(preprocess.tokenizer, context_length=preprocess.context_length)
    model = build_training_model(config, tokenizer, torch.device("cpu"))
    batch_size = config.train.batch_size
    steps = total_steps(config, len(reader))
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
    flops, saved = _measure(model, batch, config)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # fp32 weights; gradients and two moments for what is trained; the logits, their softmax
    # and its gradient, in both directions.
    weights = 4 * total + 12 * trained
    activations = saved * batch_size
    logits = 4 * 6 * batch_size**2
    longest = batch.input_ids.shape[1]
    epochs = steps * batch_size / len(reader)
    rows = [
        ("samples", f"{samples_text(reader)} in {len(reader.shard_sizes):,} shards"),
        ("steps", f"{steps:,} of {batch_size:,} pairs, {epochs:.1f} epochs"),
        ("vocabulary", f"{len(tokenizer):,} tokens, captions up to {preprocess.context_length}"),
        ("parameters", f"{total / 1e6:.2f} M, {trained / 1e6:.2f} M of them trained"),
        (
            "FLOPs a sample",
            f"{flops / 1e9:.3f} G forward and backward, captions of {longest} tokens",
        ),
        ("FLOPs of the run", f"{flops * steps * batch_size / 1e15:.3f} P"),
        (
            "memory estimate",
            f"{_gib(weights + activations + logits)} on one rank: weights, gradients and moments "
            f"{_gib(weights)}, activations {_gib(activations)}, logits {_gib(logits)}",
        ),
        (
            "one batch",
            f"pixel_values {tuple(batch.pixel_values.shape)} uint8, input_ids "
            f"{tuple(batch.input_ids.shape)}, {int((~batch.valid).sum())} skipped",
        ),
    ]  # fmt: skip
    return "\n".join(f"{name:<17} {text}" for name, text in rows)


def _measure(model: DualEncoder, batch: Batch, config: Config) -> tuple[float, float]:
    """(FLOPs, bytes kept for the backward pass), both a sample, of one real forward pass."""
    pixels, ids = batch.pixel_values[:_PROBE], batch.input_ids[:_PROBE]
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    counter = FlopCounterMode(display=False)
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(pixel_values=pixels, input_ids=ids)
        assert output.image_embeds is not None
        assert output.text_embeds is not None
        loss = contrastive_loss(output.image_embeds, output.text_embeds, output.scale)
        torch.autograd.backward(loss)
    return counter.get_total_flops() / len(ids), sum(kept.values()) / len(ids)


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"

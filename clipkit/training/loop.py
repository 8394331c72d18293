"""Batches → two towers → loss → step → checkpoint. The whole of training, top to bottom."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from clipkit._version import __version__
from clipkit.atomic import write_json, write_text
from clipkit.config import Config, dump_config
from clipkit.data import MixtureReader, Reader, build_train_loader, hold_back, open_source
from clipkit.data.reader import LOSSES, samples_text
from clipkit.data.remote import use_cache
from clipkit.encoder import Encoder
from clipkit.errors import (
    CheckpointError,
    ClipkitError,
    ConfigError,
    DataError,
    NonFiniteError,
)
from clipkit.evaluation.report import write_report
from clipkit.evaluation.retrieval import evaluate_retrieval
from clipkit.losses import contrastive_loss
from clipkit.models import DualEncoder, build_model, resolve_attention, save_model
from clipkit.training.card import model_card
from clipkit.training.checkpoint import (
    find_checkpoint,
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    read_json,
    save_checkpoint,
    save_tensors,
)
from clipkit.training.failpoint import failpoint
from clipkit.training.interrupt import interruptible
from clipkit.training.optim import build_optimizer, learning_rate
from clipkit.training.run import check_unchanged, prepare_tokenizer, resolve_preprocess
from clipkit.training.tracking import Clock, RunLog, check_trackers, write_status
from clipkit.types import Batch

MAX_NONFINITE_STEPS = 10  # in a row
T = TypeVar("T")
# Counted beside the skips.
_NOT_SKIPS = ("truncated caption", "replaced text", "non-finite step", "sample")


def train(config: Config, *, allow_change: Sequence[str] = ()) -> Path:
    """Trains a model, or goes on where the run in ``config.output`` stopped.

    Under torchrun or accelerate launch every rank calls it; the global batch, the order of the
    samples and the result (to rounding) are the same for any number of ranks.

    Args:
        config: see :mod:`clipkit.config.schema`.
        allow_change: keys that may differ from those the run was started with.

    Returns:
        The folder of the trained model, ``output/model``: a Hugging Face folder.

    Raises:
        ClipkitError: one of its kinds, by what went wrong; ``status.json`` says so too.
    """
    folder = Path(config.output)
    try:
        with interruptible() as check:
            return _train(config, folder, allow_change, check)
    except ClipkitError as error:
        if folder.is_dir():
            write_status(folder, "failed", error.exit_code, message=str(error))
        raise


def open_data(config: Config, *, progress: bool = True) -> tuple[Reader, dict[str, Reader]]:
    """The training source, and the splits to evaluate on by name."""
    reader: Reader
    use_cache(config.data.cache_gb)
    options = {"progress": progress, "estimate": not config.data.holdout}  # which is of the rows
    if mix := config.data.mix:
        parts = {name: open_source(source, **options) for name, source in mix.items()}
        reader = MixtureReader(parts, [source.weight for source in mix.values()])
    else:
        reader = open_source(config.data.train, **options)
    splits = {}
    if config.data.holdout:
        reader, splits["holdout"] = hold_back(reader, config.data.holdout)
    for name, source in config.data.evaluate.items():
        splits[name] = open_source(source, progress=progress)
    wanted = config.eval.splits
    return reader, {n: r for n, r in splits.items() if wanted is None or n in wanted}


def _main_first(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What ``action`` returns, in the main process first. A user's mistake that it finds there
    ends all ranks alike, and is said once.

    Raises:
        ClipkitError: what ``action`` raised in the main process.
    """
    told: list[ClipkitError | None] = [None]
    if accelerator.is_main_process:
        try:
            result = action()
        except ClipkitError as error:
            told = [error]
    broadcast_object_list(told)
    if told[0] is not None:
        told[0].said = not accelerator.is_main_process
        raise told[0]
    return result if accelerator.is_main_process else action()


def total_steps(config: Config, num_samples: int) -> int:
    """Optimizer steps of a run over ``num_samples`` samples an epoch."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None
    return max(1, math.ceil(config.train.epochs * num_samples / config.train.batch_size))


def _train(
    config: Config, folder: Path, allow_change: Sequence[str], check_interrupt: Callable[[], None]
) -> Path:
    check_trackers(config.train.trackers)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else torchrun on a CPU is N runs of one rank
        mixed_precision={"fp32": "no"}.get(config.train.precision, config.train.precision),
        log_with=config.train.trackers or None,
        project_dir=str(folder),
    )
    device, rank, ranks = accelerator.device, accelerator.process_index, accelerator.num_processes
    batch_size = config.train.batch_size
    if batch_size % ranks:
        near = [n for n in (batch_size // ranks * ranks, -(-batch_size // ranks) * ranks) if n]
        raise ConfigError(
            f"train.batch_size: {batch_size} is not divisible by {ranks} ranks; use "
            f"{' or '.join(map(str, near))}"
        )

    config = resolve_preprocess(config)
    reader, eval_readers = _main_first(  # the others find the index made
        accelerator, lambda: open_data(config, progress=accelerator.is_main_process)
    )
    _check_loss(reader, config.data.max_loss_share)
    if batch_size > len(reader):
        raise ConfigError(
            f"train.batch_size: {batch_size} is more than the {len(reader)} samples of "
            f"{reader.source.path}, so that pairs would be their own negatives; use "
            f"{2 ** int(math.log2(len(reader)))} or less"
        )
    folder.mkdir(parents=True, exist_ok=True)
    changed = _main_first(accelerator, lambda: check_unchanged(config, folder, allow_change))
    tokenizer = prepare_tokenizer(config, reader, folder, accelerator)
    steps = total_steps(config, len(reader))

    model = build_model(
        config.model,
        config.preprocess,
        tokenizer,
        init_temperature=config.loss.init_temperature,
        seed=config.seed,
    ).to(device)
    if accelerator.is_main_process:
        # Not before: a mistake that the tokenizer or the model finds may be put right.
        write_text(folder / "config.yaml", dump_config(config))
    # The device is accelerate's choice, which may be the CPU of a machine with a GPU.
    attention = resolve_attention(config.model.attention, device.type)
    model.backbone.set_attn_implementation(attention)
    optimizer = build_optimizer(model.named_parameters(), config.optim)
    state = _restore(folder, model, optimizer)
    source_key = "data.mix" if config.data.mix else "data.train"
    if state.data not in (None, reader.fingerprint) and source_key not in allow_change:
        raise CheckpointError(
            f"{reader.source.path}: these are not the samples that {folder} was started with "
            "(files, sizes, counts or filters differ), so the order of samples cannot go on. "
            "Restore them, set another output to start anew, or go on with --allow-change "
            f"{source_key}"
        )
    start = state.step
    if start >= steps and (folder / "model").is_dir():
        if accelerator.is_main_process:
            write_status(folder, "done", 0, step=start, total_steps=steps)
            print(f"{folder}: all {steps} steps are done; the model is in {folder / 'model'}")
        return folder / "model"
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    accelerator.init_trackers("clipkit")
    encoder = Encoder(model, config.preprocess, tokenizer, device=device)
    log = RunLog(folder, accelerator, start_step=start, total_steps=steps)

    def totals() -> dict[str, int]:
        return dict(sum(gather_object([counts]), start=Counter(state.counts)))

    def save(step: int) -> None:
        skipped = totals()
        if accelerator.is_main_process:

            def write(path: Path) -> None:
                save_model(model, path / "model", config.preprocess, tokenizer)
                save_tensors(path / "optimizer.safetensors", optimizer_tensors(optimizer, model))
                scaler = accelerator.scaler.state_dict() if accelerator.scaler else None
                facts = {
                    "step": step,
                    "counts": skipped,
                    "scaler": scaler,
                    "data": reader.fingerprint,
                    "world_size": ranks,
                    "versions": versions(),
                }
                write_json(path / "state.json", facts)

            save_checkpoint(folder / "checkpoints", step, write, keep=config.train.keep)
        accelerator.wait_for_everyone()

    def evaluate(step: int) -> dict[str, dict[str, float]]:
        results = {}
        for name, eval_reader in eval_readers.items():
            results[name] = evaluate_retrieval(
                encoder,
                eval_reader,
                batch_size=config.eval.batch_size,
                workers=config.data.workers,
                max_image_pixels=config.data.max_image_pixels,
                rank=rank,
                world_size=ranks,
            )
            log.evaluation(step, name, results[name])
        return results

    if accelerator.is_main_process:
        for line in [*state.damaged, *changed, *_left_out(reader), *reader.damage]:
            log.say(line)
        log.say(_headline(config, reader, model, start, steps, accelerator))
        if isinstance(reader, MixtureReader):
            log.say(_shares(reader, steps * batch_size))
        write_status(folder, "running", None, step=start, total_steps=steps)

    loader = build_train_loader(
        reader,
        config.data,
        config.preprocess,
        tokenizer,
        seed=config.seed,
        batch_size=batch_size,
        start_step=start,
        steps=steps,
        rank=rank,
        world_size=ranks,
    )
    wrapped.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    counts: Counter[str] = Counter()  # of this rank, since this start
    nonfinite = 0
    clock = Clock()
    for batch in loader:
        clock.data_ready()
        check_interrupt()
        step = batch.step
        failpoint(f"step-{step}")
        _count_skipped(batch, counts, config)

        # Dropout, like all else that is random, is a function of (seed, step).
        torch.manual_seed(_seed(config.seed, step, rank))
        lr = learning_rate(step, steps, config.optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
        output = wrapped(
            pixel_values=batch.pixel_values.to(device, non_blocking=True),
            input_ids=batch.input_ids.to(device, non_blocking=True),
        )
        everything = ranks == 1 and bool(batch.valid.all())
        loss = contrastive_loss(
            output.image_embeds,
            output.text_embeds,
            output.scale,
            None if everything else batch.valid,
        )
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(parameters, config.optim.grad_clip or math.inf)
        # The norm is of the averaged gradients, so all ranks agree. A scaler, which fp16 has on
        # a GPU, meets infinities by design and skips those steps itself.
        if torch.isfinite(norm) or accelerator.scaler is not None:
            wrapped_optimizer.step()
            model.clamp_scale(config.loss.max_scale)
            nonfinite = 0
        else:
            counts["non-finite step"] += 1
            nonfinite += 1
            log.say(f"step {step + 1}: the gradient is not finite; the step was skipped")
            if nonfinite >= MAX_NONFINITE_STEPS:
                raise NonFiniteError(
                    f"step {step + 1}: {nonfinite} steps in a row had a gradient that is not "
                    f"finite; lower optim.lr (now {config.optim.lr}), or raise train.precision "
                    f"(now {config.train.precision}). Checkpoints, if any, are as they were"
                )
        wrapped_optimizer.zero_grad(set_to_none=True)

        done = step + 1
        log.advance(done)
        clock.step_done()
        if done % config.train.log_every == 0 or done == steps:
            skipped = totals()
            log.train(
                {
                    "step": done,
                    "loss": float(accelerator.reduce(loss.detach(), "mean")),
                    "scale": float(output.scale.detach()),
                    "lr": lr,
                    "grad_norm": float(norm),
                    "epoch": round(done * batch_size / len(reader), 4),
                    "images_per_second": clock.images_per_second(batch_size),
                    "data_wait": clock.data_wait(),
                    "skipped": sum(n for key, n in skipped.items() if key not in _NOT_SKIPS),
                    "truncated_captions": skipped.get("truncated caption", 0),
                    "captions_not_utf8": skipped.get("replaced text", 0),
                    "skipped_steps": skipped.get("non-finite step", 0),
                }
            )
            clock.restart()
        last = done == steps
        if config.eval.every and done % config.eval.every == 0 and not last:
            evaluate(done)
            wrapped.train()
            clock.restart()
        if done % config.train.save_every == 0 or last:
            save(done)
            clock.restart()
    loader.close()

    results = evaluate(steps)
    result = folder / "model"
    if accelerator.is_main_process:
        card = model_card(config, samples_text(reader), steps, results)
        save_model(model, result, config.preprocess, tokenizer, card=card)
        write_report(folder)
        write_status(folder, "done", 0, step=steps, total_steps=steps, metrics=results)
        log.say(f"the model is in {result}")
    accelerator.wait_for_everyone()
    log.close()
    return result


@dataclass
class _State:
    """What a checkpoint says besides weights and moments."""

    step: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    data: str | None = None
    damaged: list[str] = field(default_factory=list)


def _restore(folder: Path, model: DualEncoder, optimizer: torch.optim.Optimizer) -> _State:
    checkpoint, damaged = find_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return _State()
    weights = load_tensors(checkpoint / "model" / "model.safetensors")
    missing, unexpected = model.backbone.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint}: its weights are of another model ({(missing + unexpected)[0]} does "
            "not fit); set another output to start anew"
        )
    moments = load_tensors(checkpoint / "optimizer.safetensors")
    load_optimizer_tensors(optimizer, model, moments)
    facts = read_json(checkpoint / "state.json")
    lines = [f"damaged and passed over: {line}; going on from {checkpoint}" for line in damaged]
    return _State(facts["step"], facts["counts"], facts["scaler"], facts["data"], lines)


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {
        "clipkit": __version__,
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }


def _shares(reader: MixtureReader, positions: int) -> str:
    """What the mixture comes to, in samples as they are drawn and in epochs of each source."""
    told = []
    for name, part, count in zip(reader.names, reader.parts, reader.drawn(positions), strict=True):
        told.append(
            f"{name} {count / positions:.2%} ({count:,} samples, {count / len(part):.2f} epochs)"
        )
    return f"mixture: {', '.join(told)}"


def _left_out(reader: Reader) -> list[str]:
    path = reader.source.path
    return [f"{path}: left out {count:,} × {why}" for why, count in reader.dropped.items()]


def _check_loss(reader: Reader, most: float) -> None:
    """Refuses a source of which too much is lost to damaged files.

    Raises:
        DataError: the files are named.
    """
    if reader.lost > most * (len(reader) + reader.lost):
        first = " ".join(reader.damage[:3])
        more = f" And {len(reader.damage) - 3} more." if len(reader.damage) > 3 else ""
        raise DataError(
            f"{first}{more} Of {len(reader) + reader.lost} samples {reader.lost} or more are lost, "
            f"more than data.max_loss_share={most} allows. Copy the files anew, or raise that share"
        )


def _count_skipped(batch: Batch, counts: Counter[str], config: Config) -> None:
    """Counts what a batch left out; too much of it ends the run.

    Raises:
        DataError: more than ``data.max_skip_share`` of the samples cannot be used, or more than
            ``data.max_loss_share`` are lost to damage.
    """
    counts["sample"] += len(batch.keys)
    counts["truncated caption"] += batch.truncated
    counts["replaced text"] += batch.replaced
    for skip in batch.skipped:
        counts[skip.reason] += 1
    reasons = {key: n for key, n in counts.items() if key not in _NOT_SKIPS}
    skipped, seen = sum(reasons.values()), counts["sample"]
    lost = sum(counts[reason] for reason in LOSSES)
    if lost > config.data.max_loss_share * max(seen, 10_000):
        first = next(skip for skip in batch.skipped if skip.reason in LOSSES)
        raise DataError(
            f"{first.origin}: {first.reason}; {lost} of {seen} samples are lost to damage, more "
            f"than data.max_loss_share={config.data.max_loss_share} allows. Copy the file anew, "
            "or raise that share"
        )
    # Below 200 samples a share says little.
    if skipped > config.data.max_skip_share * max(seen, 200) or skipped == seen:
        first = batch.skipped[0]
        told = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        raise DataError(
            f"{first.origin}: {first.reason}; {skipped} of {seen} samples cannot be used ({told}), "
            f"more than data.max_skip_share={config.data.max_skip_share} allows. Mend the data or "
            "raise that share"
        )


def _seed(seed: int, step: int, rank: int) -> int:
    """One stream of random numbers for each step and rank."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _headline(
    config: Config,
    reader: Reader,
    model: DualEncoder,
    start: int,
    steps: int,
    accelerator: Accelerator,
) -> str:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    begin = f"going on from step {start}" if start else "from scratch"
    if config.model.pretrained and not start:
        begin = f"from {config.model.pretrained}"
    return (
        f"{samples_text(reader)} samples, {steps:,} steps of {config.train.batch_size}, "
        f"{millions:.1f}M parameters, {accelerator.num_processes} × {accelerator.device.type} "
        f"{config.train.precision}, {begin}"
    )

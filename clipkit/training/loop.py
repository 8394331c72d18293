"""Batches → two towers → loss → step → checkpoint. The whole of training, top to bottom."""

from __future__ import annotations

import contextlib
import math
import signal
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from accelerate.utils import gather_object

from clipkit.atomic import write_text
from clipkit.config import Config, dump_config
from clipkit.data import MixtureReader, build_train_loader
from clipkit.data.reader import samples_text
from clipkit.encoder import Encoder
from clipkit.errors import (
    ClipkitError,
    NonFiniteError,
    Preempted,
    RunRefused,
    exit_code_of,
)
from clipkit.evaluation.card import update_card
from clipkit.evaluation.report import write_report
from clipkit.evaluation.results import RESULTS, check_places
from clipkit.interrupt import Stop, stop_signals
from clipkit.losses import in_batch_accuracy
from clipkit.models import DualEncoder
from clipkit.threads import Load, say_busy
from clipkit.training.ahead import StepBatches
from clipkit.training.build import wrap_model
from clipkit.training.card import model_card
from clipkit.training.ceiling import find_ceiling
from clipkit.training.distributed import Ranks, clip_gradients, is_finite
from clipkit.training.ema import WeightAverage
from clipkit.training.evaluating import Evaluation, results_places, stopped_by
from clipkit.training.failpoint import failpoint
from clipkit.training.faults import dump_samples, main_first, raise_first, rank_lost
from clipkit.training.goes_on import check_goes_on
from clipkit.training.held import Held, lock_run
from clipkit.training.meter import Meter
from clipkit.training.optim import build_optimizer, set_learning_rate
from clipkit.training.peers import Peers
from clipkit.training.run import check_unchanged
from clipkit.training.samples import count_skipped, shares, skips
from clipkit.training.saving import Saver, restore
from clipkit.training.schedule import learning_rate
from clipkit.training.spikes import Spikes
from clipkit.training.start import Start, begin
from clipkit.training.step import TrainStep
from clipkit.training.tracking import RunLog, write_status
from clipkit.types import Batch

MAX_NONFINITE_STEPS = 10  # in a row


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
    held = Held()
    try:
        with stop_signals() as stop:
            try:
                return _train(config, folder, allow_change, stop, held)
            except RuntimeError as error:
                # What torch raises depends on what this rank was doing when another died. The
                # launcher's SIGTERM, which may come at any moment now, still only makes a note.
                if held.peers is not None and (lost := held.peers.lost(patience=10)):
                    held.peers.leave(lost)
                raise error
    except RunRefused:
        raise
    except ClipkitError as error:
        state = "preempted" if isinstance(error, Preempted) else "failed"
        if held.owns(folder):
            write_status(folder, state, error.exit_code, message=str(error))
        raise
    except KeyboardInterrupt:
        if held.owns(folder):
            write_status(folder, "interrupted", 130)
        raise
    except Exception as error:
        if held.owns(folder):
            told = f"{type(error).__name__}: {error}"
            write_status(folder, "failed", exit_code_of(error), message=told)
        raise
    finally:
        held.release()


def _train(
    config: Config, folder: Path, allow_change: Sequence[str], stop: Stop, held: Held
) -> Path:
    load = Load()
    begun = begin(config, log_with=config.train.trackers or None, project_dir=str(folder))
    config, accelerator, reader, steps = begun.config, begun.accelerator, begun.reader, begun.steps
    device, rank, ranks = accelerator.device, accelerator.process_index, accelerator.num_processes
    batch_size, parts = config.train.batch_size, begun.parts
    folder.mkdir(parents=True, exist_ok=True)

    def lock() -> None:
        if accelerator.is_main_process:
            held.lock = lock_run(folder)

    main_first(accelerator, lock)
    held.peers = Peers(lambda sentence: rank_lost(folder, rank, sentence))
    changed = main_first(accelerator, lambda: check_unchanged(config, folder, allow_change))
    places = results_places(folder, begun.suite) if begun.suite is not None else ()
    if places:
        main_first(accelerator, lambda: check_places(*places))
    tokenizer, model, stages = begun.build(folder)
    together = Ranks()
    state = restore(folder, together)
    start = state.step
    main_first(
        accelerator,
        lambda: check_goes_on(config, folder, state, reader, tokenizer, steps, allow_change),
    )
    if start == steps and (folder / "model").is_dir():
        if accelerator.is_main_process:
            write_status(folder, "done", 0, step=start, total_steps=steps)
            print(f"{folder}: all {steps} steps are done; the model is in {folder / 'model'}")
            if places and not (places[0] / RESULTS).exists():
                print(f"To evaluate it: clipkit eval {folder} --suite {config.eval.suite}")
        return folder / "model"
    wrapped = wrap_model(model, accelerator, config)
    optimizer = build_optimizer(model.parameters_by_depth(), config.optim, config.train.precision)
    state.load(model, optimizer)
    average = None if config.train.ema is None else WeightAverage(model, config.train.ema)
    if average is not None:
        state.load_average(average)
    if accelerator.is_main_process:
        # Not before: a mistake that is found on the way here may be put right.
        write_text(folder / "config.yaml", dump_config(config))
    wrapped_optimizer = accelerator.prepare_optimizer(optimizer)
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    accelerator.init_trackers("clipkit")
    encoder = Encoder(model, config.preprocess, tokenizer, device=device)
    evaluates = bool(config.eval.every and start and start % config.eval.every == 0)
    whole = begun.evaluations * (1 if average is None else 2) if evaluates else 0
    log = RunLog(folder, accelerator, start_step=start, total_steps=steps, evaluations=whole)
    evaluation = Evaluation(begun, model, encoder, average, log, stop)
    saver = Saver(
        folder,
        model,
        optimizer,
        average,
        accelerator,
        config.preprocess,
        tokenizer,
        config.train,
        data=reader.fingerprint,
        step=start,
    )
    held.saver = saver
    nonfinite = 0  # steps in a row, the last included

    def totals() -> dict[str, int]:
        return dict(sum(gather_object([counts]), start=Counter(state.counts)))

    def diverged(step: int, what: str) -> NonFiniteError:
        error = NonFiniteError(
            f"step {step}: {what}; lower optim.lr (now {config.optim.lr}), or raise "
            f"train.precision (now {config.train.precision}). Checkpoints, if any, are as they were"
        )
        error.said = rank > 0  # all ranks know
        return error

    def save(step: int) -> None:
        # These would push out of the folder all that there is to go on from.
        if together.most(not is_finite(model))[0]:
            raise diverged(step, "the weights are not finite, so they are not saved")
        saver.save(step, totals())

    def leave(step: int, number: int) -> NoReturn:
        """Ends a run that was asked to stop; what it has done is kept."""
        if step > saver.step and not nonfinite:
            save(step)
        saver.wait()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        kept = f"and saved at step {saver.step}" if saver.step else "before anything was saved"
        raise Preempted(
            f"{folder}: stopped by {signal.Signals(number).name} {kept}; run the same command to "
            f"{'go on' if saver.step else 'begin again'}"
        )

    def evaluate(step: int) -> dict[str, dict[str, float]]:
        try:
            return evaluation.measure(step)
        except Preempted as error:  # raised on all ranks, whichever was asked
            leave(step, stopped_by(error))

    if accelerator.is_main_process:
        for line in [*state.damaged, *changed, *reader.damage]:
            log.say(line)
        log.say(_headline(begun, model, start))
        for advice in filter(None, (begun.precision.advice, say_busy(load))):
            log.say(advice)
        if isinstance(reader, MixtureReader):
            log.say(shares(reader, steps * batch_size))
        write_status(folder, "running", None, step=start, total_steps=steps)

    def staged() -> Generator[Batch]:
        for stage in stages:
            if stage.end <= start:
                continue
            model.patch_dropout = stage.patch_dropout
            if len(stages) > 1:
                log.say(str(stage))
            yield from build_train_loader(
                reader,
                config.data,
                stage.preprocess,
                tokenizer,
                seed=config.seed,
                batch_size=batch_size // parts,
                start_step=max(start, stage.first) * parts,
                steps=stage.end * parts,
                rank=rank,
                world_size=ranks,
            )

    reading = staged()
    batches = StepBatches(reading, parts, device)
    train_step = TrainStep(wrapped, model, accelerator, config)
    wrapped.train()
    counts: Counter[str] = Counter()  # of this rank, since this start
    spikes = Spikes()
    ceiling = find_ceiling(device, config.train.precision)
    num_parameters = sum(p.numel() for p in model.parameters())
    log.begin(
        ceiling,
        ranks=ranks,
        device=device.type,
        precision=config.train.precision,
        precision_reason=begun.precision.reason,
        samples=len(reader),
        parameters=num_parameters,
    )
    if start < steps and together.most(not log.evaluated)[0]:
        # The run ended after this step was saved, and before all of its evaluation.
        evaluate(start)
        wrapped.train()
    meter = Meter(model, ceiling, together, lambda: find_ceiling(device, config.train.precision))
    for step in range(start, steps):
        fault = saver.fault
        disk = fault is not None
        batch: list[Batch] = []
        counted = counts.copy()  # with this batch, of which what is saved before it knows nothing
        try:
            batch = batches.take()
            for part in batch:
                count_skipped(part, counted, config)
        except ClipkitError as error:  # all ranks end together, below
            fault = error
        meter.data_ready()
        failpoint(f"step-{step}")
        faulty, unsaved, stopped, due, invalid = together.most(
            fault is not None,
            disk,
            stop.signal,
            rank == 0 and saver.minutes() >= (config.train.save_minutes or math.inf),
            any(not bool(part.valid.all()) for part in batch),
        )
        if faulty:
            if not unsaved and step > saver.step and not nonfinite:
                save(step)  # it is the data's fault, and no step is lost for it
                saver.wait()
            raise_first(fault)
        if stopped:
            leave(step, stopped)
        if due and step > saver.step and not nonfinite:
            save(step)
        counts = counted

        lr = learning_rate(step, steps, config.optim)
        set_learning_rate(optimizer, lr)
        result = train_step.gradients(batch, all_valid=not invalid)
        if accelerator.scaler is not None:
            accelerator.unscale_gradients(optimizer)
        norms = clip_gradients(model, config.optim.grad_clip)
        if step + 1 < steps:
            meter.starved(batches.prepare())
        # The step's one wait for the device. The norm is of the averaged gradients, so all ranks
        # agree. A scaler, which fp16 has on a GPU, meets infinities by design and skips those
        # steps itself.
        norm, own_loss = torch.stack([norms["all"].to(device), result.loss]).tolist()
        if math.isfinite(norm) or accelerator.scaler is not None:
            wrapped_optimizer.step()
            model.clamp_scale(config.loss.max_scale)
            if average is not None:
                average.update(step)
            nonfinite = 0
        else:
            counts["non-finite step"] += 1
            nonfinite += 1
            where = dump_samples(folder, step, batch, result.loss, norms)
            log.say(
                f"step {step + 1}: the gradient is not finite; the step was skipped, and its "
                f"samples are named in {where}"
            )
            if nonfinite >= MAX_NONFINITE_STEPS:
                raise diverged(
                    step + 1, f"{nonfinite} steps in a row had a gradient that is not finite"
                )
        wrapped_optimizer.zero_grad(set_to_none=True)

        done = step + 1
        log.advance(done)
        meter.step_done(batch)
        if medians := spikes.find(loss=own_loss, grad_norm=norm):
            seen = {"loss": own_loss, "grad_norm": norm, "data_wait": meter.step_share}
            log.spiked(done, seen, medians)
        if done % config.train.log_every == 0 or done == steps:
            skipped = totals()
            accuracy = in_batch_accuracy(
                result.image_embeds, result.text_embeds, result.valid, groups=result.groups
            ).tolist()
            log.train(
                {
                    "step": done,
                    "loss": float(accelerator.reduce(result.loss, "mean")),
                    "scale": float(result.scale),
                    "lr": lr,
                    "lr_lowest": min(group["lr"] for group in optimizer.param_groups),
                    "lr_highest": max(group["lr"] for group in optimizer.param_groups),
                    "accuracy_image_to_text": _rounded(accuracy[0]),
                    "accuracy_text_to_image": _rounded(accuracy[1]),
                    "grad_norm": norm,
                    "grad_norm_vision": float(norms["vision"]),
                    "grad_norm_text": float(norms["text"]),
                    "epoch": round(done * batch_size / len(reader), 4),
                    **meter.rates(),
                    "skipped": sum(skips(skipped).values()),
                    "skipped_by_reason": skips(skipped),
                    "truncated_captions": skipped.get("truncated caption", 0),
                    "captions_not_utf8": skipped.get("replaced text", 0),
                    "skipped_steps": skipped.get("non-finite step", 0),
                }
            )
            meter.restart()
        last = done == steps
        if last and nonfinite:
            raise diverged(done, "the run ends in steps whose gradient is not finite")
        # In a row of such steps the weights are mostly lost, though they may be finite still.
        if (done % config.train.save_every == 0 and not nonfinite) or last:
            save(done)
            meter.restart()
        if config.eval.every and done % config.eval.every == 0 and not last:
            evaluate(done)
            wrapped.train()
            meter.restart()
    reading.close()

    results = evaluate(steps)
    saver.wait()
    final = folder / "model"
    with average.in_place_of_weights() if average else contextlib.nullcontext():
        card = model_card(config, samples_text(reader), steps, results, parameters=num_parameters)
        saver.save_model(final, card)
    evaluation.save(folder, final)
    if accelerator.is_main_process:
        update_card(final)
        write_status(folder, "done", 0, step=steps, total_steps=steps, metrics=results)
        write_report(folder)  # which says what the status is
        log.say(f"the model is in {final}")
    accelerator.wait_for_everyone()
    log.close()
    return final


def _rounded(share: float) -> float | None:
    """Five digits; None where there is no number, as JSON has no NaN."""
    return round(share, 5) if math.isfinite(share) else None


def _headline(begun: Start, model: DualEncoder, start: int) -> str:
    config, accelerator = begun.config, begun.accelerator
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    begin = f"going on from step {start}" if start else "from scratch"
    if config.model.pretrained and not start:
        begin = f"from {config.model.pretrained}"
    return (
        f"{samples_text(begun.reader)} samples, {begun.steps:,} steps of "
        f"{config.train.batch_size}, {millions:.1f}M parameters, "
        f"{accelerator.num_processes} × {accelerator.device.type} "
        f"{begun.precision}, {begin}"
    )

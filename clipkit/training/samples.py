"""What a run trains on: its sources opened, checked before it starts, and counted as it goes."""

from __future__ import annotations

import math
from collections import Counter

from clipkit.config import Config
from clipkit.data import MixtureReader, Reader, hold_back, open_source
from clipkit.data.loader import check_reach
from clipkit.data.reader import LOSSES
from clipkit.data.remote import use_cache
from clipkit.errors import DataError
from clipkit.types import Batch

HOLDOUT = "holdout"  # the split that ``data.holdout`` makes of the training samples
# Counted beside the skips.
_NOT_SKIPS = ("truncated caption", "replaced text", "non-finite step", "sample")


def open_data(config: Config, *, progress: bool = True) -> tuple[Reader, dict[str, Reader]]:
    """The training source, and the splits to evaluate on by name."""
    reader: Reader
    use_cache(config.data.cache_gb)
    of_rows = config.data.holdout or config.data.hard_negatives
    options = {"progress": progress, "estimate": not of_rows}
    if mix := config.data.mix:
        parts = {name: open_source(source, **options) for name, source in mix.items()}
        reader = MixtureReader(parts, [source.weight for source in mix.values()])
    else:
        reader = open_source(config.data.train, **options)
    check_reach(reader, config.data)
    splits = {}
    if config.data.holdout:
        reader, splits[HOLDOUT] = hold_back(reader, config.data.holdout)
    for name, source in config.data.evaluate.items():
        splits[name] = open_source(source, progress=progress)
    wanted = config.eval.splits
    return reader, {n: r for n, r in splits.items() if wanted is None or n in wanted}


def total_steps(config: Config, num_samples: int) -> int:
    """Optimizer steps of a run over ``num_samples`` samples an epoch."""
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.epochs is not None
    return max(1, math.ceil(config.train.epochs * num_samples / config.train.batch_size))


def check_damage(reader: Reader, most: float) -> None:
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


def count_skipped(batch: Batch, counts: Counter[str], config: Config) -> None:
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
    reasons = skips(counts)
    skipped, seen = sum(reasons.values()), counts["sample"]
    lost = sum(counts[reason] for reason in LOSSES)
    if lost > config.data.max_loss_share * max(seen, 10_000):
        first = next(skip for skip in batch.skipped if skip.reason in LOSSES)
        raise DataError(
            f"{first.origin}: {first.reason}; {lost} of {seen} samples are lost to damage, more "
            f"than data.max_loss_share={config.data.max_loss_share} allows. Copy the file anew, "
            "or raise that share"
        )
    # Below 200 samples a share says little; but nothing of 20 is no accident.
    none = skipped == seen >= 20 and config.data.max_skip_share < 1
    if none or skipped > config.data.max_skip_share * max(seen, 200):
        first = batch.skipped[0]
        told = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items()))
        raise DataError(
            f"{first.origin}: {first.reason}; {skipped} of {seen} samples cannot be used ({told}), "
            f"more than data.max_skip_share={config.data.max_skip_share} allows. Mend the data or "
            "raise that share"
        )


def skips(counts: Counter[str] | dict[str, int]) -> dict[str, int]:
    """Of all that is counted, the samples left out, by reason."""
    return {key: n for key, n in counts.items() if key not in _NOT_SKIPS}


def shares(reader: MixtureReader, positions: int) -> str:
    """What the mixture comes to, in samples as they are drawn and in epochs of each source."""
    told = []
    for name, part, count in zip(reader.names, reader.parts, reader.drawn(positions), strict=True):
        told.append(
            f"{name} {count / positions:.2%} ({count:,} samples, {count / len(part):.2f} epochs)"
        )
    return f"mixture: {', '.join(told)}"

"""A checkpoint, whole or sharded → a plain Hugging Face folder: ``clipkit convert``."""

from __future__ import annotations

import shutil
from pathlib import Path

from torch import Tensor

from clipkit.atomic import put_in_place, write_json
from clipkit.errors import CheckpointError
from clipkit.training.checkpoint import find_checkpoint, find_damage, read_json
from clipkit.training.parts import SavedTensors, has_tensors, save_tensors


def convert(source: Path, out: Path) -> tuple[Path, list[str]]:
    """Writes a checkpoint's model, of a run with an average of the weights that average, as a
    folder that transformers and clipkit load.

    Args:
        source: a checkpoint, such as ``runs/emoji/checkpoints/step-000400``, or a run's folder:
            its newest checkpoint that is not damaged.
        out: the folder to make.

    Returns:
        The checkpoint that was taken, and a line for each newer one that is damaged.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or ``out`` is there already.
    """
    checkpoint, damaged = source, list[str]()
    if (source / "checkpoints").is_dir():
        found, damaged = find_checkpoint(source / "checkpoints")
        if found is None:
            raise CheckpointError(f"{source}: this run has no checkpoint yet; go on with it")
        checkpoint = found
    elif not (source / "manifest.json").is_file():
        raise CheckpointError(
            f"{source}: no checkpoint (there is no manifest.json) and no model (there is no "
            "config.json); name one, such as runs/emoji/checkpoints/step-000400, or a run's folder"
        )
    elif fault := find_damage(source):
        raise CheckpointError(f"{source}: {fault}; use another checkpoint of the run")
    if out.exists():
        raise CheckpointError(f"{out}: it is there already; name another folder, or remove it")
    aside = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The rest of the folder was saved with it, whole or sharded.
        weights = "model.safetensors"
        shutil.copytree(checkpoint / "model", aside, ignore=shutil.ignore_patterns(weights))
        save_tensors(aside / weights, _weights(checkpoint))
        if has_tensors(checkpoint, "ema"):
            _set_bias(aside / "config.json", SavedTensors(checkpoint, "ema"))
        put_in_place(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return checkpoint, damaged


def _set_bias(path: Path, average: SavedTensors) -> None:
    """The average of the bias of the logits, which stands in the model's config."""
    if "logit_bias" in average.names():
        config = read_json(path)
        config["logit_bias"] = float(average.read("logit_bias"))
        write_json(path, config)


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    saved = SavedTensors(checkpoint, "model")
    weights = {name: saved.read(name) for name in saved.names()}
    if has_tensors(checkpoint, "ema"):  # what is not trained has none
        average = SavedTensors(checkpoint, "ema")
        own = {f"backbone.{name}": name for name in weights}
        weights |= {own[name]: average.read(name) for name in own.keys() & set(average.names())}
    return weights

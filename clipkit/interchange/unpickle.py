"""A model's folder with pickled weights → a new folder with the same weights as safetensors."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipkit.atomic import put_in_place, remove_stale
from clipkit.encoder import load
from clipkit.errors import CheckpointError, ClipkitError
from clipkit.hub import find_folder, first_line
from clipkit.models.foreign import CLASSES
from clipkit.models.kinds import (
    LOADED,
    is_open_clip,
    model_folder,
    pickled_weights,
    read_json,
    why_not,
)
from clipkit.models.open_clip import WEIGHTS
from clipkit.models.pickled import read_pickled
from clipkit.models.pretrained import check_report, quiet, read_auto_config

# Code, other weights, and what version control keeps are no part of the new folder.
_LEFT_OUT = shutil.ignore_patterns(
    ".*", "*.py", "*.bin", "*.bin.index.json", "*.safetensors", "*.safetensors.index.json",
    "*.h5", "*.msgpack", "*.ot", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.onnx", "*.gguf",
)  # fmt: skip


@dataclass(frozen=True)
class Unpickled:
    """A folder that was made.

    Attributes:
        kind: the class of the model.
        weights: tensors that were compared with those of the pickle, bit for bit.
        refused: why ``clipkit.load`` does not take the new folder; empty: it does.
    """

    kind: str
    weights: int
    refused: str = ""


def unpickle(folder_or_name: str, out: Path) -> Unpickled:
    """Writes a copy of a model's folder whose weights are safetensors, and compares them.

    The pickle is read by torch's ``weights_only``, which runs no code from it.

    Args:
        folder_or_name: of a CLIP, SigLIP or VisionTextDualEncoder of transformers, or the folder
            of an open_clip checkpoint, with ``.bin`` weights.
        out: the folder to make.

    Raises:
        CheckpointError: there are no pickled weights, they are not those of the config, or ``out``
            is there already.
    """
    out = Path(os.path.abspath(out))
    if os.path.lexists(out):
        raise CheckpointError(f"{out}: it is there already; name another folder, or remove it")
    name = model_folder(folder_or_name)
    folder = find_folder(name, what="a model") or _download(name)
    remove_stale(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        shutil.copytree(folder, aside, ignore=_LEFT_OUT)
        kind, weights = (_open_clip if is_open_clip(folder) else _transformers)(folder, aside)
        refused = ""
        try:
            load(aside, device="cpu")
        except ClipkitError as error:
            refused = str(error).replace(str(aside), str(out))
        put_in_place(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Unpickled(kind, weights, refused)


def _transformers(folder: Path, aside: Path) -> tuple[str, int]:
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder}: there is no config.json, which says what model the weights are of; copy or "
            "download the whole folder again."
        )
    model_type = str(read_json(folder / "config.json").get("model_type"))
    if model_type not in LOADED:
        raise CheckpointError(f"{folder}: {why_not(model_type)}")
    files = pickled_weights(folder)
    if not files:
        raise CheckpointError(f"{folder}: {_nothing_pickled(folder, 'pytorch_model.bin')}")
    weights: dict[str, Tensor] = {}
    for path in files:
        weights |= read_pickled(path)
    dtypes = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    kind = CLASSES[model_type]
    try:
        with quiet():
            model, report = kind.from_pretrained(
                None,
                config=read_auto_config(str(folder)),
                state_dict=weights,
                # Of several, the one that holds all of them exactly.
                dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, each by its name
            )
    except Exception as error:  # transformers raises many kinds
        raise CheckpointError(
            f"{folder}: the weights cannot be loaded ({first_line(error)}); copy or download the "
            "folder again."
        ) from error
    check_report(str(folder), kind, report)
    with quiet():
        model.save_pretrained(aside)
    shutil.copyfile(folder / "config.json", aside / "config.json")  # as it was
    # Names of old files are others than the model's; what has the same is compared with the file.
    return kind.__name__, _compare(aside, model.state_dict() | weights)


def _open_clip(folder: Path, aside: Path) -> tuple[str, int]:
    path = folder / WEIGHTS[1]
    if (folder / WEIGHTS[0]).is_file() or not path.is_file():
        raise CheckpointError(f"{folder}: {_nothing_pickled(folder, WEIGHTS[1])}")
    weights = read_pickled(path)
    # Tensors that share memory have no place in the format.
    whole = {name: weight.clone().contiguous() for name, weight in weights.items()}
    save_file(whole, aside / WEIGHTS[0], metadata={"format": "pt"})
    return "open_clip", _compare(aside, weights)


def _compare(folder: Path, weights: dict[str, Tensor]) -> int:
    """How many tensors were written, each equal to the one it was made of.

    Raises:
        CheckpointError: one is not.
    """
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                written = file.get_tensor(name)
                if not torch.equal(written, weights[name].to(written.dtype)):
                    raise CheckpointError(
                        f"{folder}: {name} was not written as it was read; free some of the disk, "
                        "and run the same command."
                    )
                count += 1
    return count


def _nothing_pickled(folder: Path, wanted: str) -> str:
    if any(folder.glob("*.safetensors")):
        return "its weights are safetensors already; use the folder as it is"
    there = sorted(path.name for path in folder.glob("*.bin"))
    also = f", but {', '.join(there[:3])}" if there else ""
    return f"there are no pickled weights ({wanted}){also}; copy or download the folder again"


def _download(name: str) -> Path:
    """A repository of the hub, without the weights in other formats."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.md", "pytorch_model*.bin", WEIGHTS[1]]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises its own kinds and those of its transport
        raise CheckpointError(
            f"{name}: no model could be downloaded ({first_line(error)}); name a folder, or a hub "
            "repository where there is a network."
        ) from error

"""Which kind of model a folder or hub name holds, what clipkit does with it, and what else to do.

Nothing is loaded here: file names and small JSON files tell the kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any

from clipkit.errors import CheckpointError
from clipkit.hub import find_folder

OPEN_CLIP_CONFIG = "open_clip_config.json"
LOADED = ("clip", "siglip", "vision-text-dual-encoder")  # model types of transformers
# Modules of sentence-transformers that leave a direction as it is.
_SAME_DIRECTION = ("Transformer", "CLIPModel", "Normalize")
_USES = "clipkit uses it (clipkit.load, embed, search, classify, eval, export --to onnx)"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")


def model_folder(name: str) -> str:
    """The folder that holds the model's own files; a hub name as it is.

    The folder of a run stands for the model in it, and a folder of sentence-transformers whose
    CLIP lies in a folder of its own (``0_CLIPModel``) for that one.

    Raises:
        CheckpointError: the run has no model yet, or sentence-transformers does more than CLIP.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    check_modules(folder)
    if any((folder / each).is_file() for each in ("config.json", OPEN_CLIP_CONFIG)):
        return str(folder)
    if (folder / "model" / "config.json").is_file():
        return str(folder / "model")
    for module in _modules(folder):
        inner = folder / str(module.get("path", ""))
        if read_json(inner / "config.json").get("model_type") in LOADED:
            return str(inner)
    if checkpoints := sorted(folder.glob("checkpoints/step-*/model")):
        raise CheckpointError(
            f"{name}: this run has not finished, so it has no model folder yet; its newest "
            f"checkpoint is {checkpoints[-1]}"
        )
    return str(folder)


def is_open_clip(folder: str | Path) -> bool:
    """Whether a folder holds a checkpoint of open_clip and no model of transformers."""
    folder = Path(folder)
    return (folder / OPEN_CLIP_CONFIG).is_file() and not (folder / "config.json").is_file()


def check_folder(folder_or_name: str) -> None:
    """Refuses a folder without a config or without weights that can be read; a hub name passes.

    Raises:
        CheckpointError: says what lies there instead, and what to do.
    """
    folder = find_folder(folder_or_name, what="a model")
    if folder is None:
        return
    check_modules(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: {_no_config(folder)}")
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{folder}: it holds an adapter (adapter_config.json), which clipkit would not apply; "
            "merge it into its model (merge_and_unload of peft), save that, and name its folder."
        )
    kind = read_json(folder / "config.json").get("model_type")
    if kind is not None and kind not in LOADED:
        raise CheckpointError(f"{folder}: {why_not(str(kind))}")
    if problem := no_weights(folder):
        raise CheckpointError(f"{folder}: {problem}")


def no_weights(folder: Path) -> str | None:
    """Why a folder of transformers has no weights that clipkit reads; None where it has."""
    present = [name for name in _SAFETENSORS if (folder / name).is_file()]
    if not present:
        return _other_weights(folder)
    shards = set(read_json(folder / _SAFETENSORS[1]).get("weight_map", {}).values())
    files = ["model.safetensors"] if present[0] == _SAFETENSORS[0] else sorted(shards)
    if missing := [name for name in files if not (folder / name).is_file()]:
        return (
            f"{_SAFETENSORS[1]} names {len(files)} files of weights, and {len(missing)} of them "
            f"are not there ({_some(missing)}); copy or download the folder again."
        )
    for name in files:
        with (folder / name).open("rb") as file:
            if file.read(20).startswith(b"version https://git-"):
                return (
                    f"{name} is a pointer of Git LFS, not the weights; run git lfs pull in the "
                    "repository, or download the file."
                )
    return None


def pickled_weights(folder: Path) -> list[Path]:
    """The files of pickled weights of transformers: one, or the shards of an index.

    Raises:
        CheckpointError: a shard is missing.
    """
    whole, index = folder / "pytorch_model.bin", folder / "pytorch_model.bin.index.json"
    if whole.is_file() or not index.is_file():
        return [whole] if whole.is_file() else []
    files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    if missing := [path.name for path in files if not path.is_file()]:
        raise CheckpointError(
            f"{folder}: {index.name} names {len(files)} files of weights, and {len(missing)} of "
            f"them are not there ({_some(missing)}); copy or download the folder again."
        )
    return files


def convert_hint(folder: str | Path) -> str:
    """Says what to do with pickled weights."""
    source, out = quote(str(folder)), quote(f"{Path(folder).name}-safetensors")
    return (
        "the weights are pickled (.bin), and a pickle can run code; make a folder with safetensors "
        f"of them, which runs none: clipkit convert {source} {out}"
    )


def why_not(model_type: str) -> str:
    """Why clipkit loads no model of this type of transformers."""
    if model_type == "siglip2":
        return (
            "it is a SigLIP 2 of the NaFlex kind (siglip2), which takes images of any shape; "
            "clipkit runs those of one resolution, whose config.json says siglip."
        )
    part = ""
    if model_type in ("clip_text_model", "clip_vision_model"):
        part = ", one tower of a CLIP"
    return (
        f"it is a {model_type} model{part}; clipkit loads clip, siglip and "
        "vision-text-dual-encoder models, and checkpoints of open_clip."
    )


def why_not_trained(name: str) -> str | None:
    """Why training cannot start from a model that ``clipkit.load`` may well take; None where it
    can, or where the folder or hub name has yet to be looked at.

    Args:
        name: what ``model_folder`` gave.
    """
    folder = Path(name)
    if is_open_clip(folder):
        model = read_json(folder / OPEN_CLIP_CONFIG).get("model_cfg")
        if isinstance(model, dict) and model.get("init_logit_bias") is not None:
            return (
                f"it is a checkpoint of open_clip with a bias of the logits. {_USES}, and cannot "
                "train it; name a CLIP, or leave the key out to train a new model"
            )
        out = f"{folder.name}-transformers"
        return (
            "it is a checkpoint of open_clip, and training starts from a folder of transformers; "
            f"make one: clipkit export {quote(name)} {quote(out)} --to transformers, and set "
            f"model.pretrained: {out}"
        )
    kind = read_json(folder / "config.json").get("model_type")
    return foreign_hint(kind) if kind in ("siglip", "vision-text-dual-encoder") else None


def foreign_hint(model_type: str) -> str:
    """Why training cannot start from a SigLIP or a VisionTextDualEncoder, and what it can do."""
    what, instead = "a VisionTextDualEncoder", "to train a new model"
    if model_type == "siglip":
        what, instead = "a SigLIP", "to train a new model with loss.kind=sigmoid"
    return (
        f"it is {what}. {_USES}, and cannot train it; name a CLIP, or leave the key out {instead}"
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing, broken or something else."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def check_modules(folder: Path) -> None:
    """Refuses a folder of sentence-transformers whose modules turn the embeddings of the model.

    Raises:
        CheckpointError: names the module.
    """
    for module in _modules(folder):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind not in _SAME_DIRECTION:
            raise CheckpointError(
                f"{folder}: modules.json of sentence-transformers puts a {kind} behind the model, "
                "which clipkit does not run, so embeddings would not be the folder's own; use it "
                "with SentenceTransformer."
            )


def _modules(folder: Path) -> list[dict[str, Any]]:
    try:
        tree = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [each for each in tree if isinstance(each, dict)] if isinstance(tree, list) else []


def _no_config(folder: Path) -> str:
    """Says what lies in a folder without a config.json, and what to do."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return (
            "the folder is empty (no config.json); name the folder of a model, such as the model "
            "folder of a run."
        )
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return "it is a checkpoint of open_clip, where a model of transformers is needed."
    if found := _ending(names, ".gguf"):
        return (
            f"it holds a GGUF file ({_some(found)}), which clipkit does not read; name the folder "
            "of transformers that it was made from."
        )
    if found := _ending(names, ".onnx"):
        return (
            f"it holds ONNX graphs ({_some(found)}), which onnxruntime runs and clipkit does not; "
            "name the folder of the model that was exported."
        )
    if found := _ending(names, (".safetensors", ".bin", ".pt", ".pth", ".ckpt")):
        return (
            f"there are weights ({_some(found)}) and no config.json; copy or download the whole "
            "folder again."
        )
    inner = [path.parent.name for path in sorted(folder.glob("*/config.json"))]
    hint = f", such as {folder / inner[0]}" if inner else ", such as the model folder of a run"
    return f"there is no config.json; name the folder of a model{hint}."


def _other_weights(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith((".bin", ".bin.index.json")) for name in names):
        return convert_hint(folder)
    if found := _ending(names, (".h5", ".msgpack")):
        return (
            f"the weights are of TensorFlow or Flax ({_some(found)}), which clipkit does not read; "
            "download model.safetensors."
        )
    there = _ending(names, ".safetensors")
    also = f", but {_some(there)}" if there else ""
    return f"there are no weights (model.safetensors){also}; copy or download the folder again."


def _ending(names: Iterable[str], ends: str | tuple[str, ...]) -> list[str]:
    return [name for name in names if name.endswith(ends)]


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"

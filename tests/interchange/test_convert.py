"""Pickled weights become a new folder of the right class, bit for bit, and no code is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_models import save_clip, save_siglip, save_vision_text
from safetensors.torch import load_file
from torch import Tensor

import clipkit as package
from clipkit.cli import main
from clipkit.errors import CheckpointError
from clipkit.interchange.export import export
from clipkit.interchange.unpickle import unpickle


def save_open_clip_export(folder: Path) -> Path:
    export(str(save_clip(folder.with_name("source"))), folder, to="open_clip")
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "clip": (save_clip, "CLIPModel"),
    "siglip": (save_siglip, "SiglipModel"),
    "vision-text": (save_vision_text, "VisionTextDualEncoderModel"),
    "open_clip": (save_open_clip_export, "open_clip"),
}


def pickle_weights(folder: Path, *, shards: bool = False) -> dict[str, Tensor]:
    (path,) = folder.glob("*.safetensors")
    weights = load_file(path)
    path.unlink()
    if path.name.startswith("open_clip"):
        prefixed = {f"module.{name}": weight for name, weight in weights.items()}
        torch.save({"epoch": 3, "state_dict": prefixed}, folder / "open_clip_pytorch_model.bin")
    elif shards:
        places = {name: f"pytorch_model-{i % 2}.bin" for i, name in enumerate(sorted(weights))}
        for file in set(places.values()):
            torch.save({n: w for n, w in weights.items() if places[n] == file}, folder / file)
        index = {"metadata": {}, "weight_map": places}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(weights, folder / "pytorch_model.bin")
    return weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
def test_pickled_weights_become_the_same_model(kind: str, shards: bool, tmp_path: Path) -> None:
    make, name = KINDS[kind]
    folder, out = make(tmp_path / "model"), tmp_path / "out"
    before = package.load(folder, device="cpu").encode_text(["a photo of the cat", "two dogs"])
    weights = pickle_weights(folder, shards=shards)
    if kind != "open_clip":
        with pytest.raises(CheckpointError, match=f"pickled .*: clipkit convert {folder} model-"):
            package.load(folder, device="cpu")
    held = sorted(path.name for path in folder.iterdir())
    made = unpickle(str(folder), out)
    assert (made.kind, made.weights, made.refused) == (name, len(weights), "")
    assert sorted(path.name for path in folder.iterdir()) == held
    (path,) = out.glob("*.safetensors")
    assert not list(out.glob("*.bin*"))
    written = load_file(path)
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[key], weight) for key, weight in weights.items())
    after = package.load(out, device="cpu").encode_text(["a photo of the cat", "two dogs"])
    assert abs(after - before).max() == 0


def test_weights_of_half_precision_stay_so(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "model")
    weights = {name: each.half() for name, each in pickle_weights(folder).items()}
    torch.save(weights, folder / "pytorch_model.bin")
    unpickle(str(folder), tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(written[key], weight) for key, weight in weights.items())


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
@pytest.mark.parametrize("way", ["torch", "pickle"])
def test_a_pickle_with_code_runs_none(
    kind: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = KINDS[kind][0](tmp_path / "model"), tmp_path / "out"
    pickle_weights(folder)
    (path,) = folder.glob("*.bin")
    canary = Canary(tmp_path / "canary")
    if way == "torch":
        torch.save({"weight": canary}, path)
    else:
        path.write_bytes(pickle.dumps(canary))
    capsys.readouterr()
    assert main(["convert", str(folder), str(out)]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be loaded without running code" in line
    assert not (tmp_path / "canary").exists()
    assert not out.exists()


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = save_vision_text(tmp_path / "model")
    shutil.copytree(save_clip(tmp_path / "clip"), tmp_path / "mixed")
    weights = pickle_weights(folder)
    (tmp_path / "mixed" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "mixed" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"weights are missing|have another shape"):
        unpickle(str(tmp_path / "mixed"), tmp_path / "out")
    torch.save({**weights, "head.weight": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"no place for 1 of the weights, head\.weight"):
        unpickle(str(folder), tmp_path / "out")
    del weights["text_projection.weight"]
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="1 of the weights are missing, text_projection"):
        unpickle(str(folder), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_command_says_what_it_made_and_what_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = save_clip(tmp_path / "model"), tmp_path / "out"
    assert main(["convert", str(folder), str(out)]) == 4
    assert "safetensors already" in capsys.readouterr().err
    pickle_weights(folder)
    (folder / "tokenizer.json").unlink()
    capsys.readouterr()
    assert main(["convert", str(folder), str(out)]) == 0
    said = capsys.readouterr()
    assert f"{folder} → {out}: CLIPModel, " in said.out
    assert f"does not take it yet: {out}: its tokenizer does not fit" in said.err
    assert main(["convert", str(folder), str(out)]) == 4
    assert "it is there already" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / "empty"), str(tmp_path / "o")]) == 4
    assert "no checkpoint (there is no manifest.json) and no model" in capsys.readouterr().err

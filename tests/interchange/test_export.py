"""Exports, run by the library they are for, give the model's embeddings, or there is no export."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import (
    TEXT,
    VISION,
    save_clip,
    save_open_clip,
    save_siglip,
    save_vision_text,
)
from safetensors.torch import load_file, save_file
from tiny_model import noise_image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

import clipkit
from clipkit.cli import main
from clipkit.errors import CheckpointError
from clipkit.interchange import export as module
from clipkit.interchange.export import export

TEXTS = ["a photo of the cat", "two dogs", "一只猫", "the red house"]


def check(ours: Any, images: Any, texts: Any) -> None:
    """Against what a library gave for ``square(ours)`` and TEXTS."""
    assert np.abs(ours.encode_image(square(ours)) - images).max() < 1e-5
    assert np.abs(ours.encode_text(TEXTS) - texts).max() < 1e-5


def square(encoder: Any) -> list[Any]:
    size = encoder.preprocess.image_size
    return [noise_image(i, (size, size)) for i in range(3)]


def unit(features: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(features, dim=-1).numpy()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_open_clip_runs_an_export(activation: str, tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    folder, out = save_clip(tmp_path / "model", activation=activation), tmp_path / "out"
    found = export(str(folder), out, to="open_clip")
    assert found.library.startswith("open_clip ")
    assert max(found.images, found.texts) < 1e-5
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{out}")
    ours = clipkit.load(folder, device="cpu")
    with torch.no_grad():
        pixels = torch.stack([transform(image) for image in square(ours)])
        images, texts = model.eval().encode_image(pixels), model.encode_text(tokenizer(TEXTS))
    check(ours, unit(images), unit(texts))
    assert float(model.logit_scale.detach().exp()) == pytest.approx(ours.scale)
    back = clipkit.load(out, device="cpu")
    check(back, unit(images), unit(texts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_transformers_runs_what_open_clip_made(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}
    folder, out = save_open_clip(tmp_path / "model", config), tmp_path / "out"
    found = export(str(folder), out, to="transformers")
    assert found.library.startswith("transformers ")
    model = AutoModel.from_pretrained(out).eval()
    processor, tokenizer = (
        each.from_pretrained(out) for each in (AutoImageProcessor, AutoTokenizer)
    )
    ours = clipkit.load(folder, device="cpu")
    with torch.no_grad():
        pixels = processor(images=square(ours), return_tensors="pt")
        images = model.get_image_features(**pixels).pooler_output
        ids = tokenizer(TEXTS, padding=True, return_tensors="pt")
        texts = model.get_text_features(**ids).pooler_output
    check(ours, unit(images), unit(texts))
    check(clipkit.load(out, device="cpu"), unit(images), unit(texts))


ONNX = {"clip": save_clip, "siglip": save_siglip, "vision-text": save_vision_text}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["clip", *(pytest.param(each, marks=pytest.mark.long) for each in ONNX if each != "clip")],
)
def test_onnxruntime_runs_an_export(kind: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    folder, out = ONNX[kind](tmp_path / "model"), tmp_path / "out"
    assert export(str(folder), out, to="onnx").library.startswith("onnxruntime ")
    facts = json.loads((out / "onnx_config.json").read_text())
    mean, std = (np.float32(facts["image"][key]).reshape(3, 1, 1) for key in ("mean", "std"))
    ours = clipkit.load(folder, device="cpu")
    pixels = np.stack([np.asarray(image).transpose(2, 0, 1) for image in square(ours)])
    given = {"pixel_values": ((pixels / 255 - mean) / std).astype(np.float32)}
    length, pad = facts["text"]["context_length"], facts["text"]["pad_token_id"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = [(row + [pad] * length)[:length] for row in tokenizer(TEXTS)["input_ids"]]
    found = [
        onnxruntime.InferenceSession(out / f"{name}.onnx").run(None, inputs)[0]
        for name, inputs in (("image", given), ("text", {"input_ids": np.array(ids)}))
    ]
    check(ours, *found)
    assert facts["scale"] == pytest.approx(ours.scale)
    run_card(out, ours)


def run_card(out: Path, ours: Any) -> None:
    """The code in an export's card gives the model's embeddings."""
    card = (out / "README.md").read_text()
    assert "clipkit.load" not in card
    assert "pipeline(" not in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    square(ours)[0].save(out / "photo.png")
    for old, new in {"path/of/this/folder": out, "photo.jpg": out / "photo.png"}.items():
        assert old in code
        code = code.replace(old, str(new))
    names: dict[str, Any] = {}
    exec(code, names)
    assert np.abs(names["image_embeds"] - ours.encode_image(square(ours)[:1])).max() < 1e-5
    assert np.abs(names["text_embeds"] - ours.encode_text(names["texts"])).max() < 1e-5


@pytest.mark.parametrize("to", ["transformers", "open_clip"])
def test_an_export_prints_what_it_compared_and_nothing_else(
    to: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("open_clip")
    folder = save_clip(tmp_path / "model")
    capfd.readouterr()
    assert main(["export", str(folder), str(tmp_path / "out"), "--to", to]) == 0
    said = capfd.readouterr()
    assert said.err == ""
    assert [line.split(" ")[0] for line in said.out.splitlines()] == [
        str(folder), "compared", "images"
    ]  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("open_clip.create_model_and_transforms" in card) == (to == "open_clip")
    assert ("pipeline(" in card) == (to == "transformers")


def test_a_checkpoint_of_open_clip_with_few_tokens_loads_without_warnings(
    tmp_path: Path, clipkit: Any
) -> None:
    export(str(save_clip(tmp_path / "model")), tmp_path / "out", to="open_clip")
    noise_image(0).save(tmp_path / "a.png")
    shown = clipkit("classify", tmp_path / "out", tmp_path / "a.png", "--labels", "cat,dog")
    assert shown.returncode == 0
    assert shown.stderr == ""


def test_an_export_that_gives_other_numbers_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = save_clip(tmp_path / "model"), tmp_path / "out"

    def slightly_wrong(*args: Any, **kwargs: Any) -> None:
        save_model(*args, **kwargs)
        path = args[1] / "model.safetensors"
        weights = load_file(path)
        weights["visual_projection.weight"][0] *= 1.01
        save_file(weights, path, metadata={"format": "pt"})

    save_model = module.save_model
    monkeypatch.setattr(module, "save_model", slightly_wrong)
    with pytest.raises(CheckpointError, match=r"other image embeddings than clipkit, by .*e-0"):
        export(str(folder), out, to="transformers")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_the_library_it_says_what_it_was_compared_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    model, out = str(save_clip(tmp_path / "model")), tmp_path / "out"
    found = export(model, out, to="open_clip", licence="apache-2.0")
    assert "\nlicense: apache-2.0\n" in (out / "README.md").read_text().split("---\n")[1]
    assert found.missing == "open_clip_torch"
    assert found.library == "clipkit's own reading of the checkpoint"
    assert max(found.images, found.texts) < 1e-5


def test_the_command_says_what_cannot_be_exported(clipkit: Any, tmp_path: Path) -> None:
    broken = save_clip(tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["text_projection.weight"][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    failed = clipkit("export", broken, tmp_path / "out", "--to", "transformers")
    assert failed.returncode == 4
    assert "the vectors of texts are not finite" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("to", "sentence"),
    [("open_clip", "a siglip model, whose towers"), ("transformers", "transformers already")],
)
def test_what_has_no_place_there_is_refused(to: str, sentence: str, tmp_path: Path) -> None:
    folder = save_siglip(tmp_path / "model")
    with pytest.raises(CheckpointError, match=sentence):
        export(str(folder), tmp_path / "out", to=to)
    with pytest.raises(CheckpointError, match="there is something already"):
        export(str(folder), folder, to=to)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_hub_that_cannot_be_reached_leaves_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("# a card\n")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"me/mine: it cannot be uploaded .*export is in"):
        module.push(tmp_path, "me/mine")
    assert (tmp_path / "README.md").is_file()


BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12} | {
    "intermediate_size": 3072
}


@pytest.mark.long
@pytest.mark.parametrize("to", ["transformers", "open_clip", "onnx"])
def test_exports_of_the_size_of_vit_b(to: str, tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "model", tower=BASE, size=224)
    found = export(str(folder), tmp_path / "out", to=to)
    print(to, found)
    assert not found.missing
    assert max(found.images, found.texts) < 1e-5

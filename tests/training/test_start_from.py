"""``model.pretrained``: what training cannot start from is said by its kind, with what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_run import write_config
from tiny_model import save_tiny_model
from transformers import BertConfig, SiglipConfig, VisionTextDualEncoderConfig, ViTConfig

import clipkit
from clipkit.cli import main
from clipkit.config import load_config
from clipkit.errors import ClipkitError
from clipkit.training.pretrained import resolve_pretrained


def siglip(folder: Path) -> Path:
    SiglipConfig().save_pretrained(folder)
    return folder


def vision_text(folder: Path) -> Path:
    VisionTextDualEncoderConfig().save_pretrained(folder)
    return folder


def open_clip(folder: Path) -> Path:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 24}}')
    return folder


def bert(folder: Path) -> Path:
    BertConfig().save_pretrained(folder)
    return folder


def vit(folder: Path) -> Path:
    ViTConfig().save_pretrained(folder)
    return folder


def sentences(folder: Path) -> Path:
    (bert(folder) / "modules.json").write_text('[{"type": "a.Transformer", "path": ""}]')
    return folder


def holding(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(b"x")
        return folder

    return make


def a_file(folder: Path) -> Path:
    folder.write_bytes(b"x")
    return folder


def sibling(folder: Path) -> Path:
    save_tiny_model(folder.with_name("modle"))
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "SigLIP": (siglip, "it is a SigLIP. clipkit uses it .*loss.kind=sigmoid"),
    "VisionTextDualEncoder": (vision_text, "it is a VisionTextDualEncoder. clipkit uses it"),
    "open_clip": (open_clip, "clipkit export .*model .*-transformers --to transform"),
    "BERT": (bert, "it is a bert model; clipkit loads clip"),
    "ViT": (vit, "it is a vit model; clipkit loads clip"),
    "sentences": (sentences, "it is a bert model; clipkit loads clip"),
    "empty": (holding(), "the folder is empty"),
    "GGUF": (holding("model.gguf"), "a GGUF file .model.gguf., which clipkit does not read"),
    "ONNX": (holding("image.onnx", "text.onnx"), "ONNX graphs .* which onnxruntime runs"),
    "weights alone": (holding("model.safetensors"), "weights .* and no config.json"),
    "a file": (a_file, "a file, not a folder"),
    "a typo": (sibling, "no such folder.*Did you mean .*modle"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_training_cannot_start_from_is_named(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, sentence = KINDS[kind]
    folder = make(tmp_path / "model")
    path = write_config(tmp_path, model={"pretrained": str(folder)}, preprocess={})
    with pytest.raises(ClipkitError, match=f"^model.pretrained: {folder}: .*{sentence}") as error:
        clipkit.build_encoder(load_config(path))
    assert error.value.exit_code in (2, 4)
    if kind in ("SigLIP", "open_clip"):
        for way in ([], ["--dry-run"]):
            capfd.readouterr()
            assert main(["train", str(path), *way]) == error.value.exit_code
            assert capfd.readouterr().err.splitlines() == [f"clipkit: {error.value}"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("run") / "model")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model": {"vision": {"layers": 3}}}, "model.vision.layers: 3 .* has 1, and keeps it"),
        ({"model": {"text": {"width": 64}}}, "model.text.width: 64 .* has 32, and"),
        ({"model": {"vision": {"heads": 4}}}, "model.vision.heads: 4 .* has 2, and"),
        ({"model": {"text": {"dropout": 0.1}}}, "model.text.dropout: 0.1 .* has 0.0, and"),
        ({"model": {"vision": {"patch_size": 16}}}, "model.vision.patch_size: 16 .* has 8, and"),
        ({"model": {"vision": {"mlp_ratio": 2}}}, "model.vision.mlp_ratio: 2.* has 4.0, and"),
        ({"model": {"embed_dim": 64}}, "model.embed_dim: 64 .* has 24, and"),
        ({"model": {"activation": "quick_gelu"}}, "model.activation: quick_gelu .* has gelu, and"),
        ({"loss": {"init_temperature": 0.5}}, "loss.init_temperature: 0.5 .* has its own, and"),
        ({"preprocess": {"image_size": 32}}, "preprocess.image_size: 32, but .* with 16; leave"),
        (
            {"model": {"vision": {"layers": 3, "width": 64}, "embed_dim": 64}},
            r"leave it out, and likewise model\.[\w.]+, model\.[\w.]+$",
        ),
    ],
)
def test_a_key_that_the_pretrained_model_decides_is_refused(
    model: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    changes = {"preprocess": {}, "loss": {}, "model": {}} | changes
    changes["model"] = {**changes["model"], "pretrained": str(model)}
    config = load_config(write_config(tmp_path, **changes))
    with pytest.raises(ClipkitError, match=sentence):
        resolve_pretrained(config)


def test_a_key_that_says_what_the_model_has_is_let_through(model: Path, tmp_path: Path) -> None:
    own = {
        "embed_dim": 24,
        "vision": {"width": 32, "layers": 1, "heads": 2, "patch_size": 8},
        "text": {"width": 32, "layers": 1, "heads": 2},
    }
    path = write_config(
        tmp_path, model={**own, "pretrained": str(model.parent)}, preprocess={"image_size": 16}
    )
    config = resolve_pretrained(load_config(path))  # and a run stands for its model
    assert config.model.pretrained == config.preprocess.tokenizer == str(model)
    assert config.preprocess.image_size == 16


def test_a_model_without_its_tokenizer_starts_with_one_that_fits(
    model: Path, tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "half", ignore=shutil.ignore_patterns("tokenizer*"))
    changes: dict[str, Any] = {"model": {"pretrained": str(tmp_path / "half")}, "preprocess": {}}
    path = write_config(tmp_path, **changes)
    with pytest.raises(
        ClipkitError, match=r"^model.pretrained: .*its tokenizer does not fit .*copy"
    ):
        clipkit.build_encoder(load_config(path))
    changes["preprocess"] = {"tokenizer": str(model)}
    encoder = clipkit.build_encoder(load_config(write_config(tmp_path, **changes)))
    one, other = encoder.encode_text(["red cat", "blue dog"])
    assert abs(one - other).max() > 1e-3

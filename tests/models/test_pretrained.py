"""Saved models: loaded again exactly, loaded by others without clipkit, refused where broken."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, CLIPImageProcessor

from clipkit.config.schema import PreprocessConfig
from clipkit.data.tokenize import load_tokenizer, tokenize
from clipkit.errors import CheckpointError
from clipkit.models import DualEncoder, load_model, load_preprocess, save_model

TEXTS = [
    "a photo of two dogs",
    "一只猫坐在垫子上",
    "<|endoftext|> 👩🏽‍🚀",
    "a red car near the house and " * 9,  # longer than the context
]


@pytest.fixture
def saved(tmp_path: Path, small_model, small_preprocess, small_tokenizer) -> Path:
    save_model(small_model, tmp_path / "model", small_preprocess, small_tokenizer)
    return tmp_path / "model"


def test_a_saved_model_loads_with_the_same_weights_tokens_and_preprocessing(
    saved, small_model, small_preprocess, small_tokenizer
):
    model = load_model(str(saved))
    for (name, one), (other_name, other) in zip(
        small_model.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert name == other_name
        assert one.equal(other)
    assert not model.training
    assert model.mean.equal(small_model.mean)
    expected = dataclasses.replace(small_preprocess, vocab_size=len(small_tokenizer))
    assert load_preprocess(str(saved)) == expected
    ids = tokenize(load_tokenizer(str(saved), context_length=24), TEXTS, context_length=24)
    assert ids[0].equal(tokenize(small_tokenizer, TEXTS, context_length=24)[0])


def test_the_bias_of_a_loss_of_yes_or_no_comes_back(
    tmp_path, small_model, small_preprocess, small_tokenizer
):
    model = DualEncoder(
        small_model.backbone, small_preprocess.mean, small_preprocess.std, init_bias=-9.3
    )
    save_model(model, tmp_path / "model", small_preprocess, small_tokenizer)
    again = load_model(str(tmp_path / "model"))
    assert again.logit_bias is not None
    assert torch.equal(again.logit_bias, model.logit_bias)
    # Trained on with a loss that has none, it is gone.
    save_model(small_model, tmp_path / "model", small_preprocess, small_tokenizer)
    assert load_model(str(tmp_path / "model")).logit_bias is None
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps({**config, "logit_bias": "much"}))
    with pytest.raises(CheckpointError, match="logit_bias is 'much', no number"):
        load_model(str(tmp_path / "model"))


@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_preprocessing_comes_back_bit_for_bit(tmp_path, resize, small_model, small_tokenizer):
    preprocess = PreprocessConfig(
        image_size=32,
        resize=resize,
        mean=(0.1, 1 / 3, np.nextafter(0.5, 1).item()),
        std=(0.2, 2 / 3, 1e-3),
        vocab_size=len(small_tokenizer),
        context_length=17,
    )
    save_model(small_model, tmp_path / "m", preprocess, small_tokenizer)
    assert load_preprocess(str(tmp_path / "m")) == preprocess
    processor = AutoImageProcessor.from_pretrained(tmp_path / "m")
    wide = Image.fromarray(np.zeros((40, 80, 3), np.uint8))
    assert processor(wide, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_a_model_in_bf16_keeps_its_scale_and_its_pixels_in_float32(saved, small_tokenizer):
    plain = load_model(str(saved))
    model = load_model(str(saved), dtype=torch.bfloat16)
    assert model.backbone.visual_projection.weight.dtype == torch.bfloat16
    assert model().scale.equal(plain().scale)
    assert model.mean.equal(plain.mean)
    pixels = torch.arange(3 * 32 * 32).remainder(256).to(torch.uint8).view(1, 3, 32, 32)
    ids, _ = tokenize(small_tokenizer, ["two dogs"], context_length=24)
    for one, other in zip(model(pixels, ids)[:2], plain(pixels, ids)[:2], strict=True):
        assert one.dtype == torch.float32
        assert (one * other).sum() > 0.999


def test_the_folder_holds_json_text_and_safetensors_only(saved):
    suffixes = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".md", ".safetensors"}
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 24
    assert settings["split_special_tokens"] is True
    assert str(saved.parent) not in "".join(p.read_text() for p in saved.glob("*.json"))


def test_saving_replaces_a_model_and_leaves_nothing_beside_it(
    saved, small_model, small_preprocess, small_tokenizer
):
    (saved / "stale.txt").write_text("of the model before")
    with torch.no_grad():
        small_model.logit_scale.fill_(2.5)
    save_model(small_model, saved, small_preprocess, small_tokenizer, card="# Mine\n")
    assert load_model(str(saved)).logit_scale.item() == 2.5
    assert (saved / "README.md").read_text() == "# Mine\n"
    assert not (saved / "stale.txt").exists()
    assert os.listdir(saved.parent) == ["model"]


def test_a_save_that_fails_leaves_the_model_before_it(
    saved, small_model, small_preprocess, small_tokenizer, monkeypatch
):
    with torch.no_grad():
        small_model.logit_scale.fill_(2.5)
    monkeypatch.setattr(
        CLIPImageProcessor, "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        save_model(small_model, saved, small_preprocess, small_tokenizer)
    assert load_model(str(saved)).logit_scale.item() != 2.5
    assert os.listdir(saved.parent) == ["model"]


def test_a_folder_of_other_files_is_not_replaced(
    tmp_path, small_model, small_preprocess, small_tokenizer
):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="holds files but no model"):
        save_model(small_model, tmp_path / "photos", small_preprocess, small_tokenizer)
    assert (tmp_path / "photos" / "one.jpg").exists()


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def another_type(folder: Path) -> None:
    edit_json(folder / "config.json", model_type="bert", architectures=["BertModel"])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    class Canary:
        def __reduce__(self):
            return (Path.touch, (folder / "canary",))

    no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary()))


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def one_weight_missing(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def one_weight_of_another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = torch.zeros(7, 7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_image_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


def nearest(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", resample=0)


def larger_resize(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", size={"shortest_edge": 40})


def another_size(folder: Path) -> None:
    size = {"height": 64, "width": 64}
    edit_json(folder / "preprocessor_config.json", size={"shortest_edge": 64}, crop_size=size)


def not_normalised(folder: Path) -> None:
    edit_json(folder / "preprocessor_config.json", do_normalize=False)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (no_folder, "no such folder"),
        (no_config, "no config.json"),
        (broken_config, "no model could be loaded"),
        (another_type, "it is a bert model"),
        (no_weights, "there are no weights"),
        (pickled_weights, "pickled .*: clipkit convert .*/model model-safetensors"),
        (cut_weights, "cannot be loaded"),
        (one_weight_missing, r"1 of the weights are missing, visual_projection\.weight"),
        (one_weight_of_another_shape, r"1 of the weights .* shape .* \(\(7, 7\), not \(48, 64\)\)"),
        (no_image_processor, "no image processor"),
        (nearest, "resample"),
        (larger_resize, "resizes to .*40.* and crops to .*32"),
        (another_size, "images of 64 pixels, config.json says 32"),
        (not_normalised, "do_normalize False"),
    ],
)
def test_what_cannot_be_loaded_exactly_is_refused_in_one_line(saved, damage, sentence):
    damage(saved)
    with pytest.raises(CheckpointError, match=sentence) as error:
        load_model(str(saved))
    assert str(error.value).startswith(str(saved))
    assert "\n" not in str(error.value)
    assert not (saved / "canary").exists()


def test_preprocessing_of_old_hub_files_is_understood(saved):
    # As OpenAI's files on the hub have it: plain numbers, and a feature extractor.
    (saved / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "crop_size": 32,
                "do_center_crop": True,
                "do_normalize": True,
                "do_resize": True,
                "feature_extractor_type": "CLIPFeatureExtractor",
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "resample": 3,
                "size": 32,
            }
        )
    )
    preprocess = load_preprocess(str(saved))
    assert (preprocess.image_size, preprocess.resize) == (32, "crop")
    assert preprocess.mean == PreprocessConfig().mean


# Run where clipkit cannot be imported; prints embeddings as JSON.
LOADERS = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
from sentence_transformers import SentenceTransformer

folder, texts = sys.argv[1], json.loads(sys.argv[3])
images = [Image.open(path).convert("RGB") for path in json.loads(sys.argv[2])]
both = {"text": texts, "images": images}
with torch.no_grad():
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    inputs = processor(**both, padding=True, truncation=True, return_tensors="pt")
    auto = model(**inputs)
    classify = pipeline("zero-shot-image-classification", model=folder)
    scores = classify(images, candidate_labels=texts[:2], hypothesis_template="{}")
encoder = SentenceTransformer(folder, device="cpu")
assert "clipkit" not in sys.modules
json.dump({
    "classes": [type(model).__name__, type(processor).__name__, type(processor.tokenizer).__name__],
    "auto_images": auto.image_embeds.tolist(), "auto_texts": auto.text_embeds.tolist(),
    "pixels": inputs["pixel_values"].tolist(),
    "scores": [{s["label"]: s["score"] for s in one} for one in scores],
    "st_images": encoder.encode(images).tolist(), "st_texts": encoder.encode(texts).tolist(),
}, open(sys.argv[4], "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_others_load_the_folder_without_clipkit_and_agree(
    tmp_path, resize, small_model, small_preprocess, small_tokenizer
):
    pytest.importorskip("sentence_transformers")
    preprocess = dataclasses.replace(small_preprocess, resize=resize)
    folder = tmp_path / "model"
    save_model(small_model, folder, preprocess, small_tokenizer)
    rng = np.random.default_rng(0)
    images = []
    for height, width in ((50, 71), (33, 32), (90, 40)):
        pixels = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
        images.append(str(tmp_path / f"{height}.png"))
        Image.fromarray(pixels).resize((width, height)).save(images[-1])
    arguments = [str(folder), json.dumps(images), json.dumps(TEXTS), str(tmp_path / "out.json")]
    # -P and another folder: the source tree cannot be found.
    run = subprocess.run(
        [sys.executable, "-P", "-c", LOADERS, *arguments],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    theirs = json.loads((tmp_path / "out.json").read_text())
    assert theirs["classes"] == ["CLIPModel", "CLIPProcessor", "CLIPTokenizer"]

    model = load_model(str(folder))
    tokenizer = load_tokenizer(str(folder), context_length=24)
    ids, cut = tokenize(tokenizer, TEXTS, context_length=24)
    assert cut == 2
    with torch.no_grad():
        ours = model(torch.tensor(theirs["pixels"]), ids)
        scale = model().scale
    for name, embeds in (("images", ours.image_embeds), ("texts", ours.text_embeds)):
        for loader in ("auto", "st"):
            other = torch.tensor(theirs[f"{loader}_{name}"])
            assert (other.norm(dim=-1) - 1).abs().max() < 1e-5
            assert (other * embeds).sum(dim=-1).min() >= 0.9999
    # The pipeline cuts no text; a label longer than the context is an error of its own.
    expected = (scale * ours.image_embeds @ ours.text_embeds[:2].T).softmax(dim=-1)
    for row, scores in zip(expected, theirs["scores"], strict=True):
        for label, probability in zip(TEXTS, row.tolist(), strict=False):
            assert scores[label] == pytest.approx(probability, abs=1e-4)

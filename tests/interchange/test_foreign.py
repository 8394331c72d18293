"""Models that open_clip and transformers made give the embeddings they give there."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import (
    TEXT,
    TEXTS,
    VISION,
    save_clip,
    save_open_clip,
    save_siglip,
    save_vision_text,
)
from tiny_model import noise_image, noise_shard
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

import clipkit
from clipkit.cli import main
from clipkit.errors import CheckpointError

IMAGES = [noise_image(i, size) for i, size in enumerate([(50, 41), (33, 64), (35, 32), (99, 38)])]
LABELS = ["a cat", "two dogs", "the house"]

TANH = {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}, "mlp_ratio": 3.3}
OPEN_CLIP: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "gelu": ({"vision_cfg": VISION, "text_cfg": TEXT}, {}, False),
    "quick_gelu, pickled, squashed": (
        {"quick_gelu": True, "vision_cfg": {**VISION, "patch_dropout": 0.5}, "text_cfg": TEXT},
        {"mean": [0.5] * 3, "std": [0.4] * 3, "resize_mode": "squash", "interpolation": "bilinear"},
        True,
    ),
    "custom text tower, a bias, odd norms": (
        {
            "custom_text": True,
            "init_logit_bias": -10.0,
            "vision_cfg": {**VISION, **TANH},
            "text_cfg": {**TEXT, "tokenizer_kwargs": {"clean": "canonicalize"}},
        },
        {},
        False,
    ),
}


def open_clip_differences(folder: Path) -> tuple[float, float, float]:
    """Between open_clip and clipkit: of image and text embeddings and of probabilities."""
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    texts = [*TEXTS, "a Cat’s house &amp; “dog” ½ İ"]
    with torch.no_grad():
        images = torch.stack([transform(image) for image in IMAGES])
        their_images = model.eval().encode_image(images, normalize=True).numpy()
        their_texts = model.encode_text(tokenizer(texts), normalize=True).numpy()
        logits = model.get_logits(images, tokenizer(LABELS))[0]
    shares = logits.softmax(-1) if model.logit_bias is None else logits.sigmoid()
    return _differences(folder, texts, their_images, their_texts, shares.numpy())


def transformers_differences(folder: Path) -> tuple[float, float, float]:
    """The same between transformers and clipkit."""
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    siglip = model.config.model_type == "siglip"
    settings = {"padding": "max_length" if siglip else True, "truncation": True}
    pixels = AutoImageProcessor.from_pretrained(folder)(images=IMAGES, return_tensors="pt")

    def run(texts: list[str]) -> Any:
        with torch.no_grad():
            return model(**tokenizer(texts, return_tensors="pt", **settings), **pixels)

    out, logits = run(TEXTS), run(LABELS).logits_per_image
    unit = torch.nn.functional.normalize
    shares = logits.sigmoid() if siglip else logits.softmax(-1)
    images, texts = unit(out.image_embeds).numpy(), unit(out.text_embeds).numpy()
    return _differences(folder, TEXTS, images, texts, shares.numpy())


def _differences(
    folder: Path, texts: list[str], their_images: Any, their_texts: Any, shares: Any
) -> tuple[float, float, float]:
    encoder = clipkit.load(folder, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of the texts is cut
        ours = encoder.encode_image(IMAGES), encoder.encode_text(texts)
    # Else nothing is told by their being equal.
    assert min(np.abs(each - each[::-1]).max() for each in ours) > 0.01
    probabilities = clipkit.ZeroShotClassifier(encoder, LABELS).probabilities(ours[0])
    pairs = zip((*ours, probabilities), (their_images, their_texts, shares), strict=True)
    found = tuple(float(np.abs(one - other).max()) for one, other in pairs)
    print(folder.name, [f"{each:.1e}" for each in found])
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("kind", OPEN_CLIP)
def test_open_clip_checkpoints_give_its_embeddings(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    model, preprocess, pickled = OPEN_CLIP[kind]
    folder = save_open_clip(
        tmp_path / "model", {"embed_dim": 24, **model}, preprocess, pickled=pickled
    )
    assert max(open_clip_differences(folder)) < 1e-5


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "CLIP, gelu": lambda folder: save_clip(folder),
    "CLIP, quick_gelu": lambda folder: save_clip(folder, activation="quick_gelu"),
    "SigLIP": save_siglip,
    "SigLIP 2": lambda folder: save_siglip(folder, second=True),
    "ViT and BERT": save_vision_text,
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_of_transformers_give_its_embeddings(kind: str, tmp_path: Path) -> None:
    assert max(transformers_differences(FOLDERS[kind](tmp_path / "model"))) < 1e-5


def test_where_each_label_is_a_yes_or_no_any_probability_may_be_the_threshold(
    tmp_path: Path,
) -> None:
    encoder = clipkit.load(save_siglip(tmp_path / "model"), device="cpu")
    best = clipkit.ZeroShotClassifier(encoder, LABELS)(IMAGES).scores.max(axis=1)
    least = float(np.sort(best)[:2].mean())
    assert least < 1 / len(LABELS)
    result = clipkit.ZeroShotClassifier(encoder, LABELS, other=least)(IMAGES)
    assert sum(each.label == "other" for each in result) == 1


def test_the_tokens_are_those_of_open_clip() -> None:
    tokenizer = pytest.importorskip("open_clip.tokenizer")
    from clipkit.data.open_clip_tokenizer import openai_tokenizer
    from clipkit.data.tokenize import tokenize

    texts = [
        "It’s “so” ﬁne… 1½ ＡＢＣ",
        "İ्²\u200d👩🏽‍🚀 ΣΑΣ",
        "&lt;b&gt; a_b  don't",
        "ünïcode 一只猫 ٣",
    ]
    for clean in ("lower", "whitespace", "canonicalize"):
        theirs = tokenizer.SimpleTokenizer(clean=clean)(texts)
        own = pickle.loads(pickle.dumps(openai_tokenizer("", context_length=77, clean=clean)))
        ids, cut = tokenize(own, texts, context_length=77)
        ends = (theirs == 49407).int().argmax(1) + 1
        for row, their_row, end in zip(ids, theirs, ends, strict=True):
            assert row[:end].tolist() == their_row[:end].tolist()
        assert cut == 0


@pytest.mark.parametrize(
    ("part", "keys", "sentence"),
    [
        ("vision_cfg", {"timm_model_name": "vit_base_patch16_224"}, "vision_cfg.timm_model_name"),
        ("vision_cfg", {"ls_init_value": 1e-5}, "vision_cfg.ls_init_value is 1e-05"),
        ("vision_cfg", {"attentional_pool": True}, "vision_cfg.attentional_pool is true"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, "the image tower is a ResNet"),
        ("vision_cfg", {"image_size": [32, 64]}, r"image_size is \[32, 64\]"),
        ("vision_cfg", {"from_tomorrow": 1}, "vision_cfg.from_tomorrow is 1"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "text_cfg.hf_model_name"),
        ("text_cfg", {"no_causal_mask": True}, "text_cfg.no_causal_mask"),
        ("text_cfg", {"embed_cls": True}, "text_cfg.embed_cls"),
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type is last"),
        ("text_cfg", {"tokenizer_kwargs": {"reduction_mask": "random"}}, "reduction_mask"),
        ("text_cfg", {"vocab_size": 100}, "ids up to 49407, where the model takes 100"),
        ("text_cfg", {"pool_type": "eos", "eos_id": 7}, "from the id 7"),
        ("text_cfg", {"layers": 3}, "not those that open_clip_config.json tells of"),
        ("model_cfg", {"multimodal_cfg": {"width": 8}}, "model_cfg.multimodal_cfg"),
        ("model_cfg", {"init_logit_bias": -10}, "do not agree on a logit_bias"),
        ("preprocess_cfg", {"resize_mode": "longest"}, "resize_mode is longest"),
        ("preprocess_cfg", {"interpolation": "nearest"}, "interpolation is nearest"),
    ],
)
def test_what_open_clip_has_and_clipkit_has_not_is_refused(
    open_clip_folder: Path, part: str, keys: dict[str, Any], sentence: str
) -> None:
    path = open_clip_folder / "open_clip_config.json"
    before = path.read_text()
    tree = json.loads(before)
    model = tree["model_cfg"]
    {"model_cfg": model, "preprocess_cfg": tree["preprocess_cfg"]}.get(
        part, model.get(part)
    ).update(keys)
    path.write_text(json.dumps(tree))
    try:
        with pytest.raises(CheckpointError, match=sentence) as error:
            clipkit.load(open_clip_folder, device="cpu")
    finally:
        path.write_text(before)
    assert str(error.value).startswith(str(open_clip_folder))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
    return save_open_clip(tmp_path_factory.mktemp("open_clip") / "model", config)


class Canary:
    def __reduce__(self) -> Any:
        return os.mkdir, ("canary",)


def test_a_pickle_that_runs_code_is_refused(
    open_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = (open_clip_folder / "open_clip_config.json").read_text()
    (tmp_path / "open_clip_config.json").write_text(config)
    torch.save({"visual.proj": Canary()}, tmp_path / "open_clip_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="weights cannot be loaded"):
        clipkit.load(tmp_path, device="cpu")
    assert not (tmp_path / "canary").exists()


def test_naflex_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path / "model")
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"siglip"', '"siglip2"'))
    with pytest.raises(CheckpointError, match=r"SigLIP 2 of the NaFlex kind.*one resolution"):
        clipkit.load(folder, device="cpu")


def test_the_commands_take_a_siglip(clipkit: Any, tmp_path: Path) -> None:
    model, shard = save_siglip(tmp_path / "model"), noise_shard(tmp_path / "a.tar", 4)
    store = tmp_path / "store"
    done = clipkit("embed", model, shard, store, "--workers", 1)
    assert (done.returncode, "32 numbers each" in done.stdout) == (0, True), done.stderr
    found = clipkit("search", store, "-k", 2, "a red cat")
    assert (found.returncode, found.stdout.count("a.tar")) == (0, 2), found.stderr
    weights = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((store / "manifest.json").read_text())["weights_sha256"] == weights


@pytest.mark.parametrize(
    "kind", ["clip", "siglip", "siglip 2", "VisionTextDualEncoder", "open_clip", "open_clip, bias"]
)
def test_classify_and_eval_take_models_from_elsewhere(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    if kind.startswith("open_clip"):
        pytest.importorskip("open_clip")
        bias = {"init_logit_bias": -10.0, "custom_text": True} if "bias" in kind else {}
        save_open_clip(folder, {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, **bias})
    elif kind == "VisionTextDualEncoder":
        save_vision_text(folder)
    elif kind == "clip":
        save_clip(folder)
    else:
        save_siglip(folder, second=kind.endswith("2"))
    noise_image(0).save(tmp_path / "a.png")
    asked = ["--labels", "a cat,two dogs,the house", "--json", "-k", "3"]
    capsys.readouterr()  # what saving said
    assert main(["classify", str(folder), str(tmp_path / "a.png"), *asked]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    scores = [each["score"] for each in found["labels"]]
    assert len(scores) == 3
    assert found["label"] == found["labels"][0]["label"]
    if "bias" in kind or "siglip" in kind:
        assert all(0 < score < 1 for score in scores)  # a yes or no to each
    else:
        assert sum(scores) == pytest.approx(1, abs=1e-4)

    shard = noise_shard(tmp_path / "a.tar", 6)
    numbers = tmp_path / "numbers.json"
    assert main(["eval", str(folder), str(shard), "--workers", "0", "--json", str(numbers)]) == 0
    metrics = json.loads(numbers.read_text())["metrics"]
    assert (metrics["num_images"], metrics["num_texts"]) == (6, 6)
    assert 0 <= metrics["text_to_image_R@5"] <= 1
    assert "text_to_image_R@10" not in metrics  # of six images it cannot be wrong


BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12} | {
    "intermediate_size": 3072
}


@pytest.mark.long
@pytest.mark.parametrize("quick", [False, True])
def test_open_clip_of_the_size_of_vit_b_32(quick: bool, tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    config = {
        "embed_dim": 512,
        "quick_gelu": quick,
        "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8},
    }
    assert max(open_clip_differences(save_open_clip(tmp_path / "model", config))) < 1e-5


@pytest.mark.long
@pytest.mark.parametrize("kind", ["clip", "quick", "siglip", "siglip2", "vision-text"])
def test_transformers_of_the_size_of_vit_b(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    if kind in ("clip", "quick"):
        save_clip(
            folder, tower=BASE, size=224, activation="gelu" if kind == "clip" else "quick_gelu"
        )
    elif kind == "vision-text":
        save_vision_text(folder, tower=BASE)
    else:
        save_siglip(folder, tower=BASE, second=kind == "siglip2")
    assert max(transformers_differences(folder)) < 1e-5

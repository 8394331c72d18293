"""A model whose tokenizer or weights are not its own is refused, for every kind of folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from random_models import save_clip, save_siglip, save_vision_text
from safetensors.torch import load_file, save_file
from tiny_model import noise_image, noise_shard, save_tiny_model
from transformers import ViTConfig

import clipkit as package
from clipkit.cli import main
from clipkit.errors import CheckpointError
from clipkit.interchange.export import export

KINDS = ("clip", "ours", "siglip", "vision-text", "open_clip")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind, and CLIP with vocab.json and merges.txt."""
    base = tmp_path_factory.mktemp("kinds")
    save_clip(base / "clip")
    save_tiny_model(base / "ours")
    save_siglip(base / "siglip")
    save_vision_text(base / "vision-text")
    export(str(base / "clip"), base / "open_clip", to="open_clip")
    shutil.copytree(base / "clip", base / "slow")
    model = json.loads((base / "slow" / "tokenizer.json").read_text())["model"]
    (base / "slow" / "tokenizer.json").unlink()
    (base / "slow" / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (base / "slow" / "merges.txt").write_text("\n".join(lines) + "\n")
    return base


def refused(folder: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        package.load(folder, device="cpu", **options)
    message = str(error.value)
    assert message.startswith(str(folder)), message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", [*KINDS, "slow"])
def test_each_file_of_the_tokenizer_removed_is_harmless_or_refused(
    whole: Path, tmp_path: Path, kind: str
) -> None:
    before = package.load(whole / kind, device="cpu").encode_text(["a photo of the cat", "a dog"])
    names = [path.name for path in (whole / kind).iterdir()]
    files = [n for n in names if n.startswith(("tokenizer", "vocab", "merges"))]
    for gone in [*([name] for name in files), files]:
        folder = tmp_path / "-".join(["without", *gone])
        shutil.copytree(whole / kind, folder, ignore=shutil.ignore_patterns(*gone))
        if gone == ["tokenizer_config.json"] and kind in ("clip", "ours", "open_clip", "slow"):
            after = package.load(folder, device="cpu").encode_text(["a photo of the cat", "a dog"])
            assert abs(after - before).max() < 1e-5
        else:
            assert re.search(r"tokenizer\.json|tokenizer_config|vocab|merges", refused(folder))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", ["clip", "ours", "siglip"])
def test_the_tokenizer_of_another_model_is_refused(
    whole: Path, tmp_path: Path, kind: str, other: str
) -> None:
    if kind == other or {kind, other} == {"clip", "open_clip"}:
        return
    if {kind, other} == {"siglip", "vision-text"}:  # one vocabulary, as the fixtures have it
        return
    assert "does not fit the model" in refused(whole / kind, tokenizer=whole / other)
    folder = tmp_path / "swapped"
    shutil.copytree(whole / kind, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(whole / other / name, folder / name)
    assert "copy the tokenizer's files" in refused(folder)


def edit(path: Path, **changes: Any) -> None:
    tree = json.loads(path.read_text())
    for key, value in changes.items():
        part, _, name = key.rpartition("__")
        (tree[part] if part else tree)[name] = value
    path.write_text(json.dumps(tree))


def other_end(folder: Path) -> None:
    edit(folder / "config.json", text_config__eos_token_id=7)


def default_end(folder: Path) -> None:
    edit(folder / "config.json", text_config__eos_token_id=49407)


def another_class(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


def no_room(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", model_max_length=2)


def no_merges(folder: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    tree["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def other_words(folder: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    a, b = (word for word, id in vocabulary.items() if id in (530, 531))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    (folder / "tokenizer.json").write_text(json.dumps(tree))


def fewer_layers(folder: Path) -> None:
    edit(folder / "config.json", vision_config__num_hidden_layers=0)


def wider(folder: Path) -> None:
    edit(folder / "config.json", text_config__hidden_size=64)


def one_vector(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.startswith("text_model.embeddings.token"):
            weight.fill_(0.5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["text_projection.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def dense(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "a.b.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (other_end, "takes its embedding from the id 7"),
        (default_end, "takes its embedding from the id 49407"),
        (another_class, "GPT2Tokenizer, which tokenizer_config.json asks for"),
        (no_room, "makes the same tokens of every text, of 2 at most"),
        (no_merges, "it has no merges"),
        (other_words, "others than those the model was saved with"),
        (fewer_layers, "config.json has no place for 16 of the weights, vision_model"),
        (wider, "have another shape than config.json says, text_model"),
        (one_vector, "have one vector"),
        (not_finite, "not finite"),
        (pointer, "a pointer of Git LFS"),
        (adapter, "it holds an adapter"),
        (dense, "puts a Dense behind the model"),
    ],
)
def test_parts_of_a_clip_that_do_not_fit_are_named(
    whole: Path, tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    shutil.copytree(whole / "ours", tmp_path / "model")
    damage(tmp_path / "model")
    assert sentence in refused(tmp_path / "model")


def test_old_files_that_name_2_as_their_end_are_pooled_at_the_greatest_id(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "clip", tmp_path / "model")
    edit(tmp_path / "model" / "config.json", text_config__eos_token_id=2)
    texts = ["a photo of the cat", "a dog"]
    one, other = (
        package.load(folder, device="cpu").encode_text(texts)
        for folder in (whole / "clip", tmp_path / "model")
    )
    assert abs(one - other).max() < 1e-6
    tree = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    for token in tree["added_tokens"]:
        if token["content"] == "<|endoftext|>":
            token["id"] = 5
    tree["model"]["vocab"]["<|endoftext|>"] = 5
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tree))
    assert "does not fit" in refused(tmp_path / "model")


def test_a_tower_without_pooled_output_is_refused_and_others_load(tmp_path: Path) -> None:
    from random_models import _TOWER, save_dual
    from transformers import BertConfig, DeiTConfig, DistilBertConfig, RobertaConfig

    sizes = {"image_size": 32, "patch_size": 8}
    texts = {
        "distilbert": DistilBertConfig(
            dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=64, max_position_embeddings=16
        ),
        "bert": BertConfig(**_TOWER, vocab_size=64, max_position_embeddings=16),
        "roberta": RobertaConfig(
            **_TOWER, vocab_size=64, max_position_embeddings=17, pad_token_id=0
        ),
    }
    folder = save_dual(tmp_path / "d", ViTConfig(**_TOWER, **sizes), texts["distilbert"])
    assert "its text tower (distilbert) has no pooled output" in refused(folder)
    for name, vision in (
        ("bert", DeiTConfig(**_TOWER, **sizes)),
        ("roberta", ViTConfig(**_TOWER, **sizes)),
    ):
        encoder = package.load(save_dual(tmp_path / name, vision, texts[name]), device="cpu")
        one, other = encoder.encode_text(["a cat", "two red dogs"])
        assert abs(one - other).max() > 1e-3


COMMANDS = {
    "classify": ("classify", "{model}", "{image}", "--labels", "a cat,a dog"),
    "eval": ("eval", "{model}", "{shard}"),
    "embed": ("embed", "{model}", "{shard}", "{out}"),
    "export": ("export", "{model}", "{out}", "--to", "open_clip"),
    "search": ("search", "{store}", "a cat"),
}


@pytest.fixture
def names(whole: Path, tmp_path: Path) -> dict[str, Path]:
    """What the commands are about; the model is whole, and a store is embedded with it."""
    names = {key: tmp_path / key for key in ("model", "image", "out", "store")}
    shutil.copytree(whole / "clip", names["model"])
    names["shard"] = noise_shard(tmp_path / "shard.tar", 8)
    noise_image(0).save(names["image"], "PNG")
    return names


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_model_without_its_tokenizer(
    names: dict[str, Path], command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if command == "search":
        assert main(["embed", *(str(names[key]) for key in ("model", "shard", "store"))]) == 0
    (names["model"] / "tokenizer.json").unlink()
    capfd.readouterr()
    assert main([part.format(**names) for part in COMMANDS[command]]) == 4
    *_, line = capfd.readouterr().err.splitlines()
    assert "its tokenizer does not fit the model: it has 3 tokens" in line
    assert not names["out"].exists()


@pytest.mark.slow
def test_the_command_line_refuses_it_in_one_line(clipkit: Any, names: dict[str, Path]) -> None:
    (names["model"] / "tokenizer.json").unlink()
    result = clipkit(*(part.format(**names) for part in COMMANDS["classify"]))
    assert result.returncode == 4, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert "its tokenizer does not fit the model: it has 3 tokens" in line

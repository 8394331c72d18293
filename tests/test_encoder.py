"""Encoder: one vector a picture however it is handed over, texts that are texts, live models."""

# ruff: noqa: F811 (fixtures are imported, and named again as arguments)
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import noise_image, png_bytes, tiny_encoder, tiny_folder, write_shard  # noqa: F401
from transformers import AutoModel, AutoProcessor

import clipkit
from clipkit.config.schema import SourceConfig
from clipkit.data import build_eval_loader, open_source
from clipkit.encoder import Encoder
from clipkit.errors import CheckpointError, ClipkitError, ConfigError, DataError


def test_every_kind_of_image_gives_the_same_vector(tiny_encoder: Encoder, tmp_path: Path) -> None:
    image = noise_image(1)
    path = tmp_path / "image.png"
    path.write_bytes(png_bytes(image))
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    kinds = [image, path, str(path), path.read_bytes(), bytearray(png_bytes(image)), array, tensor]
    expected = tiny_encoder.encode_image(image)
    assert expected.shape == (24,)
    assert expected.dtype == np.float32
    assert np.linalg.norm(expected) == pytest.approx(1, abs=1e-6)
    for kind in kinds:
        np.testing.assert_array_equal(tiny_encoder.encode_image(kind), expected, str(type(kind)))
        assert tiny_encoder.encode_image([kind]).shape == (1, 24)


def test_several_images_give_rows_in_their_order(tiny_encoder: Encoder) -> None:
    images = [noise_image(i, (20 + i, 16)) for i in range(5)]
    alone = np.stack([tiny_encoder.encode_image(image) for image in images])
    for several in (images, tuple(images), iter(images)):
        together = tiny_encoder.encode_image(several, batch_size=2)
        np.testing.assert_allclose(together, alone, atol=1e-6)
    stacked = np.stack([np.asarray(noise_image(i)) for i in range(3)])
    np.testing.assert_allclose(
        tiny_encoder.encode_image(stacked), tiny_encoder.encode_image(list(stacked)), atol=1e-6
    )
    assert tiny_encoder.encode_image([]).shape == (0, 24)


def test_grey_transparent_and_rotated_images_go_through_the_one_policy(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    upright = noise_image(3)
    exif = Image.Exif()
    exif[0x0112] = 3  # stored upside down
    path = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_180).save(path, exif=exif)
    expected = tiny_encoder.encode_image(upright)
    np.testing.assert_array_equal(tiny_encoder.encode_image(path), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(tiny_encoder.encode_image(opened), expected)
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    np.testing.assert_array_equal(
        tiny_encoder.encode_image(clear),
        tiny_encoder.encode_image(Image.new("RGB", (16, 16), "white")),
    )


def test_a_text_named_like_a_file_is_text(
    tiny_encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = tiny_encoder.encode_text("cat.png")
    (tmp_path / "cat.png").write_bytes(png_bytes(noise_image(0)))
    np.testing.assert_array_equal(tiny_encoder.encode_text("cat.png"), before)
    assert not np.allclose(tiny_encoder.encode_image("cat.png"), before)


def test_texts_come_back_in_their_order_whatever_the_batches(tiny_encoder: Encoder) -> None:
    texts = ["a house", "cat", "a tiny round red house", "一只猫", "dog dog", "b"]
    alone = np.stack([tiny_encoder.encode_text(text) for text in texts])
    np.testing.assert_allclose(tiny_encoder.encode_text(texts, batch_size=2), alone, atol=1e-6)
    assert tiny_encoder.encode_text("cat").shape == (24,)
    assert tiny_encoder.encode_text(["cat"]).shape == (1, 24)
    assert tiny_encoder.encode_text([]).shape == (0, 24)


def test_texts_that_are_cut_are_counted(tiny_encoder: Encoder) -> None:
    with pytest.warns(UserWarning, match="2 of 3 texts were longer than the model's 16 tokens"):
        tiny_encoder.encode_text(["cat", "cat " * 40, "dog " * 40])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (3, r"images\[0\]: a int; give a PIL image"),
        (np.zeros((4, 4), np.uint8), r"images\[0\]: a uint8 array of shape \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), r"images\[0\]: a float32 array"),
        (torch.zeros(3, 4, 4), r"images\[0\]: a float32 tensor of shape \(3, 4, 4\)"),
        (b"<html>", r"images\[0\]: the image cannot be decoded \(HTML"),
        ("nowhere.png", r"nowhere.png: no such file$"),
        ("https://example.com/a.png", "no such file; URLs are not fetched"),
        ({"a": 1}, r"images\[0\]: a dict; give a PIL image"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(
    tiny_encoder: Encoder, bad: object, message: str
) -> None:
    with pytest.raises(ClipkitError, match=message) as caught:
        tiny_encoder.encode_image(bad)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_bad_image_among_others_is_named_by_its_place(tiny_encoder: Encoder) -> None:
    images = [noise_image(0), noise_image(1), b"GIF89a", noise_image(2)]
    with pytest.raises(DataError, match=r"images\[2\]: the image cannot be decoded"):
        tiny_encoder.encode_image(images, batch_size=1)


@pytest.mark.parametrize(("bad", "place"), [("  ", 0), (["a", None], 1), (["a", "b", 3], 2)])
def test_what_is_no_text_is_refused(tiny_encoder: Encoder, bad: object, place: int) -> None:
    with pytest.raises(ClipkitError, match=rf"texts\[{place}\]: "):
        tiny_encoder.encode_text(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [None, 3, Path("cat.txt"), {"cat": 1}, b"cat", {"cat"}])
def test_texts_of_another_kind_are_refused_naming_what_is_accepted(
    tiny_encoder: Encoder, bad: object
) -> None:
    with pytest.raises(ClipkitError, match=rf"texts: a {type(bad).__name__}; give a text \(str\)"):
        tiny_encoder.encode_text(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_below_one_is_refused(tiny_encoder: Encoder, size: int) -> None:
    with pytest.raises(ConfigError, match=f"batch_size: {size}"):
        tiny_encoder.encode_text(["cat"], batch_size=size)
    with pytest.raises(ConfigError, match=f"batch_size: {size}"):
        tiny_encoder.encode_image([noise_image(0)], batch_size=size)


def test_an_image_without_pixels_is_refused(tiny_encoder: Encoder) -> None:
    with pytest.raises(DataError, match=r"images\[1\]: an image of 0 × 5 pixels"):
        tiny_encoder.encode_image([noise_image(0), Image.new("RGB", (0, 5))])


def test_embeddings_equal_those_of_transformers(tiny_encoder: Encoder, tiny_folder: Path) -> None:
    model = AutoModel.from_pretrained(tiny_folder).eval()
    processor = AutoProcessor.from_pretrained(tiny_folder)
    images, texts = [noise_image(i, (33, 21)) for i in range(4)], ["red cat", "一只猫", "x"]
    inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**inputs)
    ours_i, ours_t = tiny_encoder.encode_image(images), tiny_encoder.encode_text(texts)
    assert (ours_i * theirs.image_embeds.numpy()).sum(1).min() > 0.9999
    assert (ours_t * theirs.text_embeds.numpy()).sum(1).min() > 0.9999


def test_a_model_in_training_is_evaluated_and_stays_in_training(tiny_folder: Path) -> None:
    loaded = clipkit.load(tiny_folder, device="cpu")
    model = loaded.model.train()
    for config in (model.backbone.config.vision_config, model.backbone.config.text_config):
        config.attention_dropout = 0.5
    for module in model.modules():
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    encoder = Encoder(model, loaded.preprocess, loaded.tokenizer, "cpu")
    rng = torch.get_rng_state()
    first, second = encoder.encode_text("red cat"), encoder.encode_text("red cat")
    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), rng)
    assert model.training
    with pytest.raises(ClipkitError):
        encoder.encode_image([b""])
    assert model.training
    input_ids = torch.tensor(loaded.tokenizer(["red cat"])["input_ids"])
    torch.manual_seed(0)
    outputs = [model(input_ids=input_ids).text_embeds for _ in range(2)]
    assert not torch.equal(*outputs)  # there is dropout, which evaluating must leave out
    outputs[0].sum().backward()  # and nothing of inference mode is left behind


def test_embeddings_computed_in_bf16_are_float32_and_near(
    tiny_folder: Path, tiny_encoder: Encoder
) -> None:
    half = clipkit.load(tiny_folder, device="cpu")
    half.model.compute_dtype = torch.bfloat16
    images = [noise_image(i) for i in range(4)]
    ours, theirs = half.encode_image(images), tiny_encoder.encode_image(images)
    assert ours.dtype == np.float32
    assert 0.99 < (ours * theirs).sum(1).min() < 1 - 1e-7


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_large_batches_on_several_cores_give_what_one_core_gives(
    tiny_folder: Path, tiny_encoder: Encoder, dtype: torch.dtype | None
) -> None:
    images = np.stack([np.asarray(noise_image(i % 50)) for i in range(2500)])
    before, found = torch.get_num_threads(), []
    training = clipkit.load(tiny_folder, device="cpu")
    training.model.train()
    try:
        for threads, encoder in ((1, tiny_encoder), (3, tiny_encoder), (3, training)):
            torch.set_num_threads(threads)
            with encoder.computing(dtype):
                found.append(encoder.encode_image(images, batch_size=2500))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    # To the last bit on an Intel Xeon; in float32 on an AMD EPYC MKL rounds otherwise by 1e-7.
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[0], found[2], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[0][:50], found[0][50:100], atol=1e-6)


def test_weights_that_change_between_calls_are_the_new_ones(tiny_folder: Path) -> None:
    encoder = clipkit.load(tiny_folder, device="cpu")
    before = encoder.encode_text("red cat"), encoder.encode_image(noise_image(0))
    with torch.no_grad():
        encoder.model.backbone.text_projection.weight.neg_()
        encoder.model.backbone.visual_projection.weight.neg_()
    np.testing.assert_allclose(encoder.encode_text("red cat"), -before[0], atol=1e-6)
    np.testing.assert_allclose(encoder.encode_image(noise_image(0)), -before[1], atol=1e-6)


def test_encode_loader_leaves_out_what_cannot_be_used(
    tiny_encoder: Encoder, tmp_path: Path
) -> None:
    samples = [(png_bytes(noise_image(i)), f"cat {i}") for i in range(5)]
    samples[2] = (b"not an image at all", "cat 2")
    path = write_shard(tmp_path / "a.tar", samples)
    reader = open_source(SourceConfig(path=str(path)), progress=False)
    loader = build_eval_loader(
        reader,
        tiny_encoder.preprocess,
        tiny_encoder.tokenizer,
        batch_size=2,
        max_image_pixels=10**6,
    )
    embeds = tiny_encoder.encode_loader(loader)
    assert [key[-1] for key in embeds.keys] == ["0", "1", "3", "4"]
    assert [skip.reason for skip in embeds.skipped] == ["not an image of a known format"]
    kept = [i for i in range(5) if i != 2]
    expected = tiny_encoder.encode_image([noise_image(i) for i in kept])
    np.testing.assert_allclose(embeds.image_embeds, expected, atol=1e-6)
    expected = tiny_encoder.encode_text([f"cat {i}" for i in kept])
    np.testing.assert_allclose(embeds.text_embeds, expected, atol=1e-6)


def test_load_finds_the_model_in_a_run(tmp_path: Path, tiny_folder: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints/step-000010").mkdir(parents=True)
    (run / "config.yaml").write_text("x: 1\n")
    (run / "checkpoints/step-000010/model").symlink_to(tiny_folder)
    with pytest.raises(CheckpointError, match=r"has not finished.*step-000010"):
        clipkit.load(run)
    (run / "model").symlink_to(tiny_folder)
    assert clipkit.load(run, device="cpu").embed_dim == 24


def test_load_says_what_is_wrong(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder"):
        clipkit.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"^emojy: no such folder; hub names are owner/name"):
        clipkit.load("emojy")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        clipkit.load(tmp_path)
    with pytest.raises(ConfigError, match="device: gpu cannot be used here"):
        clipkit.load(tiny_folder, device="gpu")

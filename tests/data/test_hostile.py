"""Hostile and odd files and captions: one verdict, one reason and the same pixels and ids in
training, in evaluation and in ``encode_image`` and ``encode_text``, and memory within a bound."""

# ruff: noqa: F811 (fixtures are imported, and named again as arguments)
from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hostile import CAPTIONS, Case, corpus
from PIL import Image
from sample_files import encoded, photo, write_tar
from tiny_model import tiny_encoder, tiny_folder  # noqa: F401

from clipkit.config.schema import AugmentConfig, DataConfig, SourceConfig
from clipkit.data import (
    ImageError,
    build_eval_loader,
    build_train_loader,
    decode_image,
    jpeg,
    open_source,
)
from clipkit.data.decode import decode_pixels
from clipkit.data.reader import decode_text
from clipkit.data.tokenize import clean_caption
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError, DataError
from clipkit.types import Batch

CAP = DataConfig().max_image_pixels
# All of every picture, but for those that are longer than four times their other edge.
WHOLE = AugmentConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.25, 4.0))
# Levels of 255 between an edge that was decoded at half, a quarter or an eighth of the size and
# then resized, and one decoded in full; on even ground the two are the same.
SCALED_TOLERANCE, SCALED_MEAN = 25, 1.0


@pytest.fixture(params=["fastest decoder", "pillow"])
def decoder(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg", reason="simplejpeg (the extra fast) is not installed")


@pytest.fixture(params=["crop", "squash"])
def encoder(request, tiny_encoder: Encoder) -> Encoder:
    preprocess = dataclasses.replace(tiny_encoder.preprocess, resize=request.param)
    return Encoder(tiny_encoder.model, preprocess, tiny_encoder.tokenizer, "cpu")


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")


def write_source(kind: str, folder: Path, images: list[tuple[str, bytes]], caption: bytes) -> Path:
    """The images, numbered, each with the same caption, as a source of one kind."""
    if kind == "parquet":
        columns = {"image": [d for _, d in images], "caption": [caption.decode()] * len(images)}
        folder.mkdir()
        pq.write_table(pa.table(columns), folder / "x.parquet")
        return folder / "x.parquet"
    members = []
    for number, (name, data) in enumerate(images):
        members += [(f"{number:03d}.{name.split('.')[-1]}", data), (f"{number:03d}.txt", caption)]
    if kind == "tar":
        return write_tar(folder / "x.tar", members)
    folder.mkdir()
    for name, data in members:
        (folder / name).write_bytes(data)
    return folder


def loaded(encoder: Encoder, source: Path, *, training: bool) -> list[Batch]:
    """All samples once."""
    reader = open_source(SourceConfig(path=str(source)), progress=False)
    if not training:
        return list(
            build_eval_loader(
                reader, encoder.preprocess, encoder.tokenizer, batch_size=50, max_image_pixels=CAP
            )
        )
    config = DataConfig(workers=0, augment=WHOLE)
    return list(
        build_train_loader(
            reader, config, encoder.preprocess, encoder.tokenizer,
            seed=0, batch_size=len(reader), start_step=0, steps=1,
        )
    )  # fmt: skip


def outcomes(batches: list[Batch]) -> dict[int, torch.Tensor | str]:
    """Sample's number → its pixels, or why it was skipped."""
    found: dict[int, torch.Tensor | str] = {}
    for batch in batches:
        reasons = iter([skip.reason for skip in batch.skipped])
        rows = zip(batch.keys, batch.valid.tolist(), batch.pixel_values, strict=True)
        for key, valid, pixels in rows:
            found[int(key.split(".")[0])] = pixels if valid else next(reasons)
    return found


def encoded_inputs(encoder: Encoder, encode, item, name: str) -> torch.Tensor | str:
    """What reaches the model when one item is encoded, or the message that says why not."""
    seen: list[torch.Tensor] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs[name][0]), with_kwargs=True
    )
    try:
        encode(item)
    except ClipkitError as error:
        return str(error)
    finally:
        hook.remove()
    return seen[0]


def middles(pixels: np.ndarray) -> np.ndarray:
    """(4, 3) of (H, W, 3): the levels in the middles of the quarters."""
    height, width = pixels.shape[:2]
    places = [(y, x) for y in (1, 3) for x in (1, 3)]
    return np.array([pixels[height * y // 4, width * x // 4] for y, x in places]).astype(int)


@pytest.mark.parametrize("kind", ["tar", "folder", "parquet"])
def test_each_file_has_one_verdict_and_the_same_pixels_wherever_it_goes(
    kind, encoder: Encoder, decoder, tmp_path: Path, datasets_cache
):
    cases = corpus()
    source = write_source(kind, tmp_path / "in", [(c.name, c.data) for c in cases], b"a caption")
    of_training = outcomes(loaded(encoder, source, training=True))
    of_evaluation = outcomes(loaded(encoder, source, training=False))
    # A row of Parquet without bytes is left out before.
    there = {n: case for n, case in enumerate(cases) if case.data or kind != "parquet"}
    assert sorted(of_training) == sorted(of_evaluation) == list(there)
    for number, case in there.items():
        trained, evaluated = of_training[number], of_evaluation[number]
        served = encoded_inputs(encoder, encoder.encode_image, case.data, "pixel_values")
        if case.reason is not None:
            assert trained == evaluated == case.reason, case
            assert served == f"images[0]: the image cannot be decoded ({case.reason})", case
            continue
        assert isinstance(trained, torch.Tensor), (case, trained)
        assert isinstance(evaluated, torch.Tensor), (case, evaluated)
        assert isinstance(served, torch.Tensor), (case, served)
        assert served.equal(evaluated), case
        assert_shows(case, evaluated)
        if encoder.preprocess.resize == "crop":  # of training, the whole: another cut
            assert_shows(case, trained)
        elif case.scaled:
            difference = (trained.int() - evaluated.int()).abs()
            assert difference.max() <= SCALED_TOLERANCE, case
            assert difference.float().mean() <= SCALED_MEAN, case
        else:
            assert trained.equal(evaluated), case


def assert_shows(case: Case, pixels: torch.Tensor) -> None:
    """(3, S, S) pixels hold the colours of the case's picture, at their places."""
    assert case.picture is not None
    expected = middles(np.asarray(case.picture))
    found = middles(pixels.permute(1, 2, 0).numpy())
    edges = 0 if len(np.unique(expected, axis=0)) == 1 else 4  # bicubic overshoots beside them
    assert np.abs(found - expected).max() <= case.tolerance + edges, case


@pytest.mark.parametrize("use", ["evaluation", "training"])
def test_each_file_decodes_to_the_picture_it_shows(use, decoder, recwarn):
    for case in corpus():
        if case.picture is None:
            with pytest.raises(ImageError) as caught:
                decoded(use, case)
            assert str(caught.value) == case.reason, case
            continue
        pixels, expected = decoded(use, case), np.asarray(case.picture)
        assert pixels.shape == expected.shape, case
        if case.tolerance == 0:
            assert np.array_equal(pixels, expected), case
        else:
            assert np.abs(middles(pixels) - middles(expected)).max() <= case.tolerance, case
    assert not recwarn.list


def decoded(use: str, case: Case) -> np.ndarray:
    """(H, W, 3) in full."""
    if use == "evaluation":
        return np.asarray(decode_image(case.data, max_pixels=CAP))
    return np.asarray(decode_pixels(case.data, max_pixels=CAP, at_least=10_000))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # what Pillow says of one opened outside
def test_a_path_and_an_opened_image_are_as_the_bytes_are(tiny_encoder: Encoder, tmp_path: Path):
    for case in corpus():
        path = tmp_path / case.name
        path.write_bytes(case.data)
        served = encoded_inputs(tiny_encoder, tiny_encoder.encode_image, path, "pixel_values")
        if case.reason is not None:
            assert served == f"{path}: the image cannot be decoded ({case.reason})"
            continue
        of_bytes = encoded_inputs(
            tiny_encoder, tiny_encoder.encode_image, case.data, "pixel_values"
        )
        assert torch.equal(served, of_bytes), case
        with Image.open(path) as opened:
            of_image = encoded_inputs(
                tiny_encoder, tiny_encoder.encode_image, opened, "pixel_values"
            )
        assert torch.equal(of_image, of_bytes), case


def test_a_file_larger_than_any_photograph_is_refused_by_its_size(
    tiny_encoder: Encoder, tmp_path: Path, monkeypatch
):
    for module in ("decode", "reader"):
        monkeypatch.setattr(f"clipkit.data.{module}.MAX_IMAGE_BYTES", 1000)
    monkeypatch.setattr("clipkit.inputs.MAX_IMAGE_BYTES", 1000)
    large = encoded(photo(100, 100), "BMP")
    for kind in ("folder", "tar"):
        images = [("a.png", encoded(photo(5, 5), "PNG")), ("b.bmp", large)]
        source = write_source(kind, tmp_path / kind, images, b"a caption")
        reader = open_source(SourceConfig(path=str(source)), progress=False)
        if kind == "tar":  # known by the index already
            assert reader.dropped == {"image file too large": 1}
        else:
            (batch,) = loaded(tiny_encoder, source, training=False)
            assert [skip.reason for skip in batch.skipped] == ["image file too large"]
    (tmp_path / "large.bmp").write_bytes(large)
    for item in (large, tmp_path / "large.bmp"):
        with pytest.raises(DataError, match=r"cannot be decoded \(image file too large\)"):
            tiny_encoder.encode_image(item)


@pytest.mark.filterwarnings("ignore:1 of 1 texts were longer")
@pytest.mark.parametrize("kind", ["tar", "folder"])
def test_each_caption_has_one_verdict_and_the_same_ids_wherever_it_goes(
    kind, tiny_encoder: Encoder, tmp_path: Path
):
    image = encoded(photo(20, 20), "PNG")
    tokenizer = tiny_encoder.tokenizer
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    for number, (name, (raw, kept)) in enumerate(CAPTIONS.items()):
        source = write_source(kind, tmp_path / str(number), [("a.png", image)], raw)
        if kept is None and kind == "tar" and len(raw) <= 64:  # left out by the index
            with pytest.raises(DataError, match="1 with empty caption"):
                loaded(tiny_encoder, source, training=True)
            continue
        began = time.monotonic()
        trained, evaluated = (
            loaded(tiny_encoder, source, training=training)[0] for training in (True, False)
        )
        served = encoded_inputs(
            tiny_encoder, tiny_encoder.encode_text, decode_text(raw), "input_ids"
        )
        assert time.monotonic() - began < 5, name
        if kept is None:
            for batch in (trained, evaluated):
                assert [skip.reason for skip in batch.skipped] == ["empty caption"], name
            assert served == "texts[0]: an empty text; leave it out", name
            continue
        assert not trained.skipped, name
        ids = trained.input_ids[0]
        assert ids.equal(evaluated.input_ids[0]), name
        assert ids.equal(served), name
        assert ids[0] == tokenizer.bos_token_id, name
        assert ids[-1] == tokenizer.eos_token_id, name
        assert not special & set(ids[1:-1].tolist()), name
        assert trained.replaced == evaluated.replaced == ("\ufffd" in kept), name
        assert trained.truncated == evaluated.truncated, name
        assert trained.truncated == ("megabyte" in name) or len(ids) == 16, name


@pytest.mark.parametrize("name", CAPTIONS)
def test_each_caption_becomes_the_text_it_should_and_stays_that(name):
    raw, kept = CAPTIONS[name]
    began = time.monotonic()
    assert clean_caption(decode_text(raw)) == kept
    assert time.monotonic() - began < 1
    assert clean_caption(kept) == kept


# Decodes in a process of its own, whose highest memory the kernel knows; prints for each picture
# the bytes that it took above what was there before.
MEASURE = """
import json, sys
from pathlib import Path
import torch  # before anything is measured
from clipkit.config.schema import AugmentConfig, PreprocessConfig
from clipkit.data import ImageError, decode_image, eval_transform, jpeg, train_transform
from clipkit.data.decode import decode_pixels

if sys.argv[2] == "pillow":
    jpeg.simplejpeg = None
preprocess, whole = PreprocessConfig(image_size=64), AugmentConfig(crop_scale=(1.0, 1.0))

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

def evaluate(data, cap):
    return eval_transform(decode_image(data, max_pixels=cap), preprocess)

def train(data, cap):
    pixels = decode_pixels(data, max_pixels=cap, at_least=100_000)
    return train_transform(pixels, preprocess, whole, 0, 0)

def take(use, data, cap):
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far is what there is now
    before = memory("VmRSS")
    try:
        use(data, cap)
        said = None
    except ImageError as error:
        said = str(error)
    return [said, memory("VmHWM") - before]

warm = Path(sys.argv[1], "warm.png").read_bytes()
evaluate(warm, 10**6), train(warm, 10**6)
found = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    cap = 4000 * 4000 if path.name.startswith("full-") else 64_000_000
    found[path.name] = [take(use, path.read_bytes(), cap) for use in (evaluate, train)]
print(json.dumps(found))
"""


def measure(folder: Path, decoder: str) -> dict[str, list[tuple[str | None, int]]]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder), decoder],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    if "clear_refs" in done.stderr:
        pytest.skip("this kernel does not forget the highest memory of a process")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def full_pictures() -> dict[str, bytes]:
    """Pictures of exactly the cap, 4000 × 4000, in the ways that take most to decode."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif = exif.tobytes()
    flat, clear = Image.new("RGB", (4000, 4000)), Image.new("RGBA", (4000, 4000))
    palette = Image.new("P", (4000, 4000))
    return {
        "rgb.png": encoded(flat, "PNG"),
        "alpha.png": encoded(clear, "PNG", exif=exif),
        "palette.png": encoded(palette, "PNG", transparency=0),
        "16-bit.png": encoded(Image.new("I;16", (4000, 4000)), "PNG"),
        "alpha.webp": encoded(clear, "WEBP"),
        "turned.jpg": encoded(flat, exif=exif),
        "progressive.jpg": encoded(flat, progressive=True, subsampling=0),
        "cmyk.jpg": encoded(flat.convert("CMYK"), progressive=True),
        "palette.gif": encoded(palette, "GIF", transparency=0),
        "alpha.tif": encoded(clear, "TIFF", compression="tiff_deflate", exif=exif),
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize(
    "decoder", ["fastest decoder", pytest.param("pillow", marks=pytest.mark.long)]
)
def test_memory_is_bounded_by_the_pixel_cap(tmp_path: Path, decoder: str):
    (tmp_path / "warm.png").write_bytes(encoded(photo(), "PNG"))
    refused = {case.name: case.data for case in corpus() if case.reason is not None}
    for name, data in refused.items():
        (tmp_path / f"refused-{name}").write_bytes(data)
    for name, data in full_pictures().items():
        (tmp_path / f"full-{name}").write_bytes(data)
    # The default cap to the pixel.
    (tmp_path / "largest.png").write_bytes(encoded(Image.new("L", (8000, 8000)), "PNG"))
    found = measure(tmp_path, decoder)
    assert len(found) == len(refused) + len(full_pictures()) + 2
    for name, ways in found.items():
        for said, taken in ways:
            if name.startswith("refused-"):
                assert said == next(c.reason for c in corpus() if c.name == name[8:]), name
                assert taken < 8 * 2**20, (name, taken)  # bytes, whatever the file claims
            else:
                pixels = 64_000_000 if name == "largest.png" else 16_000_000
                assert said is None, (name, said)
                assert taken < 24 * pixels, (name, taken / pixels)  # bytes a pixel

"""A model that costs nothing to make and small data sets, for whatever embeds."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipkit
from clipkit.config.schema import ModelConfig, PreprocessConfig, TowerConfig, VisionConfig
from clipkit.data.tokenize import train_tokenizer
from clipkit.encoder import Encoder
from clipkit.models import build_model, save_model

WORDS = ("red", "green", "blue", "cat", "dog", "house", "一只猫", "round", "square", "tiny")


def save_tiny_model(folder: Path, *, seed: int = 0) -> Path:
    """A random CLIP of 16 × 16 pixels in a Hugging Face folder."""
    preprocess = PreprocessConfig(image_size=16, context_length=16)
    tokenizer = train_tokenizer(list(WORDS) * 4, vocab_size=600, context_length=16)
    sizes = ModelConfig(
        embed_dim=24,
        vision=VisionConfig(width=32, layers=1, heads=2, patch_size=8),
        text=TowerConfig(width=32, layers=1, heads=2),
    )
    model = build_model(sizes, preprocess, tokenizer, init_temperature=0.07, seed=seed)
    save_model(model, folder, preprocess, tokenizer)
    return folder


def noise_image(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    """RGB noise, (width, height): no two seeds look alike to any model."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_shard(path: Path, samples: Sequence[tuple[bytes, str | None]]) -> Path:
    """A WebDataset tar of (image file, caption); no caption where it is None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, (image, caption) in enumerate(samples):
            members = {f"{i:05d}.png": image}
            if caption is not None:
                members[f"{i:05d}.txt"] = caption.encode()
                members[f"{i:05d}.json"] = json.dumps({"words": caption.split()}).encode()
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def noise_shard(path: Path, count: int, *, first: int = 0) -> Path:
    """``count`` noise images; sample i's caption holds the number ``first + i``."""
    return write_shard(
        path,
        [
            (png_bytes(noise_image(first + i)), f"{WORDS[i % len(WORDS)]} number {first + i}")
            for i in range(count)
        ],
    )


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_encoder(tiny_folder: Path) -> Encoder:
    return clipkit.load(tiny_folder, device="cpu")

"""Makes images and tars for tests."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def photo(width: int = 48, height: int = 40, seed: int = 0) -> Image.Image:
    """A smooth image with detail, other for each seed."""
    x, y = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 6, height))
    phase = np.random.default_rng(seed).uniform(0, 6, size=(3, 2))
    waves = [np.sin(x * 2 + a) + np.cos(x * y / 2 + b) for a, b in phase]
    pixels = (np.stack(waves, axis=-1) + 2) * 63.75
    return Image.fromarray(pixels.astype(np.uint8))


def encoded(image: Image.Image | None = None, format: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or photo()).save(buffer, format=format, **options)
    return buffer.getvalue()


def write_tar(
    path: Path, members: list[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT
) -> Path:
    """A tar of plain files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pair_members(count: int, begin: int = 0) -> list[tuple[str, bytes]]:
    """KEY.jpg and KEY.txt of ``count`` samples."""
    members = []
    for i in range(begin, begin + count):
        members.append((f"{i:04d}.jpg", encoded(photo(40 + i % 9, 36 + i % 7, seed=i))))
        members.append((f"{i:04d}.txt", f"caption number {i}".encode()))
    return members


def write_shards(folder: Path, sizes: list[int]) -> str:
    """Shards ``train-000.tar`` … with consecutive samples; returns their glob."""
    begin = 0
    for number, size in enumerate(sizes):
        write_tar(folder / f"train-{number:03d}.tar", pair_members(size, begin))
        begin += size
    return str(folder / "train-*.tar")

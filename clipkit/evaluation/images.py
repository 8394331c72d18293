"""Whatever a user calls images: one, many, a folder, a column → their names and unit vectors.

Images are opened one at a time and let go again, so that a stream of any length takes the memory
of a batch of the model's pixels.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from clipkit.data.files import is_url, walk
from clipkit.data.reader import IMAGE_EXTENSIONS
from clipkit.display.console import progress_bar
from clipkit.display.page import small_webp
from clipkit.encoder import Encoder
from clipkit.errors import ClipkitError, ConfigError, DataError
from clipkit.inputs import check_count, is_one_image, open_image

_THUMBNAIL = 128  # pixels, the longest edge


@dataclass
class EmbeddedImages:
    """B images, in their order.

    Attributes:
        names: a path where an image has one, else ``image 3``.
        embeds: (B, D) float32, unit length; NaN where the image cannot be read.
        faults: why an image cannot be read, naming it; None where it can.
        thumbnails: small WebP files; None where none was asked for.
    """

    embeds: np.ndarray
    names: list[str] = field(default_factory=list)
    faults: list[str | None] = field(default_factory=list)
    thumbnails: list[bytes | None] = field(default_factory=list)


def embed_images(
    encoder: Encoder,
    images: Any,
    *,
    batch_size: int = 64,
    urls: bool = False,
    progress: bool = False,
    thumbnails: int = 0,
) -> Iterator[EmbeddedImages]:
    """Embeds images batch by batch; one that cannot be read is named, and takes nothing with it.

    Args:
        encoder: the model.
        images: see ``ZeroShotClassifier.__call__``.
        batch_size: images at a time.
        urls: whether URLs are fetched.
        progress: whether to show a progress bar.
        thumbnails: for the first so many images a small picture is kept.

    Raises:
        DataError: a folder without images.
        ConfigError: a whole ``datasets`` table, of which one column is meant; ``batch_size`` is no
            whole number from 1.
    """
    check_count("batch_size", batch_size)
    named, total = _named(images)
    source = enumerate(named)
    kept = range(thumbnails)
    with progress_bar("images", total, "image", show=progress) as bar:
        while True:
            batch = EmbeddedImages(np.zeros((0, encoder.embed_dim), dtype=np.float32))
            opened = _open_each(islice(source, batch_size), batch, urls, kept, bar)
            embeds = encoder.encode_image(opened, batch_size=batch_size)
            if not batch.names:
                return
            batch.embeds = np.full((len(batch.names), encoder.embed_dim), np.nan, dtype=np.float32)
            batch.embeds[[fault is None for fault in batch.faults]] = embeds
            yield batch


def check_faults(faults: Sequence[str | None]) -> None:
    """Warns of images that cannot be read, naming the first.

    Raises:
        DataError: it is all of them.
    """
    broken = [(row, fault) for row, fault in enumerate(faults) if fault is not None]
    if not broken:
        return
    row, fault = broken[0]
    if len(broken) == len(faults):
        rest = "" if len(faults) == 1 else f"; not one of {len(faults):,} images can be read"
        raise DataError(f"{fault}{rest}")
    warnings.warn(
        f"{len(broken):,} of {len(faults):,} images cannot be read; the first is row {row}, "
        f"{fault}",
        stacklevel=3,
    )


def folder_images(folder: str) -> tuple[list[str], Counter[str]]:
    """The image files below a folder by name, and the number of other files by kind.

    Raises:
        DataError: there are none.
    """
    files, others = [], Counter[str]()
    for name in walk(folder):
        kind = Path(name).suffix.lower()
        if kind.removeprefix(".") in IMAGE_EXTENSIONS:
            files.append(name)
        else:
            others[kind or "without extension"] += 1
    if not files:
        raise DataError(
            f"{folder}: no images are in this folder (looked for {', '.join(IMAGE_EXTENSIONS)})"
        )
    return [str(Path(folder) / file) for file in files], others


def _open_each(
    items: Iterable[tuple[int, tuple[str | None, Any]]],
    batch: EmbeddedImages,
    urls: bool,
    kept: range,
    bar: tqdm[Any],
) -> Iterator[Image.Image]:
    """The images that can be read; of all of them, names and faults are put into the batch."""
    for row, (name, item) in items:
        picture, fault, small = None, None, None
        try:
            picture = open_image(item, where=name or f"images[{row}]", urls=urls)
        except ClipkitError as error:
            fault = str(error)
            if isinstance(item, str) and is_url(item) and not urls:
                fault = f"{item}: a URL is fetched only where that is asked for (urls=True, --urls)"
        if picture is not None and row in kept:
            small = small_webp(picture, _THUMBNAIL)
        batch.names.append(name or f"image {row}")
        batch.faults.append(fault)
        batch.thumbnails.append(small)
        bar.update()
        if picture is not None:
            yield picture


def _named(images: Any) -> tuple[Iterable[tuple[str | None, Any]], int | None]:
    """(name, image) each, and how many there are, where that is known."""
    if isinstance(images, str | Path) and Path(images).expanduser().is_dir():
        images, _ = folder_images(str(Path(images).expanduser()))
    elif is_one_image(images):
        images = [images]
    elif type(images).__module__.split(".")[0] == "datasets":
        images = _undecoded(images)
    total = len(images) if hasattr(images, "__len__") else None
    return map(_name, images), total


def _name(item: Any) -> tuple[str | None, Any]:
    if isinstance(item, Mapping) and item.keys() == {"bytes", "path"}:  # datasets, undecoded
        path = item["path"]
        return path and Path(path).name, path if item["bytes"] is None else item["bytes"]
    return (str(item) if isinstance(item, str | Path) else None), item


def _undecoded(column: Any) -> Any:
    """A column of a ``datasets`` table, its images encoded, so that a bad one stops no other.

    Raises:
        ConfigError: it is no column.
    """
    datasets = sys.modules["datasets"]
    if not hasattr(column, "column_name"):
        columns = getattr(column, "column_names", None) or ["image"]
        raise ConfigError(
            f"images: a {type(column).__name__}; give one column of it, such as "
            f"dataset[{columns[0]!r}]"
        )
    source, name = column.source, column.column_name
    features = getattr(source, "features", None)
    encoded = isinstance(features, Mapping) and isinstance(features.get(name), datasets.Image)
    if encoded and hasattr(source, "cast_column"):  # not so a column of a column
        return source.cast_column(name, datasets.Image(decode=False)).with_format(None)[name]
    return column

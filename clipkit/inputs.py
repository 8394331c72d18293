"""Whatever a user calls an image or a text → an RGB PIL image, a clean text.

There is no guessing between the two: where an image is wanted a ``str`` is a path, where a
text is wanted it is text.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, SupportsIndex, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipkit.config.schema import DataConfig
from clipkit.data import ImageError, decode_image, to_rgb
from clipkit.data.files import is_url, read_all
from clipkit.data.reader import MAX_IMAGE_BYTES
from clipkit.data.tokenize import clean_caption
from clipkit.errors import ClipkitError, ConfigError, DataError

ImageInput: TypeAlias = Image.Image | Path | str | bytes | np.ndarray | Tensor
MAX_IMAGE_PIXELS = DataConfig().max_image_pixels
_ACCEPTED = (
    "a PIL image, a path, the bytes of an image file, an (H, W, 3) uint8 array or a "
    "(3, H, W) uint8 tensor"
)


def open_image(
    item: Any, *, where: str, max_pixels: int = MAX_IMAGE_PIXELS, urls: bool = False
) -> Image.Image:
    """An image of any accepted kind as an RGB PIL image, by the one pixel policy.

    Args:
        item: see ``Encoder.encode_image``.
        where: what to call it in a message, e.g. ``images[3]``.
        max_pixels: above which an encoded image is refused before it is decoded.
        urls: whether a ``str`` may be a URL, which is fetched.

    Raises:
        DataError: it cannot be read or decoded.
        ClipkitError: it is of another kind.
    """
    try:
        if isinstance(item, Image.Image):
            if not (item.width and item.height):
                raise DataError(f"{where}: an image of {item.width} × {item.height} pixels")
            return to_rgb(item)
        if isinstance(item, str | Path):
            where = str(item)
            fetched = urls and is_url(where)
            data = _fetch(where) if fetched else _read_file(Path(item))
            return decode_image(data, max_pixels=max_pixels)
        if isinstance(item, bytes | bytearray | memoryview):
            return decode_image(bytes(item), max_pixels=max_pixels)
    except ImageError as error:
        raise DataError(f"{where}: the image cannot be decoded ({error})") from error
    if isinstance(item, Tensor) and item.dtype == torch.uint8 and item.ndim == 3 and len(item) == 3:
        item = item.permute(1, 2, 0).cpu().numpy()
    elif isinstance(item, Tensor):
        raise ClipkitError(
            f"{where}: a {_plain(item.dtype)} tensor of shape {tuple(item.shape)}; give {_ACCEPTED}"
        )
    if isinstance(item, np.ndarray):
        if item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3 and item.size:
            return Image.fromarray(np.ascontiguousarray(item))
        raise ClipkitError(f"{where}: a {item.dtype} array of shape {item.shape}; give {_ACCEPTED}")
    raise ClipkitError(f"{where}: a {type(item).__name__}; give {_ACCEPTED}")


def is_one_image(images: object) -> bool:
    """Whether this is a single image and not several."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    kinds = (Image.Image, Path, str, bytes, bytearray, memoryview, Mapping)
    return isinstance(images, kinds) or not isinstance(images, Iterable)


def list_texts(texts: Any) -> list[Any]:
    """One text or several → a list; its items are looked at later.

    Raises:
        ClipkitError: it is neither.
    """
    if isinstance(texts, str):
        return [texts]
    # Bytes and mappings iterate too, over what nobody means; a set has no order.
    if isinstance(texts, bytes | bytearray | Mapping | Set) or not isinstance(texts, Iterable):
        raise ClipkitError(f"texts: a {type(texts).__name__}; give a text (str) or a list of texts")
    return list(texts)


def clean_text(item: object, *, where: str) -> str:
    """A text as captions are cleaned for training.

    Raises:
        ClipkitError: it is no text, or nothing is left of it.
    """
    if not isinstance(item, str):
        raise ClipkitError(f"{where}: a {type(item).__name__}; give a text (str)")
    text = clean_caption(item)
    if text is None:
        raise ClipkitError(f"{where}: an empty text; leave it out")
    return text


def _read_file(path: Path) -> bytes:
    path = path.expanduser()
    if path.is_dir():
        raise DataError(f"{path}: this is a folder; give the images in it")
    if not path.is_file():
        hint = "; URLs are not fetched" if "://" in str(path) or ":/" in str(path) else ""
        raise DataError(f"{path}: no such file{hint}")
    try:
        with path.open("rb") as file:
            return file.read(MAX_IMAGE_BYTES + 1)  # more than may be is refused as any bytes are
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _fetch(url: str) -> bytes:
    try:
        return read_all(url, MAX_IMAGE_BYTES)
    except OSError as error:
        raise DataError(f"{url}: cannot be fetched ({error.strerror or 'not there'})") from error


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_count(name: str, value: object) -> None:
    """Refuses what is no whole number, or below 1.

    Raises:
        ConfigError: naming ``name``.
    """
    if not isinstance(value, SupportsIndex) or operator.index(value) < 1:
        raise ConfigError(f"{name}: {value!r}; give a whole number, 1 or more")

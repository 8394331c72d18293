"""Karpathy's splits of COCO and Flickr: one JSON of captions beside folders of images → pairs.

https://cs.stanford.edu/people/karpathy/deepimagesent
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import SourceConfig
from clipkit.data import files
from clipkit.data.image_ids import ImageFiles, named_files, number_images
from clipkit.data.reader import Access, caption_texts, first_of
from clipkit.data.table import read_image
from clipkit.data.understood import Understood
from clipkit.errors import DataError
from clipkit.types import Pair

_LARGEST = 2**30


class KarpathyReader:
    """The images of one split with all their captions; see ``Reader``.

    Args:
        source: ``path`` is the folder of the images.
        annotations: ``dataset_coco.json`` or its like.
        split: ``test``, ``val``, ``train`` or ``restval``.

    Raises:
        DataError: a file is missing or of another kind, or the split has no images.
    """

    def __init__(self, source: SourceConfig, annotations: str, split: str) -> None:
        self.source = source
        self.dropped: dict[str, int] = {}
        self.damage: list[str] = []
        self.lost = 0
        self.access = Access(remote=files.is_url(source.path))
        self._annotations = annotations
        if files.kind(source.path) != "folder":
            raise DataError(f"{source.path}: no such folder; name the folder of the images")
        images = _read_images(annotations)
        try:
            self._images = [
                (
                    "/".join(part for part in (each.get("filepath"), each["filename"]) if part),
                    caption_texts([[sentence["raw"] for sentence in each["sentences"]]], source),
                )
                for each in images
                if each["split"] == split
            ]
            splits = sorted({str(each["split"]) for each in images})
        except KeyError as error:
            raise DataError(f"{annotations}: an image there lacks {error}") from None
        except TypeError:
            raise DataError(
                f"{annotations}: an image there is not as in Karpathy's files: filename and split "
                "are texts, sentences a list of mappings with raw"
            ) from None
        if not self._images:
            raise DataError(
                f"{annotations}: no image is of the split {split!r}; there are {', '.join(splits)}"
            )
        first = self._images[0][0]
        if files.kind(files.join(source.path, first)) != "file":
            flat = first.rsplit("/", 1)[-1]
            if files.kind(files.join(source.path, flat)) != "file":
                raise DataError(
                    f"{source.path}: {first} is not there, nor {flat}; name the folder that the "
                    f"names in {annotations} are relative to"
                )
            self._images = [(name.rsplit("/", 1)[-1], texts) for name, texts in self._images]
        self.shard_sizes = [len(self._images)]
        self.understood = Understood(
            images="files that the JSON names", captions=f"sentences of the split {split}"
        )
        self.fingerprint = files.digest(
            split, *(text for name, texts in self._images for text in (name, *texts))
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, row: int) -> Pair:
        name, captions = self._images[row]
        return Pair(
            key=name,
            image=read_image(self.source.path, name),
            caption=captions[0] if captions else None,
            origin=self.locate(row),
            others=captions[1:],
        )

    def locate(self, row: int) -> str:
        return files.join(self.source.path, self._images[row][0])

    def place(self, row: int) -> tuple[str, int | None]:
        return self.locate(row), None

    def texts(self) -> Iterator[list[str]]:
        return (captions for _, captions in self._images)

    def captions(self) -> Iterator[str]:
        return first_of(self.texts())

    def image_files(self) -> ImageFiles:
        return named_files(map(self.locate, range(len(self))))

    def image_ids(self) -> NDArray[np.int64] | None:
        return number_images(self.image_files())


def _read_images(path: str) -> list[dict[str, Any]]:
    try:
        tree = json.loads(files.read_all(path, _LARGEST))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not valid JSON") from None
    images = tree.get("images") if isinstance(tree, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f"{path}: it has no list of images; name a dataset_coco.json or its like")
    return images

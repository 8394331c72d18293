"""COCO's captions and Karpathy's splits: one JSON of images and captions → captions by image.

https://cocodataset.org/#format-data, https://cs.stanford.edu/people/karpathy/deepimagesent
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from clipkit.data import files
from clipkit.data.reader import split_names
from clipkit.errors import DataError

_LARGEST = 2**31
_ENDS = 2**18  # bytes at both ends of a file that tell what it is
_LISTS = re.compile(rb'"(images|annotations)"\s*:\s*\[\s*\{')
_CAPTIONS = re.compile(rb'"(caption|sentences)"\s*:')


@dataclass(frozen=True, slots=True)
class Annotations:
    """The captions of one file.

    Attributes:
        captions: of each image, by its name.
        told: where in the file they come from.
        notes: sentences on splits that are not read.
    """

    captions: dict[str, list[str]]
    told: str
    notes: list[str] = field(default_factory=list)


def has_annotations(path: str) -> bool:
    """Whether a JSON file holds captions in one of the two layouts, by its first and last bytes."""
    size = files.stat(path).size
    start = files.read(path, 0, min(size, _ENDS))
    if not start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        return False
    ends = start + files.read(path, max(0, size - _ENDS), min(size, _ENDS))
    return _LISTS.search(start) is not None and _CAPTIONS.search(ends) is not None


def has_splits(path: str) -> bool:
    """Whether a JSON file tells the split of each image, as Karpathy's do."""
    start = files.read(path, 0, min(files.stat(path).size, 2**14))
    return b'"sentences"' in start and b'"split"' in start and _LISTS.search(start) is not None


def read_annotations(path: str, split: str) -> Annotations:
    """The captions of a file's images.

    Args:
        path: of the file.
        split: the splits to take of Karpathy's files, with commas; COCO's have one.

    Raises:
        DataError: it is missing or in another layout, or has no image of the split.
    """
    tree = _read_json(path)
    images = tree.get("images") if isinstance(tree, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f"{path}: it has no list of images; name a dataset_coco.json or its like")
    try:
        if isinstance(images[0], dict) and "sentences" in images[0]:
            return _of_splits(path, images, split)
        return _of_ids(path, images, tree.get("annotations"))
    except KeyError as error:
        raise DataError(f"{path}: an image or annotation there lacks {error}") from None
    except (TypeError, AttributeError):
        raise DataError(
            f"{path}: not as COCO's or Karpathy's files: images have a file name, and captions are "
            "annotations with image_id and caption, or sentences with raw"
        ) from None


def _of_splits(path: str, images: list[dict[str, Any]], split: str) -> Annotations:
    counts = Counter(str(each.get("split", "")) for each in images)
    wanted = split_names(split)
    taken = set(wanted) if len(counts) > 1 else set(counts)
    if missing := [each for each in wanted if each not in counts and len(counts) > 1]:
        raise DataError(
            f"{path}: no image is of the split {missing[0]!r}; there are "
            f"{', '.join(sorted(counts))}"
        )
    captions = {
        "/".join(part for part in (each.get("filepath"), each["filename"]) if part): [
            str(sentence["raw"]) for sentence in each["sentences"]
        ]
        for each in images
        if str(each.get("split", "")) in taken
    }
    others = [f"{count:,} of {name}" for name, count in counts.items() if name not in taken]
    notes = [f"split {split}; not read are images {', '.join(others)}"] if others else []
    return Annotations(captions, "sentences.raw", notes)


def _of_ids(path: str, images: list[dict[str, Any]], annotations: Any) -> Annotations:
    if not isinstance(annotations, list):
        raise DataError(f"{path}: it has images and no list of annotations with their captions")
    by_id: dict[Any, list[str]] = {}
    for each in annotations:
        if "caption" in each:
            by_id.setdefault(each["image_id"], []).append(str(each["caption"]))
    if not by_id:
        raise DataError(f"{path}: none of its annotations has a caption; name captions_*.json")
    captions = {str(each["file_name"]): by_id.get(each["id"], []) for each in images}
    return Annotations(captions, "annotations by image_id")


def _read_json(path: str) -> Any:
    try:
        return json.loads(files.read_all(path, _LARGEST))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: not valid JSON") from None

"""A checkpoint's tensors, whole or in the parts that ranks hold, read by slices.

Whole, a set of tensors is one file. In parts, each rank writes what it holds into a folder of
its own, and ``index.json`` says of each tensor its shape, and where each part begins in it. Other
ranks, more or fewer, then read the slices that they need. safetensors and JSON: no pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from clipkit.errors import CheckpointError

# The sets, and where they are when they are whole: the weights in a Hugging Face folder.
_WHOLE = {"model": "model/model.safetensors"}


@dataclass
class Part:
    """What this rank holds of a tensor: a box, and where it begins in the whole of ``shape``."""

    tensor: Tensor
    shape: tuple[int, ...]
    offset: tuple[int, ...]


def part_of(tensor: Tensor) -> Part:
    """This rank's part of a sharded tensor, which shares its memory; any other is all its own."""
    if not isinstance(tensor, DTensor):
        return Part(tensor, tuple(tensor.shape), (0,) * tensor.ndim)
    _, offset = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return Part(tensor.to_local(), tuple(tensor.shape), tuple(offset))


def rank_folder(checkpoint: Path, rank: int) -> Path:
    return checkpoint / f"rank-{rank:05d}"


def whole_file(checkpoint: Path, name: str) -> Path:
    """Where a set of tensors is that was saved whole."""
    return checkpoint / _WHOLE.get(name, f"{name}.safetensors")


def has_tensors(checkpoint: Path, name: str) -> bool:
    """Whether a set of tensors is in a checkpoint."""
    files = [whole_file(checkpoint, name), rank_folder(checkpoint, 0) / f"{name}.safetensors"]
    return any(path.is_file() for path in files)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, which transformers reads too."""
    path.parent.mkdir(exist_ok=True)
    save_file(dict(tensors), path, metadata={"format": "pt"})


def index_of(parts: Mapping[str, Mapping[str, Part]]) -> dict[str, Any]:
    """set → name → shape, and where this rank's part of it begins: a line of ``index.json``."""
    return {
        name: {
            key: {"shape": part.shape, "offset": part.offset, "size": tuple(part.tensor.shape)}
            for key, part in content.items()
        }
        for name, content in parts.items()
    }


def join_indices(indices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What :func:`index_of` gave on each rank → ``index.json``."""
    joined: dict[str, Any] = {}
    for rank, index in enumerate(indices):
        for name, content in index.items():
            for key, own in content.items():
                tensor = joined.setdefault(name, {}).setdefault(
                    key, {"shape": own["shape"], "parts": []}
                )
                tensor["parts"].append({"rank": rank, "offset": own["offset"], "size": own["size"]})
    return joined


class SavedTensors:
    """A set of a checkpoint's tensors, of which any slice can be read.

    Args:
        checkpoint: its folder.
        name: of the set: ``model``, ``optimizer``, ``objectives``, ``ema``.

    Raises:
        CheckpointError: it is not there or cannot be read.
    """

    def __init__(self, checkpoint: Path, name: str) -> None:
        self.checkpoint, self.name = checkpoint, name
        self._files: dict[Path, Any] = {}
        self._index: dict[str, Any] | None = None
        path = checkpoint / "index.json"
        if path.is_file():
            try:
                self._index = json.loads(path.read_text(encoding="utf-8"))[name]
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise CheckpointError(f"{path}: cannot be read ({error})") from None

    def names(self) -> list[str]:
        if self._index is not None:
            return list(self._index)
        return list(self._open(whole_file(self.checkpoint, self.name)).keys())

    def shape(self, key: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        if self._index is not None:
            return tuple(self._index[key]["shape"])
        file = self._open(whole_file(self.checkpoint, self.name))
        return tuple(file.get_slice(key).get_shape())

    def read(
        self, key: str, offset: Sequence[int] | None = None, size: Sequence[int] | None = None
    ) -> Tensor:
        """A tensor, or a box of it: no more than that is read.

        Args:
            key: its name.
            offset: where the box begins; none: at the beginning.
            size: of the box; none: the whole.

        Raises:
            CheckpointError: the parts do not make it up, or cannot be read.
        """
        shape = self.shape(key)
        offset = (0,) * len(shape) if offset is None else offset
        size = shape if size is None else size
        if self._index is None:
            path = whole_file(self.checkpoint, self.name)
            return self._slice(path, key, offset, size).clone()  # else it lives in the file
        result: Tensor | None = None
        found = 0
        for part in self._index[key]["parts"]:
            begin, extent = _overlap(offset, size, part["offset"], part["size"])
            if any(n <= 0 for n in extent):
                continue
            path = rank_folder(self.checkpoint, part["rank"]) / f"{self.name}.safetensors"
            piece = self._slice(path, key, _minus(begin, part["offset"]), extent)
            if result is None:
                result = torch.empty(tuple(size), dtype=piece.dtype)
            result[_box(_minus(begin, offset), extent)] = piece
            found += math.prod(extent)
        if result is None or found != math.prod(size):
            raise CheckpointError(
                f"{self.checkpoint}: its parts hold {found} of {math.prod(size)} numbers of {key}"
            )
        return result

    def _slice(self, path: Path, key: str, offset: Sequence[int], size: Sequence[int]) -> Tensor:
        file = self._open(path)
        try:
            if not size:  # a number has no slices
                tensor: Tensor = file.get_tensor(key)
            else:
                tensor = file.get_slice(key)[_box(offset, size)]
        except SafetensorError as error:
            raise CheckpointError(f"{path}: {key} cannot be read ({error})") from None
        return tensor

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path}: cannot be read ({error})") from None
        return self._files[path]


def _box(offset: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))


def _overlap(
    offset: Sequence[int], size: Sequence[int], other: Sequence[int], other_size: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Where two boxes' common box begins, and its size; below 1 where there is none."""
    begin = [max(a, b) for a, b in zip(offset, other, strict=True)]
    boxes = zip(offset, size, other, other_size, strict=True)
    end = [min(a + n, b + m) for a, n, b, m in boxes]
    return begin, _minus(end, begin)


def _minus(first: Sequence[int], second: Sequence[int]) -> list[int]:
    return [a - b for a, b in zip(first, second, strict=True)]

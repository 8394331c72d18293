"""What stands for the content of a file, and of a model's weights: SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from clipkit.errors import CheckpointError

_WEIGHTS = ("model*.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def sha256(path: Path) -> str:
    """Of a file, as ``sha256sum`` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """Of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(folder: Path) -> str:
    """Of the weights in a model's folder: their file's; of several files, of theirs together.

    Raises:
        CheckpointError: there are none.
    """
    found = sorted(path for name in _WEIGHTS for path in folder.glob(name))
    digests = [sha256(path) for path in found]
    if not digests:
        raise CheckpointError(f"{folder}: the weights (model.safetensors) are no longer there")
    return digests[0] if len(digests) == 1 else text_sha256(" ".join(digests))

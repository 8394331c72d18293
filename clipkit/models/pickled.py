"""A file of pickled weights → tensors by name. No code that a file asks for is run."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor

from clipkit.errors import CheckpointError
from clipkit.hub import first_line


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The weights in a ``.bin`` or ``.pt`` file, on the CPU.

    A training checkpoint of open_clip holds them under ``state_dict``, perhaps with ``module.``
    before each name; both are taken off.

    Raises:
        CheckpointError: it is damaged, asks for code, or holds more than tensors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about protocols
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except pickle.UnpicklingError as error:
        # The rest of torch's message advises to run the code.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it is no plain pickle of tensors"
        raise CheckpointError(
            f"{path}: the weights cannot be loaded without running code from the file ({what}), "
            "and none was run; get the model's safetensors, or copy or download the file again."
        ) from error
    except Exception as error:  # torch and zipfile raise many kinds
        raise CheckpointError(
            f"{path}: the weights cannot be loaded ({first_line(error)}); copy or download them "
            "again."
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(
        isinstance(each, Tensor) for each in loaded.values()
    ):
        raise CheckpointError(
            f"{path}: the weights cannot be loaded (it holds more than tensors); copy or download "
            "them again."
        )
    return {name.removeprefix("module."): weight for name, weight in loaded.items()}

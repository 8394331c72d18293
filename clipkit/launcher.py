"""What torchrun, accelerate or Slurm tells this process: which rank it is, and its device."""

from __future__ import annotations

import os

from clipkit.errors import ConfigError


def launched_share() -> tuple[int, int]:
    """Rank and world size as a launcher has set them; 0 and 1 without one.

    Raises:
        ConfigError: they make no sense.
    """
    told = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        rank, world_size = map(int, told)
    except ValueError:
        rank, world_size = -1, -1
    if not 0 <= rank < world_size:
        raise ConfigError(f"RANK {told[0]} of WORLD_SIZE {told[1]}: ranks count from 0")
    return rank, world_size


def launched_device() -> str | None:
    """Each rank of a machine has a GPU of its own, as far as there are some."""
    import torch

    if "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return None

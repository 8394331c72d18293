"""The tiny model for the tests of this folder, and a shard to embed."""

from pathlib import Path

import pytest
from tiny_model import noise_shard, tiny_encoder, tiny_folder  # noqa: F401


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    return noise_shard(tmp_path / "data/a.tar", 20)

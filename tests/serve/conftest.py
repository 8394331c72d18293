"""A real ``clipkit serve`` over a small store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_process import ROWS, serving
from tiny_model import noise_shard, tiny_folder  # noqa: F401

from clipkit.retrieval.embed import embed


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:  # noqa: F811
    """Noise images with captions such as ``red number 7``."""
    folder = tmp_path_factory.mktemp("serve")
    noise_shard(folder / "shard.tar", ROWS)
    embed(tiny_folder, str(folder / "shard.tar"), folder / "store", progress=False)
    return folder / "store"


@pytest.fixture(scope="session")
def server(store: Path) -> Iterator[tuple[str, int]]:
    with serving(store) as running:
        yield running

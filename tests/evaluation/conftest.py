"""The tiny model for the tests of this folder, and a cache of their own."""

from collections.abc import Iterator

import pytest
from tiny_model import tiny_encoder, tiny_folder  # noqa: F401


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept there is of this code alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield

"""Small real data sets for the data tests; nothing is written outside the test's folder."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def caches_in_tmp(tmp_path_factory, monkeypatch):
    """Indexes that cannot lie beside their files go here."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache

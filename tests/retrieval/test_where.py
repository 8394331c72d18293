"""Conditions on a store's columns: which rows meet them, and which conditions are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from small_stores import cut_store
from tiny_model import noise_shard

from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.retrieval.embed import embed
from clipkit.retrieval.store import EmbeddingStore
from clipkit.retrieval.where import rows_where

_HIGH = 2**60
FIELDS = {
    "score": ("string", ["nan", "10", "20", "30.0", "", "50", " 60", "+70", None, "1e2"]),
    "id": ("string", [str(2**63 + i) for i in range(10)]),
    "day": ("string", [f"2024-01-{i:02d}" for i in range(10)]),
    "mixed": ("string", ["5", "5.0", "x", *[None] * 7]),
    "big": ("int64", [*(_HIGH + i for i in range(8)), None, -(2**63)]),
    "float": ("float64", [0.1, math.nan, math.inf, None, *[1.0] * 6]),
    "a=b": ("int64", [*range(10)]),
    ' "x" ': ("int64", [*range(10)]),
    "lines": ("string", ["one\ntwo", *["one"] * 9]),
}


@pytest.fixture(scope="module")
def store(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    folder = tmp_path_factory.mktemp("where")
    shard = noise_shard(folder / "a.tar", 10)
    whole = embed(tiny_encoder, str(shard), folder / "whole", columns=["none"], progress=False)
    x = np.concatenate(whole.image_embeds)
    return EmbeddingStore(cut_store(whole, folder / "store", np.arange(10), x, FIELDS))


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        # Of a CSV file all fields are texts.
        ("score>=5", [1, 2, 3, 5, 6, 7, 9]),
        ("score<60", [1, 2, 3, 5]),
        ("score>60", [7, 9]),
        ("score=10.0", [1]),
        ("score=3e1", [3]),
        ("score!=60", [0, 1, 2, 3, 4, 5, 7, 8, 9]),
        ("score=", [4]),
        ("score<1e999999999999999999", [1, 2, 3, 5, 6, 7, 9]),
        (f"id>={2**63 + 4}", [4, 5, 6, 7, 8, 9]),
        (f"id={2**63 + 4}", [4]),
        (f"id<{2**63 + 4}.5", [0, 1, 2, 3, 4]),
        ("day>=2024-01-07", [7, 8, 9]),
        ("day!=2024", [*range(10)]),
        ("mixed=5", [0, 1]),
        # Whole numbers beyond what floats tell apart, and beyond what the column holds.
        ("big>1e3", [*range(8)]),
        (f"big={_HIGH + 3}.0", [3]),
        (f"big!={_HIGH + 3}.5", [*range(10)]),
        (f"big<{_HIGH + 3}.5", [0, 1, 2, 3, 9]),
        (f"big>={_HIGH + 3}.5", [4, 5, 6, 7]),
        ("big<1e30", [*range(8), 9]),
        ("big>99999999999999999999", []),
        ("big>-99999999999999999999", [*range(8), 9]),
        ("big<=-9223372036854775808", [9]),
        ("big=-9223372036854775809", []),
        ("big>=nan", []),
        ("float=0.1", [0]),
        ("float>0.5", [2, 4, 5, 6, 7, 8, 9]),
        # Names that hold operators, spaces and quotes; values of several lines.
        ('"a=b">=8', [8, 9]),
        ('  " ""x"" "  <  2 ', [0, 1]),
        ('"score"=10', [1]),
        ("lines=one\ntwo", [0]),
        ("lines~E\nT", [0]),
    ],
)
def test_rows_meet_conditions(condition: str, expected: list[int], store: EmbeddingStore) -> None:
    mask = rows_where(store, condition)
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("day>=2024", "day holds text and cannot be ordered by a number"),
        ("mixed<1", "mixed holds text .* such as 'x'"),
        ("big>=many", "big is int64, which 'many' is not"),
        ("caption~\udcff", "is not UTF-8"),
        ("a=b>3", 'a: no such column. There are .*"a=b"'),
        ("x=3", 'There are .*" ""x"" "'),
        ('"a=c"=3', 'a=c: no such column. Did you mean "a=b"'),
        ('"a=b', "is no condition; .* in double quotes"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(
    condition: str, message: str, store: EmbeddingStore
) -> None:
    with pytest.raises(ConfigError, match=message):
        rows_where(store, condition)

"""Images of an evaluation that are in the training data, across kinds of sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_files import encoded, photo, write_tar

from clipkit.config.schema import Config, DataConfig, SourceConfig
from clipkit.data import open_source
from clipkit.data.overlap import shared_images, training_reader

FILES = [encoded(photo(12, 12, seed=i), "PNG") for i in range(10)]


def _folder(path: Path, numbers: range) -> Path:
    path.mkdir()
    for i in numbers:
        (path / f"a{i}.png").write_bytes(FILES[i])
        (path / f"a{i}.txt").write_text(f"caption {i}")
    return path


def _tar(path: Path, numbers: range) -> Path:
    members = [(f"b{i}.{k}.png", FILES[i]) for i in numbers for k in range(2)]
    texts = [(f"b{i}.{k}.txt", b"x") for i in numbers for k in range(2)]
    pairs = [each for pair in zip(members, texts, strict=True) for each in pair]
    return write_tar(path, [(name.replace(".", "_", 1), data) for name, data in pairs])


def _parquet(path: Path, numbers: range) -> Path:
    images = pa.array([{"bytes": FILES[i], "path": None} for i in numbers])
    pq.write_table(pa.table({"image": images, "caption": ["x"] * len(numbers)}), path)
    return path


MAKERS: dict[Literal["folder", "webdataset", "parquet"], Callable[[Path, range], Path]] = {
    "folder": _folder,
    "webdataset": _tar,
    "parquet": _parquet,
}


@pytest.mark.parametrize("trained", MAKERS)
@pytest.mark.parametrize("judged", MAKERS)
def test_images_are_found_again_by_their_content(
    trained: Literal["folder", "webdataset", "parquet"],
    judged: Literal["folder", "webdataset", "parquet"],
    tmp_path: Path,
) -> None:
    training = MAKERS[trained](tmp_path / "training", range(6))
    split = MAKERS[judged](tmp_path / "split", range(4, 10))
    readers = [
        open_source(SourceConfig(path=str(path), format=kind), progress=False)
        for path, kind in ((split, judged), (training, trained))
    ]
    assert shared_images(*readers) == 2


def test_what_is_held_back_is_not_trained_on(tmp_path: Path) -> None:
    path = _folder(tmp_path / "all", range(10))
    config = Config(data=DataConfig(train=SourceConfig(path=str(path)), holdout=0.3))
    training = training_reader(config)
    assert training is not None
    assert len(training) == 7
    assert shared_images(open_source(str(path), progress=False), training) == 7
    remote = Config(data=DataConfig(train=SourceConfig(path="https://nowhere.invalid/a.tar")))
    assert training_reader(remote) is None

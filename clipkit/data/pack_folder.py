"""The folder that ``clipkit data pack`` writes: its plan, its card, and its lock.

    README.md               what it holds, and for ``datasets`` which files are data
    shard-000000.tar …      the shards, or ``.parquet``
    sizes.json              samples, bytes, sha256 of each shard, once all are there
    .plan.json              which rows a shard holds, and how they are written
    .shard-000000.tar.clipkit-index.npz, .shard-000000.tar.json, .lock

What only clipkit reads has a hidden name: other programs do not take it for data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipkit.data import files
from clipkit.errors import CheckpointError, ConfigError

PLAN, SIZES, CARD = ".plan.json", "sizes.json", "README.md"
_OLD_PLAN = "plan.json"
EXTENSIONS = {"webdataset": "tar", "parquet": "parquet"}

_CARD = """\
---
configs:
- config_name: default
  data_files:
  - split: train
    path: shard-*.{extension}
---

Image-text pairs, packed by `clipkit data pack`: {what}.

```bash
clipkit data check path/to/this/folder
```
```python
import datasets

dataset = datasets.load_dataset("path/to/this/folder", split="train")
```
"""
_WHAT = {
    "webdataset": "WebDataset tars. Of each sample there are the image, `.txt` with its first "
    "caption, `.cls` with the number of its class, and `.json` with its other fields: `key` is its "
    "name in the source, `captions` all its captions, `class` the name of its class",
    "parquet": "Parquet. `caption` is the first caption of an image, `captions` are all of them, "
    "`label` is its class, and `metadata` are its other fields as JSON",
}


def write_card(folder: Path, format: str) -> None:
    """Writes a README.md, unless there is one."""
    path = folder / CARD
    if not path.exists():
        text = _CARD.format(extension=EXTENSIONS[format], what=_WHAT[format])
        path.write_text(text, encoding="utf-8")


def finished(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Records of the shards that are there."""
    manifest = read_json(folder / SIZES)
    found = {}
    for name in names:
        record = read_json(record_path(folder / name))
        if not isinstance(record, dict) and isinstance(manifest, dict):
            record = manifest.get(name)
        with suppress(OSError):
            if isinstance(record, dict) and (folder / name).stat().st_size == record.get("bytes"):
                found[name] = record
    return found


def record_path(shard: Path) -> Path:
    """Record of one shard, kept until all are there."""
    return shard.with_name(f".{shard.name}.json")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def refuse_inside(folder: Path, source: str) -> None:
    """Shards among what they are made from would be read as part of it the next time."""
    if files.is_url(source) or not os.path.isdir(os.path.expanduser(source)):
        return
    inside = Path(os.path.realpath(os.path.expanduser(source)))
    if folder == inside or inside in folder.parents:
        raise ConfigError(f"{folder}: is inside the source {source}; name a folder outside of it.")


def refuse_foreign(folder: Path) -> None:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise CheckpointError(f"{folder}: is a file; name a folder.") from None
    if PLAN not in names and _OLD_PLAN in names and SIZES in names:
        raise CheckpointError(
            f"{folder}: holds shards that an earlier clipkit wrote, with one caption a sample; "
            "name another folder, or remove this one."
        )
    # Before the plan there are only our own hidden files.
    if PLAN not in names and any(not name.startswith(".") for name in names):
        raise CheckpointError(
            f"{folder}: is not empty, and clipkit data pack did not write it; name a new folder."
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Two that write the same shards at a time would write into one file."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = folder / ".lock"
    with path.open("w") as file:
        try:
            # Not inherited by workers, which may live on for seconds when this process is killed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CheckpointError(
                f"{folder}: another clipkit data pack is writing there; wait for it to end."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

"""Sets that everyone knows, by name: the keys of a task, and what a folder of wds shards tells."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from clipkit.data import files
from clipkit.data.label_file import unique_labels
from clipkit.errors import ConfigError, DataError

_FOLDER = Path(__file__).parent / "standard"
_LARGEST = 2**24  # bytes of a file of names


def standard_set(name: str) -> dict[str, Any]:
    """The keys of the task that a standard set is: kind, class names, templates.

    Raises:
        ConfigError: there is no set of that name; the nearest is named.
    """
    sets = known_sets()
    if not isinstance(name, str) or name not in sets:
        near = difflib.get_close_matches(str(name), sets, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sets)}"
        raise ConfigError(f"use: {name}; no standard set has this name; {hint}")
    keys = dict(sets[name])
    if "like" in keys:
        keys = {**standard_set(keys.pop("like")), **keys}
    if "only" in keys:
        classes = list(keys["class_names"].items())
        keys["class_names"] = dict(classes[number] for number in keys.pop("only"))
    return keys


@cache
def known_sets() -> dict[str, dict[str, Any]]:
    """All standard sets by name, as their files have them."""
    sets: dict[str, dict[str, Any]] = {}
    for path in sorted(_FOLDER.glob("*.yaml")):
        sets |= yaml.safe_load(path.read_text(encoding="utf-8"))["sets"]
    return dict(sorted(sets.items()))


def wds_keys(path: str) -> dict[str, Any]:
    """What a folder in the layout of CLIP_benchmark tells of itself.

    It holds ``classnames.txt``, ``zeroshot_classification_templates.txt`` (with ``{c}``) and
    ``dataset_type.txt``, as far as there are any, and a folder of shards a split. The folder or
    one of its splits may be named; of the folder, the split ``test`` is taken.

    Returns:
        Keys of a task: ``data``, and ``class_names``, ``templates``, ``several``, ``label`` or
        ``lines``; none where the path is no such folder, or a URL.

    Raises:
        DataError: a file of names is there and cannot be read.
    """
    if files.is_url(path):
        return {}
    path = path.rstrip("/")
    for root, split in ((path, "test"), (files.parent(path), path.rsplit("/", 1)[-1])):
        names, kind = (files.join(root, each) for each in ("classnames.txt", "dataset_type.txt"))
        if not root or files.kind(path) != "folder":
            continue
        has_names, has_kind = files.kind(names) == "file", files.kind(kind) == "file"
        if not (has_names or has_kind) or files.kind(files.join(root, split)) != "folder":
            continue
        keys: dict[str, Any] = {"data": files.join(files.join(root, split), "*.tar")}
        said = _lines(kind)[0].lower() if has_kind else ""
        if said == "retrieval":
            return {**keys, "lines": True}
        if said == "multilabel":
            keys |= {"several": True, "label": "npy"}
        if has_names:
            lines = _lines(names)
            keys["class_names"] = lines if len({*lines}) == len(lines) else unique_labels(lines)
        wordings = files.join(root, "zeroshot_classification_templates.txt")
        if files.kind(wordings) == "file":
            keys["templates"] = [line.replace("{c}", "{}") for line in _lines(wordings)]
        return keys
    return {}


def _lines(path: str) -> list[str]:
    try:
        text = files.read_all(path, _LARGEST).decode("utf-8-sig", "replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if not lines:
        raise DataError(f"{path}: it is empty; fill it or remove it")
    return lines

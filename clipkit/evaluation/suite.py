"""A suite in YAML → its tasks, typed: what is wrong is said with file, task and key."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.config.load import options_from_dict
from clipkit.config.yaml_text import read_yaml
from clipkit.display.source_line import remark_source
from clipkit.errors import ClipkitError, ConfigError, Preempted
from clipkit.evaluation.standard_sets import standard_set, wds_keys
from clipkit.evaluation.tasks import KINDS
from clipkit.evaluation.tasks.task import Task


@dataclass
class Suite:
    """Tasks to measure a model by.

    Attributes:
        path: the YAML.
        sha256: of its bytes.
        tasks: in its order, with unique names.
    """

    path: str
    sha256: str
    tasks: list[Task]

    @property
    def name(self) -> str:
        """The stem of the file."""
        return Path(self.path).stem

    @contextmanager
    def naming(self, task: Task) -> Iterator[None]:
        """Puts file and task before what a task finds wrong."""
        with _naming(f"{self.path}, task {task.name}"):
            yield

    def open(self, *, progress: bool = False) -> None:
        """Opens the data of all tasks, and checks all that can be checked without a model.

        Raises:
            ClipkitError: a task cannot be run; file, task and key are named.
        """
        for task in self.tasks:
            with self.naming(task):
                task.open(progress=progress)

    def remark_sources(self) -> None:
        """Prints on stderr how the sources of each task were read; they are open."""
        for task in self.tasks:
            for reader in task.readers:
                remark_source(reader, name=f"{task.name}: ")


def load_suite(path: str | Path) -> Suite:
    """Reads a suite; its data are not opened yet.

    Raises:
        ConfigError: the file is missing or no YAML, a key, a kind or a set does not exist (the
            nearest is named), or a value is of the wrong type.
    """
    tree = read_yaml(Path(path), what="suite")
    for key in tree:
        if key != "tasks":
            raise ConfigError(f"{path}: {key}: no such key; a suite has tasks alone")
    named = tree.get("tasks")
    if not isinstance(named, dict) or not named:
        raise ConfigError(
            f"{path}: tasks: there are none; name at least one, e.g. tasks: {{flickr: {{kind: "
            "retrieval, data: flickr/*.tar}}"
        )
    tasks: dict[str, Task] = {}
    for name, keys in named.items():
        if not str(name).strip():
            raise ConfigError(f"{path}: tasks: one has no name; give it one")
        if str(name) in tasks:
            raise ConfigError(f"{path}: tasks: two are called {name}; rename one")
        with _naming(f"{path}, task {name}"):
            tasks[str(name)] = build_task(str(name), keys)
    return Suite(str(path), hashlib.sha256(Path(path).read_bytes()).hexdigest(), [*tasks.values()])


def build_task(name: str, keys: Any) -> Task:
    """A task of its keys in a suite, those of the standard set that it uses, and what a folder of
    wds shards tells; the first of these that has a key counts.

    Raises:
        ConfigError: they do not make one.
    """
    if not isinstance(keys, dict):
        raise ConfigError(f"a mapping of keys is wanted, got {keys!r}")
    own = dict(keys)
    base = standard_set(own.pop("use")) if "use" in own else {}
    kind = own.pop("kind", base.pop("kind", None))
    if not isinstance(kind, str) or kind not in KINDS:
        if kind is None:
            raise ConfigError(f"kind: none is given; there are {', '.join(KINDS)}")
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
        raise ConfigError(f"kind: {kind}; {hint}")
    wanted = {each.name for each in dataclasses.fields(KINDS[kind].Options)}
    data = own.get("data")
    path = data.get("path") if isinstance(data, dict) else data
    told = wds_keys(path) if isinstance(path, str) and "karpathy" not in own else {}
    if "data" in told:
        own["data"] = {**(data if isinstance(data, dict) else {}), "path": told.pop("data")}
    # Of these, a task of another kind has no use for some.
    base, told = ({k: v for k, v in each.items() if k in wanted} for each in (base, told))
    options: Any = options_from_dict(KINDS[kind].Options, {**base, **told, **own})
    for key in ("train", "data"):
        if key in wanted and not getattr(options, key).path:
            raise ConfigError(f"{key}: no source is named; give a file, folder, glob or URL")
    return KINDS[kind](name, options)


@contextmanager
def _naming(where: str) -> Iterator[None]:
    try:
        yield
    except Preempted:
        raise
    except ClipkitError as error:
        named = type(error)(f"{where}: {error}")
        named.said = error.said
        raise named from error

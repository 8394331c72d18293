"""What every kind of task has: typed keys, data that are opened and checked before, and a run."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from clipkit.data import Reader
from clipkit.evaluation.embedding import Job
from clipkit.evaluation.results import TaskResult
from clipkit.types import Skip


class Task(ABC):
    """One task of a suite.

    Args:
        name: in the suite.
        options: the task's keys, of the type ``Options`` of its kind.

    Attributes:
        kind: the name of the kind, in a suite's ``kind:``.
        Options: a dataclass; its fields are the keys that a task of this kind has. A
            ``SourceConfig``, or a list of them, may be given as a path.
        headline: the metrics that are shown in one line, the first that are there.
        readers: the sources of the task, that which is judged first, once ``open`` was called.
    """

    kind: ClassVar[str]
    Options: ClassVar[type]
    headline: ClassVar[tuple[str, ...]]
    readers: list[Reader]

    def __init__(self, name: str, options: Any) -> None:
        self.name = name
        self.options = options

    @abstractmethod
    def open(self, *, progress: bool = False) -> None:
        """Opens ``readers`` and checks all that can be checked without a model.

        Raises:
            ClipkitError: the task cannot be run.
        """

    @abstractmethod
    def run(self, job: Job) -> TaskResult | None:
        """Measures; the data are open. All ranks must call it.

        Returns:
            The result on rank 0, None on the others.

        Raises:
            ClipkitError: the same on all ranks; see ``gather_shares``, ``from_rank_zero``.
        """


def describe_data(
    readers: Sequence[Reader],
    *,
    samples: int,
    skipped: Sequence[Skip],
    parts: Iterable[Sequence[str]],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """``TaskResult.data``.

    Args:
        readers: the data; what they left out when they were opened is counted too.
        samples: how many were used.
        skipped: those that were not.
        parts: of each that was: its key, and its labels or captions; in order, for the hash.
        notes: what the reader of the metrics must know.
    """
    reasons: Counter[str] = Counter(skip.reason for skip in skipped)
    for reader in readers:
        reasons.update(reader.dropped)
    digest = hashlib.sha256()
    for part in parts:
        digest.update("\0".join([*part, "\n"]).encode("utf-8", "replace"))
    paths = [reader.source.path for reader in readers]
    return {
        "path": paths[0] if len(paths) == 1 else paths,
        "samples": samples,
        "skipped": dict(sorted(reasons.items())),
        "sha256": digest.hexdigest(),
        "notes": [*notes, *(damage for reader in readers for damage in reader.damage)],
    }


def unique_keys(keys: Sequence[str]) -> list[str]:
    """Keys that name one row each: the second ``a`` becomes ``a#2``."""
    seen: Counter[str] = Counter()
    unique = []
    for key in keys:
        seen[key] += 1
        unique.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return unique

"""The parts of a store that is being made: which are done, and which process makes which.

A part is done when its record is there and its files have the sizes that the record says; one that
was done before this process began must have the hashes, too. That alone counts: a claim, the file
that says who makes a part, only saves work from being done twice.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipkit.atomic import sync, write_json
from clipkit.digest import sha256
from clipkit.lock import Claim, Held, owner_of
from clipkit.retrieval.plan import PLAN, Plan

MANIFEST = "manifest.json"
UPDATE = "update"  # the folder in the store where an update is made
POLL = 0.5  # seconds between two looks at what others have done
_RECORD = {"rows", "skipped", "example", "truncated", "replaced", "unfit", "files"}
# The names of what is written into a store's folder, and of nothing else there.
_RECORDS = r"part-\d{5,}\.json|claim-\d{5,}"
_FILES = r"items-\d{5,}(\.\d+)?\.parquet|(image|text)_embeds-\d{5,}(\.\d+)?\.npy"
_INDEX = (
    r"(image|text)-(exact-(codes|rows|centre)\.npy|approximate\.faiss|(exact|approximate)\.json)"
)


class Parts:
    """Goes through the parts of a store, its own share first, and helps with the others.

    Args:
        folder: of the store.
        plan: of the store.
        rank: of this process …
        world_size: … among those that were started together.
    """

    def __init__(self, folder: Path, plan: Plan, *, rank: int = 0, world_size: int = 1) -> None:
        self._folder, self._plan = folder, plan
        self.records: dict[int, dict[str, Any]] = {}
        self._claims: dict[int, Claim] = {}
        first, last = plan.parts * rank // world_size, plan.parts * (rank + 1) // world_size
        # Others begin with the first of their share, so that help comes from the other end.
        others = [*range(last, plan.parts), *range(first)]
        self._order = [*range(first, last), *reversed(others)]

    @property
    def complete(self) -> bool:
        """Whether all are done, as far as this process has looked."""
        return len(self.records) == self._plan.parts

    @property
    def rows_done(self) -> int:
        """Source rows of the parts that are done."""
        return sum(map(self._plan.rows_of, self.records))

    def verify(self) -> Iterator[tuple[int, bool]]:
        """Hashes the parts that were done before, and gives up the damaged ones.

        Yields:
            The number of each part that was done, and whether its record had to be removed.

        Raises:
            OSError: the folder cannot be written.
        """
        for number in self._order:
            damaged = False
            while (record := read_record(self._folder, number)) is not None:
                if _has_hashes(self._folder, record):
                    self.records[number] = record
                    break
                try:
                    claim = Claim(self._folder / f"claim-{number:05d}")
                except Held:  # by one who found the same, or makes it again
                    time.sleep(POLL)
                    continue
                # Looked at after the claim: it may have just been made again.
                again = read_record(self._folder, number)
                if again is not None and not _has_hashes(self._folder, again):
                    record_path(self._folder, number).unlink(missing_ok=True)
                    damaged = True
                claim.release()
            if damaged or number in self.records:
                yield number, damaged

    def look(self) -> None:
        """Notes the parts that have been done since, by whomever."""
        for number in self._order:
            if number not in self.records and number not in self._claims:
                record = read_record(self._folder, number)
                if record is not None:
                    self.records[number] = record

    def take(self) -> Iterator[int]:
        """The parts that nobody makes, claimed one by one, as they are asked for.

        Raises:
            OSError: the folder cannot be written.
        """
        for number in self._order:
            if number in self.records or number in self._claims or self.is_finished():
                continue
            try:
                claim = Claim(self._folder / f"claim-{number:05d}")
            except Held:
                continue
            # Looked at after the claim: whoever held it before may have just written it.
            record = read_record(self._folder, number)
            if record is not None or self.is_finished():
                claim.release()
                if record is not None:
                    self.records[number] = record
                continue
            self._claims[number] = claim
            yield number

    def done(self, number: int, record: dict[str, Any]) -> None:
        """A part that this process has written."""
        self.records[number] = record
        self._claims.pop(number).release()

    def release(self) -> None:
        """Gives up what is claimed and not done."""
        for claim in self._claims.values():
            with contextlib.suppress(OSError):
                claim.release()
        self._claims.clear()

    def is_finished(self) -> bool:
        """Whether the manifest is there; records may be gone then. An update is gone altogether
        once the store has it."""
        if (self._folder / MANIFEST).exists():
            return True
        return self._plan.generation > 0 and not (self._folder / PLAN).exists()


def record_path(folder: Path, number: int) -> Path:
    """The record of a part, there until the manifest holds all of them."""
    return folder / f"part-{number:05d}.json"


def read_record(folder: Path, number: int) -> dict[str, Any] | None:
    """What is known of a part; None where it is not done."""
    try:
        record = json.loads(record_path(folder, number).read_text(encoding="utf-8"))
        if not record.keys() >= _RECORD:
            return None
        for name, facts in record["files"].items():
            if os.path.basename(name) != name:
                return None
            if (folder / name).stat().st_size != facts["bytes"] or "sha256" not in facts:
                return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def someone_at_work(folder: Path) -> str | None:
    """A process that makes a part of this store now."""
    for path in [*folder.glob("claim-*"), *(folder / UPDATE).glob("claim-*")]:
        owner = owner_of(path)
        if owner is not None:
            return owner
    return None


def remove_leftovers(folder: Path) -> None:
    """Of a finished store: records, claims, and what was written aside by those who died."""
    for path in _named(folder, _RECORDS):
        with contextlib.suppress(OSError):
            path.unlink()
    for path in _aside(folder):
        with contextlib.suppress(OSError):
            path.unlink()


def remove_store(folder: Path) -> None:
    """Removes all that belongs to a store and to its indexes; what else is in the folder stays.

    The manifest goes first, so that no half of a store counts as a whole one, and the plan last,
    so that what a kill leaves here still counts as a store.

    Raises:
        OSError: a file cannot be removed.
    """
    remove_update(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    index = folder / "index"
    for path in [*_named(index, _INDEX), *_aside(index)]:
        path.unlink()
    with contextlib.suppress(OSError):  # something else is in it, or it is not there
        index.rmdir()
    for path in [*_named(folder, _RECORDS), *_named(folder, _FILES), *_aside(folder)]:
        path.unlink(missing_ok=True)
    (folder / PLAN).unlink(missing_ok=True)


def remove_update(folder: Path) -> None:
    """Removes an update that is being made, or is finished and in the store.

    Raises:
        OSError: a file cannot be removed.
    """
    update = folder / UPDATE
    if not update.is_dir():
        return
    for path in [update / MANIFEST, update / PLAN]:
        path.unlink(missing_ok=True)
    for path in [*_named(update, _RECORDS), *_named(update, _FILES), *_aside(update)]:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something else is in it, or it is not there
        update.rmdir()


def has_finished_update(folder: Path) -> bool:
    """Whether an update is made and the store may not have it yet."""
    return (folder / UPDATE / MANIFEST).exists()


def take_over_update(folder: Path) -> None:
    """Makes a finished update the store. Until the new manifest replaces the old one, the store is
    the old one; the old files stay until ``remove_replaced``. Doing it twice does no harm.

    Raises:
        OSError: the folder cannot be written.
    """
    update = folder / UPDATE
    try:
        manifest = json.loads((update / MANIFEST).read_text(encoding="utf-8"))
        plan = json.loads((update / PLAN).read_text(encoding="utf-8"))
    except FileNotFoundError:  # another process has done it
        return
    for name in manifest["parts"]:
        with contextlib.suppress(FileNotFoundError):  # not made anew, or done before
            (update / name).replace(folder / name)
    sync(folder)
    write_json(folder / MANIFEST, manifest)
    write_json(folder / PLAN, plan)
    sync(folder)


def remove_replaced(folder: Path) -> None:
    """Removes what an update has replaced, and the update's own folder.

    Raises:
        OSError: a file cannot be removed.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for path in [*_named(folder, _FILES), *_aside(folder)]:
        if path.name not in manifest["parts"]:
            path.unlink(missing_ok=True)
    remove_update(folder)


def _named(folder: Path, names: str) -> list[Path]:
    return [path for path in folder.glob("*") if re.fullmatch(names, path.name)]


def _aside(folder: Path) -> list[Path]:
    """What is being written into a store or an index, or was by those who died."""
    names = rf"manifest\.json|plan\.json|{_RECORDS}|{_FILES}|{_INDEX}"
    return _named(folder, rf"\.({names})\..*\.(tmp|dead)")


def _has_hashes(folder: Path, record: dict[str, Any]) -> bool:
    try:
        return all(
            sha256(folder / name) == facts["sha256"] for name, facts in record["files"].items()
        )
    except OSError:
        return False

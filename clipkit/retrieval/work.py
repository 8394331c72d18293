"""A plan and the source's samples → the parts of a store: all of them, or, in an update, those that
changed.

An update reads every sample, for only its bytes tell whether it is the one that was embedded, and
embeds those that the store does not have. It makes parts like a new store, in ``STORE/update``: of
a part that did not change the files stay the old ones.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from clipkit.data import Reader, build_eval_loader
from clipkit.data.holdout import PartReader
from clipkit.data.loader import Loader
from clipkit.display.console import progress_bar, remark
from clipkit.encoder import EncodedBatch, Encoder
from clipkit.errors import DataError, Preempted
from clipkit.interrupt import Stop
from clipkit.retrieval.images import HASH, Told, hash64, tell
from clipkit.retrieval.index import Index
from clipkit.retrieval.parts import POLL, Parts
from clipkit.retrieval.plan import Plan
from clipkit.retrieval.precision import DTYPES, refuse_non_finite
from clipkit.retrieval.store import TABLE, EmbeddingStore
from clipkit.retrieval.writer import OldPart, PartWriter
from clipkit.types import Batch, Item, Skip

_AGAIN = "run the same command again, and it goes on with the parts that are missing"


class Work:
    """Makes the parts of a new store until all are done, by this process or by others.

    Args:
        folder: where the parts are written.
        plan: of the store.
        parts: which are done.
        encoder: the model.
        reader: the source.
        workers: processes that read and decode.
        show: whether to show a progress bar.
        stop: the signal that asked to stop.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        parts: Parts,
        encoder: Encoder,
        reader: Reader,
        workers: int,
        show: bool,
        stop: Stop,
    ) -> None:
        self._folder, self._plan, self._parts = folder, plan, parts
        self._encoder, self._reader, self._workers = encoder, reader, workers
        self._show, self._stop = show, stop

    def run(self) -> None:
        """Returns when all parts are done.

        Raises:
            Preempted: a signal asked to stop.
        """
        parts = self._parts
        for number, damaged in parts.verify():
            if damaged:
                remark(f"{self._folder}: part {number} was damaged, and is made again")
            self._end_if_asked()
        with progress_bar("embed", self._plan.rows, "sample", show=self._show) as bar:
            parts.look()
            while not (parts.complete or parts.is_finished()):
                free = parts.take()
                first = next(free, None)
                if first is None:
                    self._end_if_asked()
                    time.sleep(POLL)
                else:
                    self._make(chain([first], free), bar)
                parts.look()
                _advance(bar, parts.rows_done)
            _advance(bar, self._plan.rows)

    def _make(self, numbers: Iterator[int], bar: tqdm[Any]) -> None:
        plan = self._plan
        batches = (batch for number in numbers for batch in plan.batches(number))
        loader = self._loader(self._reader, images=plan.images, batches=batches)
        writer: PartWriter | None = None
        try:
            for batch, image_embeds, text_embeds in self._encoded(loader):
                number = batch.step * plan.batch_size // plan.part_rows
                writer = writer or PartWriter(self._folder, plan, number)
                valid = np.flatnonzero(batch.valid.numpy()).tolist()
                start = batch.step * plan.batch_size
                writer.add(
                    keys=[batch.keys[i] for i in valid],
                    source_rows=[start + i for i in valid],
                    items=[item for item in batch.items if item is not None],
                    image_embeds=image_embeds,
                    text_embeds=text_embeds,
                    told=[told for told in batch.told if told is not None],
                    skipped=batch.skipped,
                    truncated=batch.truncated,
                    replaced=batch.replaced,
                )
                bar.update(len(batch.keys))
                if batch.step == plan.batches(number)[-1]:
                    self._parts.done(number, writer.finish())
                    writer = None
                self._end_if_asked()
        finally:
            loader.close()

    def _loader(
        self,
        reader: Reader,
        *,
        images: bool,
        batches: Iterable[int] | None = None,
        workers: int | None = None,
    ) -> Loader:
        plan = self._plan
        return build_eval_loader(
            reader,
            self._encoder.preprocess,
            self._encoder.tokenizer,
            batch_size=plan.batch_size,
            workers=self._workers if workers is None else workers,
            max_image_pixels=plan.max_image_pixels,
            images=images,
            texts=plan.texts,
            fields=tuple(plan.columns),
            ask=tell,
            batches=batches,
        )

    def _encoded(self, loader: Loader) -> Iterator[EncodedBatch]:
        """Batches with their embeddings, which are finite."""
        plan = self._plan
        with self._encoder.computing(DTYPES[plan.precision]):
            for encoded in self._encoder.encode_batches(
                loader, images=plan.images, texts=plan.texts
            ):
                refuse_non_finite(self._encoder, encoded)
                yield encoded

    def _end_if_asked(self) -> None:
        if self._stop.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self._stop.signal:
            name = signal.Signals(self._stop.signal).name
            raise Preempted(
                f"{self._folder}: stopped by {name}, {len(self._parts.records)} of "
                f"{self._plan.parts} parts are done; {_AGAIN}"
            )


@dataclass(slots=True)
class _Row:
    """A row of a part that is made.

    Attributes:
        key: the sample's name.
        item: its description.
        told: of its image and captions.
        old: its row in the old store; -1 where it is embedded.
        image_embeds: (D,) where it is embedded.
        text_embeds: (D,) where it is embedded.
    """

    key: str
    item: Item
    told: Told
    old: int = -1
    image_embeds: np.ndarray | None = None
    text_embeds: np.ndarray | None = None


class UpdateWork(Work):
    """Makes the parts of an updated store: embeds the samples that the old store does not have.

    Args:
        old: the store as it is.
        args: see ``Work``.
    """

    def __init__(self, old: OldStore, *args: Any) -> None:
        super().__init__(*args)
        self._old = old

    def _make(self, numbers: Iterator[int], bar: tqdm[Any]) -> None:
        plan = self._plan
        batches = (batch for number in numbers for batch in plan.batches(number))
        # Images are read for their bytes and not decoded.
        loader = self._loader(self._reader, images=False, batches=batches)
        seen: list[Batch] = []
        try:
            for batch in loader:
                seen.append(batch)
                bar.update(len(batch.keys))
                number = batch.step * plan.batch_size // plan.part_rows
                if batch.step == plan.batches(number)[-1]:
                    self._parts.done(number, self._write(number, seen))
                    seen = []
                self._end_if_asked()
        finally:
            loader.close()

    def _write(self, number: int, seen: Sequence[Batch]) -> dict[str, Any]:
        """Writes one part, and returns its record."""
        rows, missing = self._look(number, seen)
        skipped: list[Skip] = []
        if missing:
            made, skipped = self._embed(np.array(missing, dtype=np.int64))
            rows |= made
        ordered = dict(sorted(rows.items()))
        writer = PartWriter(self._folder, self._plan, number)
        writer.add(
            keys=[row.key for row in ordered.values()],
            source_rows=list(ordered),
            items=[row.item for row in ordered.values()],
            image_embeds=self._vectors(ordered, "image"),
            text_embeds=self._vectors(ordered, "text"),
            told=[row.told for row in ordered.values()],
            skipped=skipped,
            truncated=sum(batch.truncated for batch in seen),
            replaced=sum(batch.replaced for batch in seen),
        )
        return writer.finish(self._old.part([row.old for row in ordered.values()]))

    def _look(self, number: int, seen: Sequence[Batch]) -> tuple[dict[int, _Row], list[int]]:
        """The rows of a part that are kept, by their rows in the source; and those that are not."""
        kept: dict[int, _Row] = {}
        missing = []
        # Of equal rows the one is taken that follows: then files may stay as they are.
        follows = self._old.first_row(number)
        for batch in seen:
            start = batch.step * self._plan.batch_size
            columns = zip(batch.keys, batch.items, batch.told, strict=True)
            for row, (key, item, told) in enumerate(columns, start):
                old = -1
                if item is not None:
                    image = told.image_hash if self._plan.images else None
                    old = self._old.find(content_of(image, item.caption), follows)
                if item is None or old < 0:
                    missing.append(row)
                else:
                    kept[row] = _Row(key, item, told, old)
                    follows = old + 1
        sizes = self._old.store.items(
            [row.old for row in kept.values()], ["width", "height"]
        ).to_pylist()
        for each, size in zip(kept.values(), sizes, strict=True):
            each.item.width, each.item.height = size["width"], size["height"]
        return kept, missing

    def _embed(self, source_rows: np.ndarray) -> tuple[dict[int, _Row], list[Skip]]:
        """Embeds rows of the source."""
        workers = self._workers if len(source_rows) > self._plan.batch_size else 0
        reader = PartReader(self._reader, source_rows)
        loader = self._loader(reader, images=self._plan.images, workers=workers)
        rows: dict[int, _Row] = {}
        skipped: list[Skip] = []
        try:
            for batch, image_embeds, text_embeds in self._encoded(loader):
                skipped += batch.skipped
                start = batch.step * self._plan.batch_size
                for place, i in enumerate(np.flatnonzero(batch.valid.numpy()).tolist()):
                    item = batch.items[i]
                    assert item is not None
                    rows[int(source_rows[start + i])] = _Row(
                        batch.keys[i],
                        item,
                        batch.told[i],
                        image_embeds=None if image_embeds is None else image_embeds[place],
                        text_embeds=None if text_embeds is None else text_embeds[place],
                    )
                self._end_if_asked()
        finally:
            loader.close()
        return rows, skipped

    def _vectors(self, rows: dict[int, _Row], kind: str) -> np.ndarray | None:
        """(n, D) float32 of rows, from the old store and as they were embedded; None where there
        are none of this kind."""
        if not rows or not (self._plan.images if kind == "image" else self._plan.texts):
            return None
        vectors = np.empty((len(rows), self._plan.dim), dtype=np.float32)
        old = np.array([row.old for row in rows.values()], dtype=np.int64)
        kept = old >= 0
        if kept.any():
            vectors[kept] = self._old.vectors(kind).vectors(old[kept])
        for place, row in enumerate(rows.values()):
            if row.old < 0:
                vectors[place] = row.image_embeds if kind == "image" else row.text_embeds
        return vectors


class OldStore:
    """The store that is updated, its rows found by what they were made of.

    Args:
        store: as it is.

    Attributes:
        store: the same.
        is_known: whether it says of which bytes its images are; else no row can be found.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store
        self._with_images = bool(store.image_embeds)
        self.is_known = not self._with_images or HASH in store.schema.names
        parts = store.manifest["parts"]
        self._files = {
            kind: [name for name in parts if name.startswith(kind)]
            for kind in (TABLE, "image_embeds-", "text_embeds-")
        }
        lengths = [parts[name]["rows"] for name in self._files[TABLE]]
        self._starts = np.cumsum([0, *lengths])
        self._vectors: dict[str, Index] = {}

    @cached_property
    def _contents(self) -> np.ndarray:
        if not self.is_known:
            return np.zeros(0, dtype=np.int64)
        paths = [self.store.folder / name for name in self._files[TABLE]]
        rows = (row for path in paths for row, _ in _contents(path, self._with_images))
        return np.array([*rows], dtype=np.int64)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self._contents, kind="stable")
        return self._contents[order], order

    def find(self, content: int, follows: int) -> int:
        """A row with this content, -1 if there is none; ``follows`` if that has it."""
        if follows < len(self._contents) and self._contents[follows] == content:
            return follows
        values, order = self._sorted
        place = int(np.searchsorted(values, content))
        return int(order[place]) if place < len(values) and values[place] == content else -1

    def first_row(self, number: int) -> int:
        """Where the part of a number begins."""
        return int(self._starts[min(number, len(self._starts) - 1)])

    def part(self, rows: Sequence[int]) -> OldPart | None:
        """The part that has these rows and no others, in this order."""
        if not rows or rows[0] < 0:
            return None
        place = int(np.searchsorted(self._starts, rows[0]))
        begin, end = self._starts[place], self._starts[min(place + 1, len(self._starts) - 1)]
        if [*range(begin, end)] != list(rows):
            return None
        facts = self.store.manifest["parts"]
        names = [files[place] for files in self._files.values() if files]
        return OldPart(self.store.folder, {name: facts[name] for name in names})

    def vectors(self, kind: str) -> Index:
        """The vectors of a kind, by row."""
        if kind not in self._vectors:
            parts = self.store.image_embeds if kind == "image" else self.store.text_embeds
            self._vectors[kind] = Index(parts)
        return self._vectors[kind]

    def count_changes(self, files: Iterable[Path]) -> dict[str, int]:
        """Compares the rows with those of new tables.

        Args:
            files: the new store's tables; those that are the old one's lie in its folder.

        Returns:
            How many rows are ``new``, ``changed`` (another content under the same key),
            ``removed`` and ``kept``.

        Raises:
            DataError: all are removed: this is another source.
        """
        new = list(files)
        same = {path.name for path in new} & {*self._files[TABLE]}
        theirs = [self.store.folder / name for name in self._files[TABLE] if name not in same]
        ours = [path for path in new if path.name not in same]
        images = self._with_images
        gone = _unmatched(theirs, ours if self.is_known else [], images)
        come = _unmatched(ours, theirs if self.is_known else [], images)
        changed = (Counter(gone) & Counter(come)).total()
        if len(gone) - changed == len(self.store):
            raise DataError(
                f"{self.store.folder}: none of its {len(gone):,} samples, which are of "
                f"{self.store.source.path}, is in this source; name that one, or give --overwrite "
                "to make a store of this one"
            )
        return {
            "new": len(come) - changed,
            "changed": changed,
            "removed": len(gone) - changed,
            "kept": len(self.store) - len(gone),
        }


def content_of(image_hash: int | None, caption: str | None) -> int:
    """A number for all that is embedded of a sample."""
    return hash64(f"{image_hash}\0{caption}".encode("utf-8", "replace"))


def _contents(path: Path, images: bool) -> Iterator[tuple[int, str]]:
    """The content and the key of each row of a table; whether images belong to the content."""
    with path.open("rb") as handle, pq.ParquetFile(handle) as file:
        wanted = ("key", "caption", HASH) if images else ("key", "caption")
        names = [name for name in wanted if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=names):
            table = pa.Table.from_batches([batch]).to_pydict()
            hashes = table.get(HASH, [None] * len(batch))
            for key, caption, image in zip(table["key"], table["caption"], hashes, strict=True):
                yield content_of(image, caption), key


def _unmatched(tables: Sequence[Path], others: Sequence[Path], images: bool) -> list[str]:
    """The keys of rows whose content has no match in other tables, each of them used once."""
    left = Counter(content for path in others for content, _ in _contents(path, images))
    keys = []
    for content, key in (row for path in tables for row in _contents(path, images)):
        if left[content] > 0:
            left[content] -= 1
        else:
            keys.append(key)
    return keys


def _advance(bar: tqdm[Any], to: int) -> None:
    """Own batches count as they are done, the parts of others when they are."""
    if to > bar.n:
        bar.update(to - bar.n)

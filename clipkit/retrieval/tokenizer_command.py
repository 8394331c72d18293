"""``clipkit data tokenizer``: trains one on a source's captions, and shows its fertility."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from clipkit.display.arguments import add_source_arguments, positive, source_from

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from clipkit.data import Reader
    from clipkit.data.fertility import Fertility

_BY_SCRIPT, _BY_COLUMN = "script", "column"


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``clipkit data tokenizer``."""
    parser.add_argument(
        "out", nargs="?", metavar="OUT",
        help="the tokenizer's folder, for preprocess.tokenizer; without it none is trained",
    )  # fmt: skip
    add_source_arguments(parser, images=False)
    parser.add_argument(
        "--vocab-size", type=positive, default=8192, metavar="N", help="tokens at most (8192)"
    )
    parser.add_argument(
        "--context-length", type=positive, default=77, metavar="N",
        help="tokens that a caption may have, start and end included (77)",
    )  # fmt: skip
    parser.add_argument(
        "--max-captions", type=positive, default=2_000_000, metavar="N",
        help="of more, so many are taken from all over the source (2000000)",
    )  # fmt: skip
    parser.add_argument(
        "--by", default=_BY_SCRIPT, metavar="script|column|FIELD",
        help="rows of the table: by script, by caption column, or by a field such as language",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", metavar="SOURCE", help="count on these captions, which were not trained on"
    )
    parser.add_argument(
        "--compare", action="append", default=[], metavar="FOLDER",
        help="another tokenizer's folder or hub name; may be given several times",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a tokenizer there")
    parser.set_defaults(run=run_tokenizer)


def run_tokenizer(args: argparse.Namespace) -> int:
    """Trains, saves and measures; prints tokens a word and a caption, and what is cut."""
    from pathlib import Path

    from clipkit.data.fertility import measure_fertility
    from clipkit.data.tokenize import load_tokenizer, train_tokenizer
    from clipkit.display.console import escape_control, format_table, plain_warnings, progress_bar

    out = None if args.out is None else Path(args.out).expanduser()
    _check(args, out)
    length = args.context_length
    with plain_warnings():
        tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        others = {name: load_tokenizer(name, context_length=length) for name in args.compare}
        measured = _open(args, args.evaluate) if args.evaluate else None
        readers = _open(args, args.source) if out or measured is None else {}
        if out is not None:
            captions = (text for _, text in _captions(readers, _BY_SCRIPT, args.max_captions))
            with progress_bar("read", None, "caption") as bar:
                trained = train_tokenizer(
                    _counted(captions, bar.update),
                    vocab_size=args.vocab_size,
                    context_length=length,
                )
            _save(trained, out)
            tokenizers[str(out)] = trained
        tokenizers |= others
        rows: list[list[str]] = []
        for name, tokenizer in tokenizers.items():
            pairs = _captions(measured or readers, args.by, args.max_captions)
            found = measure_fertility(tokenizer, pairs, context_length=length)
            rows += [
                [group, *([name] if len(tokenizers) > 1 else []), *_cells(sums)]
                for group, sums in found.items()
            ]
    first = {_BY_SCRIPT: "script", _BY_COLUMN: "column"}.get(args.by, args.by)
    header = ["captions", "tokens a word", "a character", "a caption", f"cut at {length}"]
    columns = [first, *(["tokenizer"] if len(tokenizers) > 1 else [])]
    if len(tokenizers) > 1:  # what is compared stands below each other
        order = {group: i for i, group in enumerate(dict.fromkeys(row[0] for row in rows))}
        rows.sort(key=lambda row: order[row[0]])
    shown = [[escape_control(cell) for cell in row] for row in rows]
    right = range(len(columns), len(columns) + len(header))
    print(format_table([*columns, *header], shown, right=list(right)))
    if out is not None:
        print(
            f"\n{out}: {len(tokenizers[str(out)]):,} tokens; train with preprocess.tokenizer={out}"
        )
    return 0


def _open(args: argparse.Namespace, path: str) -> dict[str, Reader]:
    """A reader for each caption column, by its name."""
    from clipkit.data import open_source
    from clipkit.data.reader import NONE, split_names
    from clipkit.display.source_line import remark_source
    from clipkit.errors import ConfigError, DataError

    columns = args.caption
    if columns is not None and (not split_names(columns) or NONE in split_names(columns)):
        raise ConfigError(f"--caption: {columns!r}; name the columns that hold captions.")
    readers = {}
    for name in split_names(columns) if columns else [None]:
        reader = open_source(source_from(args, path, image=NONE, caption=name))
        remark_source(reader)
        readers[name or reader.source.caption or "captions"] = reader
    for name, reader in readers.items():
        if not any(text.strip() for texts in reader.texts() for text in texts):
            raise DataError(f"{path}: {name}: there is no caption that is not empty.")
    return readers


def _captions(readers: dict[str, Reader], by: str, most: int) -> Iterator[tuple[str | None, str]]:
    """(group or None, text), of each column as many; those of a row in every n where there are
    too many."""
    from itertools import islice

    from clipkit.data.reader import SampleError, field_of

    share = max(most // len(readers), 1)
    for name, reader in readers.items():
        texts_a_row = _texts_a_row(reader)
        step = max(1, math.ceil(len(reader) * texts_a_row / share))
        if by not in (_BY_SCRIPT, _BY_COLUMN):
            for row in _some_rows(len(reader), step):
                try:
                    pair = reader[row]
                except SampleError:
                    continue
                value = field_of(pair.metadata, by)
                for text in (pair.caption or "", *pair.others):
                    yield "–" if value is None else str(value), text
            continue
        group = name if by == _BY_COLUMN else None
        # Where each shard must be read as a whole for its captions, those of the first few do.
        whole = reader.access.whole_shards
        most_rows = min(len(reader), 20_000) if whole else len(reader)
        wanted = _some_rows(most_rows, 1 if whole else step)
        row = next(wanted, -1)
        for number, texts in enumerate(islice(reader.texts(), most_rows)):
            if number == row:
                yield from ((group, text) for text in texts)
                row = next(wanted, -1)


def _some_rows(total: int, step: int) -> Iterator[int]:
    """Draws one row of each ``step``, ascending, always the same ones; every fifth row may be the
    first caption of an image."""
    import random

    draw = random.Random(0)
    for begin in range(0, total, step):
        yield begin + draw.randrange(min(step, total - begin))


def _texts_a_row(reader: Reader) -> float:
    """How many captions a row has, by its first rows."""
    from itertools import islice

    counts = [len(texts) for texts in islice(reader.texts(), 1000)]
    return sum(counts) / len(counts) if counts else 1.0


def _counted(texts: Iterable[str], advance: Callable[[], object]) -> Iterator[str]:
    for text in texts:
        advance()
        yield text


def _cells(sums: Fertility) -> list[str]:
    per_word = sums.tokens_per_word
    return [
        f"{sums.texts:,}",
        "–" if per_word is None else f"{per_word:.2f}",
        f"{sums.tokens_per_character:.2f}",
        f"{sums.tokens_per_text:.1f}",
        f"{sums.cut / sums.texts:.1%}",
    ]


def _check(args: argparse.Namespace, out: Path | None) -> None:
    from clipkit.data.tokenize import MIN_VOCABULARY
    from clipkit.errors import CheckpointError, ConfigError

    if out is None and not args.compare:
        raise ConfigError(
            "data tokenizer: name the folder OUT to train one, or --compare FOLDER to measure one."
        )
    if args.vocab_size < MIN_VOCABULARY:
        raise ConfigError(
            f"--vocab-size: {args.vocab_size}; at least {MIN_VOCABULARY}, for the bytes, start "
            "and end; 1024 or more are of use."
        )
    if args.context_length < 3:
        raise ConfigError(f"--context-length: {args.context_length}; 3 or more.")
    if out is not None and out.exists():
        if not args.overwrite:
            raise CheckpointError(
                f"{out}: is there already; name another folder, or give --overwrite."
            )
        if not (out / "tokenizer.json").is_file() or _others(out):
            raise CheckpointError(
                f"{out}: holds more than a tokenizer, and is left alone; name another folder."
            )


def _others(folder: Path) -> Sequence[str]:
    return [path.name for path in folder.iterdir() if path.suffix not in (".json", ".txt")]


def _save(tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    import os
    import shutil

    from clipkit.atomic import put_in_place, remove_stale
    from clipkit.errors import CheckpointError

    remove_stale(out)
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        tokenizer.save_pretrained(aside)
        put_in_place(aside, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)

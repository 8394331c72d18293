"""``clipkit data``: the commands, and of ``check`` and ``pack`` what is printed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipkit.display.arguments import add_source_arguments, count, positive, source_from
from clipkit.retrieval.filter_command import add_filter_arguments
from clipkit.retrieval.tokenizer_command import add_tokenizer_arguments

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipkit.data import Reader
    from clipkit.data.check import Findings, Repeats

_SHEET = 48  # thumbnails
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of ``clipkit data``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    for name, add_arguments, text in (
        ("check", _add_check_arguments, "read every sample, and say what is wrong with them"),
        ("pack", _add_pack_arguments, "write any source as shards of one size"),
        ("filter", add_filter_arguments, "list the samples that are worth training on"),
        ("tokenizer", add_tokenizer_arguments, "train one on captions, and see what it takes"),
    ):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:])
        command.add_argument("source", help="image-caption pairs: a folder, file, glob or URL")
        add_arguments(command)


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    parser.add_argument("--workers", type=count, metavar="N", help="processes that decode")
    parser.add_argument(
        "--tokenizer", metavar="FOLDER", help="count tokens, and captions that would be cut"
    )
    parser.add_argument("--html", metavar="PAGE", help="write a page with pictures there, too")
    parser.set_defaults(run=run_check)


def _add_pack_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser, format_option="--source-format")
    parser.add_argument("--workers", type=count, metavar="N", help="processes that decode")
    parser.add_argument("out", help="the folder of the shards; run again, it is gone on with")
    parser.add_argument(
        "--format", choices=("webdataset", "parquet"), default="webdataset", help="of the shards"
    )
    parser.add_argument("--list", metavar="LIST", help="only what clipkit data filter listed there")
    parser.add_argument("--shard-size", type=_bytes, default=256 * 10**6, metavar="256MB")
    parser.add_argument(
        "--resize",
        type=positive,
        metavar="EDGE",
        help="make larger images smaller: pixels of the shorter edge",
    )
    parser.add_argument(
        "--quality", type=_quality, metavar="Q", help="of the JPEGs that --resize writes (90)"
    )
    parser.set_defaults(run=run_pack)


def run_check(args: argparse.Namespace) -> int:
    """Prints what is in a source; 3 where a file of it is damaged, or no sample is usable."""
    from pathlib import Path

    from clipkit.atomic import write_text
    from clipkit.data import open_source
    from clipkit.data.check import check_source
    from clipkit.data.tokenize import load_tokenizer
    from clipkit.display.console import default_workers, plain_warnings, progress_bar, remark
    from clipkit.display.source_line import remark_source

    source = source_from(args, args.source, count="index")
    with plain_warnings():
        reader = open_source(source)
        remark_source(reader)
        length = _context_length(args.tokenizer)
        tokenizer = load_tokenizer(args.tokenizer, context_length=length) if length else None
        with progress_bar("check", len(reader), "sample") as bar:
            findings = check_source(
                reader,
                workers=default_workers() if args.workers is None else args.workers,
                tokenizer=tokenizer,
                advance=bar.update,
            )
    tables = _tables(reader, findings, length)
    print("\n\n".join(table.as_text() for table in tables))
    if args.html:
        write_text(Path(args.html), _page(reader, findings, tables))
        remark(f"the page is {args.html}")
    if unusable := _unusable(reader, findings):
        remark(f"{args.source}: {unusable}")
    if reader.damage:
        remark(f"{args.source}: damaged at {len(reader.damage)} place(s); see the last table")
    return 3 if reader.damage or not len(findings.rows) else 0


def _unusable(reader: Reader, findings: Findings) -> str:
    """A sentence where more of a source is of no use than training skips; else nothing."""
    from collections import Counter

    from clipkit.config.schema import DataConfig

    reasons = Counter(reader.dropped)
    reasons.update({reason: fault.count for reason, fault in findings.bad.items()})
    bad, total = reasons.total(), findings.samples + sum(reader.dropped.values())
    if len(findings.rows) and bad <= DataConfig().max_skip_share * total:
        return ""
    why = ", ".join(f"{number:,} {reason}" for reason, number in reasons.most_common(4))
    what = f"{bad:,} of {total:,} samples ({_share(bad, total)})"
    if not len(findings.rows):
        what = f"not one of {total:,} samples"
        return f"{what} can be used ({why})"
    return f"{what} cannot be used ({why})"


def run_pack(args: argparse.Namespace) -> int:
    """Writes shards, and says what is in them and what is not."""
    from contextlib import ExitStack

    from clipkit.config.schema import FilterConfig
    from clipkit.data.pack import pack
    from clipkit.data.pack_samples import Packing
    from clipkit.display.console import default_workers, plain_warnings, progress_bar, remark
    from clipkit.display.source_line import remark_source
    from clipkit.errors import ConfigError

    if args.quality is not None and args.resize is None:
        raise ConfigError(
            "--quality: without --resize the images are kept byte for byte; give both, or neither"
        )
    packing = Packing(
        format=args.format,
        shard_size=args.shard_size,
        resize=args.resize,
        quality=(args.quality or 90) if args.resize else None,
    )
    bars = []
    with plain_warnings(), ExitStack() as stack:

        def begin(reader: Reader, total: int) -> None:
            remark_source(reader)
            bars.append(stack.enter_context(progress_bar("pack", total, "sample")))

        packed = pack(
            source_from(args, args.source, count="index", filter=FilterConfig(list=args.list)),
            args.out,
            packing,
            workers=default_workers() if args.workers is None else args.workers,
            begin=begin,
            advance=lambda number: bars[0].update(number),
        )
    for damage in packed.damage:
        remark(damage)
    for reason, number in packed.skipped.items():
        example = packed.examples.get(reason)
        remark(f"left out {number:,} × {reason}{f', e.g. {example}' if example else ''}")
    if packed.kept:
        remark(f"{packed.kept:,} of {len(packed.shards):,} shards were there already")
    samples = sum(shard["samples"] for shard in packed.shards.values())
    size = sum(shard["bytes"] for shard in packed.shards.values())
    print(f"{args.out}: {samples:,} samples in {len(packed.shards):,} shards, {_size(size)}")
    return 0


@dataclass(slots=True)
class _Table:
    """One table, for the terminal and for the page; under a bare title where it has no header."""

    title: str
    header: list[str]
    rows: list[list[str]]
    numbers: Sequence[int] = ()  # columns that are aligned to the right

    def as_text(self) -> str:
        from clipkit.display.console import escape_control, format_table

        rows = [[escape_control(cell) for cell in row] for row in self.rows]
        if self.header:
            return format_table([self.title, *self.header], rows, right=self.numbers)
        return f"{escape_control(self.title)}\n{format_table(rows[0], rows[1:])}"


def _tables(reader: Reader, findings: Findings, context_length: int | None) -> list[_Table]:
    from clipkit.data.reader import NONE

    source, used = reader.source, len(findings.rows)
    has_images, has_captions = source.image != NONE, source.caption != NONE
    facts = [
        ["samples", f"{findings.samples:,}"],
        ["usable", f"{used:,} ({_share(used, findings.samples)})"],
    ]
    if len(reader.shard_sizes) > 1:
        facts.append(["shards", f"{len(reader.shard_sizes):,}"])
    spreads = []
    if has_images:
        formats = ", ".join(f"{number:,} {name}" for name, number in findings.formats.most_common())
        facts += [["image bytes", _size(findings.image_bytes)], ["formats", formats or "–"]]
        width, height = findings.sizes[:, 0], findings.sizes[:, 1]
        spreads += [
            ["width, pixels", *_spread(width)],
            ["height, pixels", *_spread(height)],
        ]
    if has_images:
        facts.append(["different images", f"{len(findings.an_image):,}"])
    captions = len(findings.characters)
    if has_captions:
        facts.append(["captions", f"{captions:,}"])
        what = "captions an image" if has_images else "captions a row"
        spreads.append([what, *_spread(findings.an_image)])
        spreads.append(["caption, characters", *_spread(findings.characters)])
        if findings.tokens is not None and context_length:
            cut = int((findings.tokens > context_length).sum())
            spreads.append(["caption, tokens", *_spread(findings.tokens)])
            what = f"captions longer than {context_length} tokens"
            facts.append([what, f"{cut:,} ({_share(cut, captions)})"])
    tables = [
        _Table(source.path, [], facts),
        _Table("of the usable", ["min", "median", "max"], spreads, numbers=(1, 2, 3)),
        _Table("bad samples", ["number", "share", "examples"], [], numbers=(1, 2)),
    ]
    for reason, fault in sorted(findings.bad.items(), key=lambda item: -item[1].count):
        share = _share(fault.count, findings.samples)
        tables[-1].rows.append(
            [reason, f"{fault.count:,}", share, "; ".join(_short(e) for e in fault.examples)]
        )
    if not findings.bad:
        tables[-1].rows.append(["none", "0", _share(0, 1), ""])
    repeats = _Table("exact duplicates", ["number", "share", "examples"], [], numbers=(1, 2))
    if has_images:
        what = "image and captions" if has_captions else "images"
        repeats.rows.append([what, *_repeated(reader, findings.same_samples, used)])
    if has_captions:
        told = _repeated(reader, findings.same_captions, captions, of_captions=True)
        repeats.rows.append(["captions", *told])
    tables.append(repeats)
    if findings.other_captions.extra:
        told = _repeated(reader, findings.other_captions, used)
        title = "several captions of an image"
        header = ["number", "share", "examples"]
        rows = [["rows with the image of an earlier one", *told]]
        tables.append(_Table(title, header, rows, numbers=(1, 2)))
    if reader.dropped:
        rows = [[reason, f"{number:,}"] for reason, number in reader.dropped.items()]
        tables.append(_Table("left out when indexing", ["number"], rows, numbers=(1,)))
    if reader.damage:
        title = f"damage (about {reader.lost:,} samples lost)"
        tables.append(_Table(title, [], [[damage] for damage in reader.damage]))
    return tables


def _repeated(
    reader: Reader, repeats: Repeats, used: int, *, of_captions: bool = False
) -> list[str]:
    from contextlib import suppress

    from clipkit.data.reader import SampleError
    from clipkit.data.tokenize import clean_caption
    from clipkit.display.console import shorten

    shown = []
    for copies, first, second in repeats.examples:
        what = f"{_short(reader.locate(first))} = {_short(reader.locate(second))}"
        if of_captions:
            with suppress(SampleError):  # it was readable a moment ago
                texts = [
                    {clean_caption(text) for text in (pair.caption, *pair.others)}
                    for pair in (reader[first], reader[second])
                ]
                same = sorted(text for text in texts[0] & texts[1] if text)
                what = f'"{shorten(same[0] if same else "", 50)}"'
        shown.append(f"{copies:,} × {what}")
    return [f"{repeats.extra:,}", _share(repeats.extra, used), "; ".join(shown)]


def _page(reader: Reader, findings: Findings, tables: Sequence[_Table]) -> str:
    from clipkit.display import page

    first, *others = tables
    shown = [
        page.section(table.title, page.table(["", *table.header], table.rows))
        for table in others
        if table.rows
    ]
    return page.page(
        reader.source.path,
        "what clipkit data check found",
        [page.tiles([(row[0], row[1]) for row in first.rows]), *shown, _sheet(reader, findings)],
    )


def _sheet(reader: Reader, findings: Findings) -> str:
    """Usable samples from all over the source, always the same ones."""
    import random
    from html import escape

    from clipkit.data.reader import SampleError
    from clipkit.display import page

    used = len(findings.rows)
    items = []
    for place in sorted(random.Random(0).sample(range(used), min(_SHEET, used))):
        try:
            pair = reader[int(findings.rows[place])]
        except SampleError:
            continue
        picture = page.thumbnail(pair.image)
        captions = [text for text in (pair.caption, *pair.others) if text]
        caption = escape((" · ".join(captions) or pair.key)[:1000])
        frame = (
            f'<img src="{escape(picture)}" alt="{caption}" loading="lazy">'
            if picture
            else '<div class="missing">no picture</div>'
        )
        items.append(
            f'<li title="{escape(pair.origin)}"><div class="frame">{frame}</div>'
            f'<p class="caption" title="{caption}">{caption}</p></li>'
        )
    return page.section("A sample", f'<ol class="answers">{"".join(items)}</ol>')


def _context_length(folder: str | None) -> int | None:
    """Of a tokenizer, as its folder says; CLIP's where it says none; None without one."""
    import json
    from pathlib import Path

    from clipkit.config.schema import PreprocessConfig

    if folder is None:
        return None
    try:
        config = json.loads((Path(folder) / "tokenizer_config.json").read_text(encoding="utf-8"))
        length = config["model_max_length"]
    except (OSError, ValueError, LookupError, TypeError):
        length = None
    # Some tokenizers without a limit say 1e30.
    known = isinstance(length, int) and 0 < length < 10**6
    return length if known else PreprocessConfig().context_length


def _spread(values: NDArray[np.signedinteger[Any]]) -> list[str]:
    import numpy as np

    if not len(values):
        return ["–"] * 3
    return [f"{round(float(v)):,}" for v in (values.min(), np.median(values), values.max())]


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _short(origin: str) -> str:
    from clipkit.display.console import short_path, shorten

    return shorten(short_path(origin), 100)


def _size(number: int) -> str:
    size: float = number
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _bytes(text: str) -> int:
    """``256MB``, ``1GiB``, ``500000`` → bytes."""
    import re

    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?)?B?", text.strip().upper())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 256MB or 1GiB")
    return size


def _quality(text: str) -> int:
    value = positive(text)
    if value > 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a quality from 1 to 100")
    return value

"""What every source of pairs offers: counted, random access by row."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import formats
from clipkit.data.image_ids import ImageFiles
from clipkit.data.understood import Understood
from clipkit.types import Pair

IMAGE_EXTENSIONS = formats.IMAGE_EXTENSIONS
CAPTION_EXTENSIONS = ("txt", "caption", "text")
# Tried in this order where a config names no column.
IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes"),
    *("image_path", "img_path", "filepath", "file_path", "image_file", "file_name", "filename"),
    *("image_name", "img_name", "imagename"),
    *("path", "file", "image_url", "img_url", "url"),
)
CAPTION_COLUMNS = (
    *("caption", "text", "txt", "captions", "title", "description", "sentence"),
    *("sentences", "alt_text", "alt", "prompt", "comment"),
)
LABEL_COLUMNS = ("label", "labels", "class", "classes", "category", "target", "cls")
# ``image: none`` or ``caption: none`` in a config: the source has none, and none are needed.
NONE = "none"
MAX_IMAGE_BYTES = 256 * 2**20  # more is no photograph; it would have to be read whole
MAX_CAPTION_BYTES = 2**20
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# In cp1252 there are neither control characters nor these five bytes; halves of surrogate pairs
# and a character that is cut at the end come from UTF-8.
_NO_CP1252 = re.compile(
    rb"[\x00-\x08\x0e-\x1f\x7f\x81\x8d\x8f\x90\x9d]"
    rb"|\xed[\xa0-\xbf][\x80-\xbf]|[\xe0-\xf4][\x80-\xbf]{1,2}\Z"
)
# A sentence on texts that ``decode_text`` cannot read.
UNREADABLE = "{} characters that are no UTF-8, shown as \ufffd; save as UTF-8"
_QUOTED = re.compile(r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\"""")
_SAVED_LIST = re.compile(
    rf"\s*\[\s*(?:{_QUOTED.pattern})(?:[\s,]*(?:{_QUOTED.pattern}))*[\s,]*\]\s*"
)

LOST = "lost to a damaged shard"
CUT, CHANGED = "shard cut short", "bytes changed since the shard was indexed"
LOSSES = (LOST, CUT, CHANGED)  # the reasons that mean damage to the data
# Where totals are estimates, a row tells its epoch too: row + epoch * TURN.
TURN = 2**40


@dataclass(frozen=True, slots=True)
class Access:
    """How a source is best read.

    Attributes:
        remote: samples come over a network: fetch several at a time, and ahead.
        estimated: totals are estimates, and rows tell their epoch; see ``TURN``.
        whole_shards: a shard is best read as a whole: touching it costs all of it.
    """

    remote: bool = False
    estimated: bool = False
    whole_shards: bool = False


class SampleError(ValueError):
    """One sample cannot be used; its text is a short noun phrase to count by."""


class Reader(Protocol):
    """Image-text pairs by row. Readers pickle, and open their files in each process anew.

    Attributes:
        source: what was asked for.
        shard_sizes: samples a shard, in shard order; a row counts through them.
        dropped: samples that were left out when counting, by reason.
        damage: what is wrong with the files, a sentence each, naming file and place.
        lost: samples lost to that damage: an estimate, at least one a place.
        access: how it is best read.
        fingerprint: hash of the files' names and sizes, of captions kept apart from the images,
            and of the counts.
        understood: how the source was read: where images and captions come from, and what is
            not used.
    """

    source: SourceConfig
    shard_sizes: list[int]
    dropped: dict[str, int]
    damage: list[str]
    lost: int
    access: Access
    fingerprint: str
    understood: Understood

    def __len__(self) -> int:
        """How many usable samples there are."""
        ...

    def __getitem__(self, row: int) -> Pair:
        """The raw pair of a row.

        Raises:
            SampleError: this sample cannot be read; others can.
            DataError: a file of the source is missing or unreadable.
        """
        ...

    def locate(self, row: int) -> str:
        """Where a row is, in the words of an error message."""
        ...

    def place(self, row: int) -> tuple[str, int | None]:
        """The file that holds a row's image, or its text where there is no image; and the byte
        where the image begins, in a tar.

        Raises:
            SampleError: there is no such sample.
        """
        ...

    def texts(self) -> Iterator[list[str]]:
        """The captions of each row, as many as the source's ``captions`` asks for, in row order
        and without reading images; none where a row has none, or none that can be read."""
        ...

    def captions(self) -> Iterator[str]:
        """The first of ``texts`` of each row; empty where there is none."""
        ...

    def image_files(self) -> ImageFiles | None:
        """The image files of the rows, to be told apart by their content; None as below."""
        ...

    def image_ids(self) -> NDArray[np.int64] | None:
        """(N,) a number for each row's image, in order of first appearance: the same for rows
        whose image files have the same content. None where that would mean reading all of a
        remote source."""
        ...


def samples_text(reader: Reader) -> str:
    """How many samples there are, marked where that is an estimate."""
    return f"{'about ' if reader.access.estimated else ''}{len(reader):,}"


def first_of(rows: Iterable[list[str]]) -> Iterator[str]:
    """The first caption of each row; empty where it has none."""
    return (texts[0] if texts else "" for texts in rows)


def some_captions(reader: Reader) -> Iterator[str]:
    """All captions of the first rows of a source, as many as a tokenizer needs; fewer where each
    shard must be read as a whole for them."""
    rows = islice(reader.texts(), 20_000 if reader.access.whole_shards else None)
    return islice((text for texts in rows for text in texts), 2_000_000)


def caption_texts(values: Sequence[Any], source: SourceConfig) -> list[str]:
    """What columns or JSON fields say as captions, as many as the source's ``captions`` asks
    for; of several, the empty ones are left out. A list that was saved as text is a list again."""
    if isinstance(source, LabelSource):
        texts = [text for value in values for text in _texts(value)]
    else:
        texts = [text for value in values for text in all_texts(value)]
    if source.captions == "lines":
        return [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    if len(values) == 1 and len(texts) == 1 and not isinstance(values[0], list | tuple):
        return texts
    texts = [text for text in texts if text.strip()]
    if source.captions == "join":
        return [", ".join(texts)] if texts else []
    return texts[:1] if source.captions == "first" else texts


def all_texts(value: Any) -> list[str]:
    """The captions that one value holds: a text, a list of them, or a list that was saved as text.
    True and False are none."""
    if isinstance(value, str) and (saved := saved_list(value)) is not None:
        return saved
    items = value if isinstance(value, list | tuple) else [value]
    return _texts([None if isinstance(item, bool) else item for item in items])


def saved_list(text: str) -> list[str] | None:
    """``['a dog', 'a cat']`` → a dog and a cat: a list of texts as Python, numpy or JSON writes it
    into a cell of a table. None for any other text."""
    if not text.lstrip().startswith("[") or not _SAVED_LIST.fullmatch(text):
        return None
    try:
        return [str(ast.literal_eval(each)) for each in _QUOTED.findall(text)]
    except (ValueError, SyntaxError):
        return None


def class_captions(name: str, source: SourceConfig) -> list[str]:
    """``golden_retriever`` → ``a photo of a golden retriever``, by each of the templates."""
    if isinstance(source, LabelSource):
        return [name.strip()]
    name = name.replace("_", " ").strip()
    return caption_texts([[template.format(name) for template in source.templates]], source)


def name_some(names: Sequence[str], most: int = 12) -> str:
    """``a, b, c``: the first names of perhaps very many, each cut where it is long, and how many
    more there are."""
    shown = [name if len(name) <= 60 else f"{name[:59]}…" for name in names[:most]]
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown) + more


def split_names(given: str) -> list[str]:
    """``a, b`` → a and b."""
    return [name.strip() for name in given.split(",") if name.strip()]


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return [text for item in items if (text := _text(item)) is not None]


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | tuple):
        return ", ".join(text for item in value if (text := _text(item))) or None
    return decode_text(value) if isinstance(value, bytes) else str(value)


def texts_notes(texts: Sequence[str], source: SourceConfig, what: str) -> list[str]:
    """Says so where captions hold U+FFFD, or several lines, each of which may be meant as one.

    Args:
        texts: of some caption files; blank ones are passed over.
        source: asks for the captions.
        what: to call the files.
    """
    unreadable = sum("\ufffd" in text for text in texts)
    notes = [UNREADABLE.format(f"{unreadable} of {len(texts)} {what} hold")] if unreadable else []
    lines = {
        len([line for line in text.splitlines() if line.strip()]) for text in texts if text.strip()
    }
    if len(texts) < 2 or source.captions == "lines" or min(lines, default=0) < 2:
        return notes
    count = str(min(lines)) if len(lines) == 1 else f"{min(lines)} to {max(lines)}"
    return [
        *notes,
        f"{what} have {count} lines, read as one caption each; where each line is one, set "
        "captions of the source to lines",
    ]


def json_record(raw: bytes) -> dict[str, Any]:
    """The fields of a sample's JSON file; a bare list of texts is the field ``captions``.

    Broken JSON has no fields: it costs a sample its caption, and no more.
    """
    try:
        record = json.loads(decode_text(raw))
    except (ValueError, RecursionError):
        return {}
    if isinstance(record, list) and record and all(isinstance(text, str) for text in record):
        return {"captions": record}
    return record if isinstance(record, dict) else {}


def field_of(record: Any, path: str) -> Any:
    """The column ``path``, or a field inside it.

    ``a.b`` is the field b of a; where a is a list, b of each of its items that has one, as a
    list; ``a.1`` is item 1 of the list, from 0 on. None where there is no such field.
    """
    if isinstance(record, dict) and path in record:  # a column's name may hold a dot
        return record[path]
    value, names = record, path.split(".")
    for number, name in enumerate(names):
        if isinstance(value, list | tuple):
            if not name.isdecimal():
                return _of_each(value, ".".join(names[number:]))
            value = value[int(name)] if int(name) < len(value) else None
        elif isinstance(value, dict):
            value = value.get(name)
        else:
            return None
    return value


def _of_each(items: Sequence[Any], path: str) -> list[Any] | None:
    """The field ``path`` of all items in one list; None where no item has it."""
    found: list[Any] = []
    for item in items:
        value = field_of(item, path)
        if isinstance(value, list | tuple):
            found += value
        elif value is not None:
            found.append(value)
    return found or None


def decode_text(raw: bytes) -> str:
    """The text that bytes of a data set hold.

    They are UTF-8, with a byte order mark or without, or UTF-16 with one. Bytes that are no
    UTF-8, and hold no letter beyond ASCII that is, are read as cp1252, in which Windows programs
    of the West save text. All else is UTF-8 with U+FFFD in place of what is not.
    """
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        if raw.startswith(_UTF_16):
            return raw.decode("utf-16", "replace")
        return raw.decode("cp1252" if is_cp1252(raw) else "utf-8-sig", "replace")


def is_cp1252(raw: bytes) -> bool:
    """Whether ``decode_text`` reads these bytes as cp1252."""
    if raw.isascii() or raw.startswith(_UTF_16) or _NO_CP1252.search(raw):
        return False
    text = raw.decode("utf-8", "replace")  # a byte order mark is not ASCII
    return "\ufffd" in text and text.replace("\ufffd", "").isascii()


def is_unreadable(raw: bytes) -> bool:
    """Whether ``decode_text`` puts U+FFFD in place of some of these bytes."""
    if raw.isascii() or "\ufffd" not in decode_text(raw):
        return False
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False  # the text itself holds U+FFFD

"""Members of a sample in a tar → its captions: texts, fields of its ``.json``, or its class."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from clipkit.config.schema import LabelSource, SourceConfig
from clipkit.data import files, reader
from clipkit.data.index import Arrays, unpack_json
from clipkit.data.label_file import read_class_names
from clipkit.data.packed_fields import PackedFields, unpack_fields
from clipkit.data.reader import SampleError
from clipkit.data.tar_index import FIELDS, Places, find_members
from clipkit.errors import DataError

CLASS, _ARRAY = "cls", "npy"
_PROBED = 20  # members that tell where captions are, and what they hold
_NUMBERED = re.compile(rf"(?:caption|text)?[_-]?(\d+)\.(?:{'|'.join(reader.CAPTION_EXTENSIONS)})")


class Wanted(NamedTuple):
    """Where a caption may be: the first of these members that is there, or a JSON field."""

    extensions: tuple[str, ...]
    field: str | None = None


class TarCaptions:
    """Which members hold the captions of a source, and what they say.

    Args:
        source: ``caption`` names members and ``json.FIELD``, with commas; without it
            :meth:`look` finds out.

    Attributes:
        wanted: where the captions are, in order.
        of_class: whether they are made of the name of a class.
        class_names: the names of the classes by number; empty where the source does not say them.
        notes: which of the fields that are named are in no ``.json`` that was looked at.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.source = source
        file = read_class_names(source)
        self.class_names = [] if file is None else file.by_number()
        self._by_label = {} if file is None else file.by_label()
        self.notes: list[str] = []
        self._is_label = isinstance(source, LabelSource)
        self.wanted: list[Wanted]
        if source.caption is None:
            self.wanted = [Wanted((CLASS,) if self._is_label else reader.CAPTION_EXTENSIONS)]
        elif source.caption == reader.NONE:
            self.wanted = []
        else:
            self.wanted = [
                Wanted((FIELDS,), name.removeprefix("json."))
                if name.startswith("json.")
                else Wanted((name.lower(),))
                for name in reader.split_names(source.caption)
            ]

    @property
    def of_class(self) -> bool:
        return any(wanted.extensions == (CLASS,) for wanted in self.wanted)

    @property
    def of_fields(self) -> bool:
        """Whether the ``.json`` of a sample must be read for its first caption."""
        needs_name = self.of_class and not self.class_names
        return needs_name or any(wanted.field for wanted in self.wanted)

    def look(self, path: str, arrays: Arrays, image: Places) -> None:
        """Finds out where the captions of a shard are, if the source does not say it.

        Text members are captions, unless more than twice as many images have numbered ones
        (``0.txt``, ``1.txt``), all of which are, or a ``.json`` with one of the usual fields;
        where there is none of these, the class is.

        Args:
            path: the shard.
            arrays: its index.
            image: its images.

        Raises:
            DataError: they are numbers of classes that have no names.
        """
        if self._is_label:
            return
        if self.source.caption is None:
            fields, texts = find_members(arrays, [FIELDS]), self.wanted[0].extensions
            with_fields = np.flatnonzero((image.offset >= 0) & (fields.offset >= 0))
            with_text = (image.offset >= 0) & (find_members(arrays, texts).offset >= 0)
            numbered = _numbered_texts(arrays)
            with_number = (image.offset >= 0) & (find_members(arrays, numbered).offset >= 0)
            if 2 * with_text.sum() < with_number.sum():
                self.wanted = [Wanted((name,)) for name in numbered]
            elif 2 * with_text.sum() < len(with_fields) and (
                name := _usual_field(path, fields.take(with_fields[:_PROBED]), self.source)
            ):
                self.wanted = [Wanted((FIELDS,), name)]
            elif not with_text.any() and (find_members(arrays, [CLASS]).offset >= 0).any():
                self.wanted = [Wanted((CLASS,))]
        elif named := [wanted.field for wanted in self.wanted if wanted.field]:
            self.notes = _absent_fields(path, find_members(arrays, [FIELDS]), named)
        self.notes += _odd_texts(path, arrays, self.wanted, self.source)
        if self.of_class and not self.class_names:
            self._check_class(path, arrays)

    def read(
        self, member: Callable[[Places], bytes | None], places: Sequence[Places], fields: Places
    ) -> tuple[list[str], PackedFields]:
        """The captions of one sample, and the fields of its ``.json``.

        Args:
            member: reads the sample's member at one of the places.
            places: of what is wanted, in order.
            fields: of the ``.json`` members.

        Raises:
            SampleError: a member cannot be read, or holds no label.
        """
        record = reader.json_record(member(fields) or b"")
        packed = unpack_fields(record)
        values: list[Any] = []
        for wanted, place in zip(self.wanted, places, strict=True):
            if wanted.field:
                value = reader.field_of(packed.metadata, wanted.field)
                values.append(reader.field_of(record, wanted.field) if value is None else value)
                continue
            raw = member(place)
            if wanted.extensions == (CLASS,):
                values.append(self._of_class(raw, packed.class_name))
            elif wanted.extensions == (_ARRAY,) and self._is_label:
                values.append(_of_array(raw))
            elif packed.captions and self.source.caption is None:
                values.append(packed.captions)
            else:
                values.append(raw)
        return reader.caption_texts(values, self.source), packed

    def class_of(self, raw: bytes | None, packed: PackedFields) -> tuple[int | None, str | None]:
        """The number and the name of a sample's class; None where there is none."""
        text = reader.decode_text(raw or b"").strip()
        if not text.isdecimal():
            return None, self._by_label.get(text, [text])[0] or None
        number = int(text) if len(text) < 10 else -1
        if not self.class_names:
            return number, packed.class_name
        return number, (
            self.class_names[number] or None if 0 <= number < len(self.class_names) else None
        )

    def _of_class(self, raw: bytes | None, packed_name: str | None) -> list[str]:
        """The captions that a ``.cls`` member stands for: it holds a class's number or name."""
        text = reader.decode_text(raw or b"").strip()
        numbers = isinstance(self.source, LabelSource) and self.source.numbers
        number, name = self.class_of(raw, PackedFields({}, [], None if numbers else packed_name))
        if number is not None and name is None and not self.class_names:
            name = text
        return reader.class_captions(name, self.source) if name and name.strip() else []

    def _check_class(self, path: str, arrays: Arrays) -> None:
        classes, fields = find_members(arrays, [CLASS]), find_members(arrays, [FIELDS])
        there = np.flatnonzero(classes.size > 0)
        if not len(there):
            return
        first = int(there[0])
        content = _read(path, classes, first).strip()
        packed = unpack_fields(reader.json_record(_read(path, fields, first)))
        if content.isdigit() and packed.class_name is None:
            raise DataError(
                f"{path}: its .cls members hold numbers ({int(content)}, for one); set "
                "class_names of the source to a file with the name of a class in each line."
            )


def _numbered_texts(arrays: Arrays) -> list[str]:
    """Extensions such as ``0.txt`` and ``caption_1.txt``, by number."""
    names: list[str] = unpack_json(arrays["extensions"])
    found = [(match, name) for name in names if (match := _NUMBERED.fullmatch(name))]
    found.sort(key=lambda each: (int(each[0][1]), each[1]))
    return [name for _, name in found]


def _odd_texts(
    path: str, arrays: Arrays, wanted: Sequence[Wanted], source: SourceConfig
) -> list[str]:
    """Says what is odd about the caption members, such as several lines in each. A remote shard
    would be asked once for each of them, and is not."""
    if files.is_url(path):
        return []
    names = [n for each in wanted for n in each.extensions if n in reader.CAPTION_EXTENSIONS]
    places = find_members(arrays, names)
    there = np.flatnonzero(places.size > 0)
    probed = places.take(there[:: max(1, len(there) // _PROBED)][:_PROBED])
    texts = [reader.decode_text(_read(path, probed, i)) for i in range(len(probed.offset))]
    return reader.texts_notes(texts, source, "caption members")


def _absent_fields(path: str, fields: Places, named: Sequence[str]) -> list[str]:
    """Says which fields none of some ``.json`` members has, and which there are."""
    there = np.flatnonzero(fields.size > 0)
    probed = fields.take(there[:: max(1, len(there) // _PROBED)])
    records = [reader.json_record(_read(path, probed, i)) for i in range(len(probed.offset))]
    records = [{**record, **unpack_fields(record).metadata} for record in records]
    names = list(dict.fromkeys(str(key) for record in records for key in record))
    return [
        f"no .json of the {len(records)} that were looked at has a field {name!r}; their fields "
        f"are {reader.name_some(names)}"
        for name in named
        if names and all(reader.field_of(record, name) is None for record in records)
    ]


def _usual_field(path: str, fields: Places, source: SourceConfig) -> str | None:
    """The first of the usual names under which one of some ``.json`` members has a text."""
    records = [reader.json_record(_read(path, fields, i)) for i in range(len(fields.offset))]
    metadata = [unpack_fields(record).metadata for record in records]
    for name in reader.CAPTION_COLUMNS:
        if any(reader.caption_texts([reader.field_of(m, name)], source) for m in metadata):
            return name
    return None


def _read(path: str, places: Places, i: int) -> bytes:
    offset, size = int(places.offset[i]), int(places.size[i])
    return b"" if offset < 0 else files.read(path, offset, min(size, reader.MAX_CAPTION_BYTES))


def _of_array(raw: bytes | None) -> list[str]:
    """The numbers of the classes that a NumPy array has a 1 for."""
    try:
        array = np.load(io.BytesIO(raw or b""), allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise SampleError("label that is no array") from None
    return [str(number) for number in np.flatnonzero(array)]

"""``column op value`` → which rows of a store meet it.

    width>=512        numbers compare as numbers
    score>=5          and so do texts that are numbers, as all fields of a CSV file are texts
    lang=en           = and != compare as the column's kind
    caption~apple     contains, whatever the case
    caption!=         is not empty
    "a=b">3           a name in double quotes may hold anything; a quote in it is written twice

Operators are ``= != < <= > >= ~``. Several conditions must all be met. A row whose value is
missing meets none but ``!=``.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from math import floor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipkit.display.console import shorten
from clipkit.errors import CheckpointError, ConfigError
from clipkit.retrieval.store import TABLE

if TYPE_CHECKING:
    from clipkit.retrieval.store import EmbeddingStore

_CONDITION = re.compile(
    r"""\s*(?:"(?P<quoted>(?:[^"]|"")*)"|(?P<plain>[^=!<>~"\s][^=!<>~]*?))\s*"""
    r"(?P<op>!=|<=|>=|=|<|>|~)\s*(?P<value>.*?)\s*",
    re.DOTALL,
)
_PLAIN_NAME = re.compile(r"""[^=!<>~"\s](?:[^=!<>~]*[^=!<>~\s])?""")
_DIGITS = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?(?i:inf|infinity)"
_NUMBER = re.compile(_DIGITS)
_COMPARE = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_COMPARE_TEXTS = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_LEAST, _MOST = -(2**63), 2**63 - 1  # that a column of whole numbers can hold


@dataclass(frozen=True, slots=True)
class _Condition:
    """One condition.

    Attributes:
        text: as it was written.
        column: its name.
        op: one of ``_COMPARE``, or ``~``.
        value: what stands behind it.
    """

    text: str
    column: str
    op: str
    value: str


def rows_where(
    store: EmbeddingStore, where: str | Sequence[str], others: Collection[str] = ()
) -> np.ndarray | None:
    """Which rows meet conditions.

    Args:
        store: whose columns are looked at.
        where: one condition, or several that must all be met.
        others: columns of stores that are searched together with this one: in a store without
            the column all its values are missing.

    Returns:
        (N,) bool; None where there are no conditions.

    Raises:
        ConfigError: a condition cannot be read, names no column, or compares with a value that
            the column cannot have.
    """
    texts = [where] if isinstance(where, str) else where
    names = [*store.schema.names, *(name for name in others if name not in store.schema.names)]
    conditions = [_read(names, text) for text in texts]
    if not conditions:
        return None
    if any(each.column not in store.schema.names and each.op != "!=" for each in conditions):
        return np.zeros(len(store), dtype=bool)
    conditions = [each for each in conditions if each.column in store.schema.names]
    if not conditions:
        return np.ones(len(store), dtype=bool)
    parts = []
    for table in _tables(store, sorted({condition.column for condition in conditions})):
        mask = np.ones(len(table), dtype=bool)
        for condition in conditions:
            mask &= _meets(table[condition.column], condition)
        parts.append(mask)
    return np.concatenate([np.zeros(0, dtype=bool), *parts])


def _read(names: Sequence[str], text: str) -> _Condition:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError(f"where: {text!r} is not UTF-8, as all values are") from error
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"where: {text!r} is no condition; write COLUMN OP VALUE, such as 'width>=512', "
            f"with one of {' '.join(_COMPARE)} ~; a name that holds one of them, or ends with a "
            "space, stands in double quotes"
        )
    quoted, name = match["quoted"], match["plain"]
    if quoted is not None:
        name = quoted.replace('""', '"')
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        there = [_as_written(each) for each in near or names]
        hint = f"Did you mean {there[0]}?" if near else f"There are {', '.join(there)}."
        raise ConfigError(f"where: {name}: no such column. {hint}")
    return _Condition(text, name, match["op"], match["value"])


def _as_written(name: str) -> str:
    """A column's name as a condition has it."""
    if _PLAIN_NAME.fullmatch(name):
        return name
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _tables(store: EmbeddingStore, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of the store, file by file, so that no more is in memory than one has."""
    for name in store.manifest["parts"]:
        if not name.startswith(TABLE):
            continue
        path = store.folder / name
        try:
            with path.open("rb") as file:
                yield pq.read_table(file, columns=list(columns))
        except (OSError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{path}: cannot be read; embed again with --overwrite"
            ) from error


def _meets(column: pa.ChunkedArray, condition: _Condition) -> np.ndarray:
    """(n,) bool, which of n values meet a condition."""
    kind = column.type
    if condition.op == "~":
        if not _is_text(kind):
            raise ConfigError(
                f"where: {condition.text!r}: ~ looks into texts; {condition.column} is {kind}"
            )
        return _filled(pc.match_substring(column, condition.value, ignore_case=True))
    if _is_text(kind):
        met = _text_meets(column, condition)
    elif pa.types.is_integer(kind):
        met = _whole_meets(column.fill_null(0).cast(pa.int64()).to_numpy(), condition, kind)
    elif pa.types.is_boolean(kind):
        wanted = {"true": True, "false": False}.get(condition.value.lower())
        if wanted is None:
            raise _misfit(condition, kind)
        met = _COMPARE[condition.op](_filled(column), wanted)
    else:
        try:
            value = float(condition.value)
        except ValueError as error:
            raise _misfit(condition, kind) from error
        met = _COMPARE[condition.op](column.fill_null(0).to_numpy(), value)
    return np.where(_filled(column.is_valid()), met, condition.op == "!=")


def _whole_meets(values: np.ndarray, condition: _Condition, kind: pa.DataType) -> np.ndarray:
    """(n,) int64 against any number, exactly: as floats neighbours above 2**53 would be equal."""
    value = _number(condition.value)
    if value is None:
        raise _misfit(condition, kind)
    if value.is_nan():
        return np.full(len(values), condition.op == "!=")
    is_above = value > _MOST
    nearest = _MOST if is_above else _LEAST if value < _LEAST else floor(value)
    if nearest == value:
        met: np.ndarray = _COMPARE[condition.op](values, nearest)
        return met
    if condition.op in ("=", "!="):
        return np.full(len(values), condition.op == "!=")
    if value < _LEAST:
        return np.full(len(values), condition.op in (">", ">="))
    # Between ``nearest`` and the next whole number, or above all.
    return values <= nearest if condition.op in ("<", "<=") else values > nearest


def _text_meets(column: pa.ChunkedArray, condition: _Condition) -> np.ndarray:
    """Texts that are numbers against a number; all others as texts.

    Raises:
        ConfigError: texts that are no numbers, nor empty, would be ordered by a number.
    """
    op, value = condition.op, condition.value
    as_text = _filled(_COMPARE_TEXTS[op](column, pa.scalar(value, column.type)))
    bound = _number(value) if _NUMBER.fullmatch(value) else None
    if bound is None:
        return as_text
    is_number = _filled(pc.match_substring_regex(column, rf"^\s*(?:{_DIGITS}|(?i:[+-]?nan))\s*$"))
    is_order = op not in ("=", "!=")
    if is_order:
        is_nothing = _filled(pc.match_substring_regex(column, r"^\s*$").fill_null(True))
        other = np.flatnonzero(~(is_number | is_nothing))
        if len(other):
            example = shorten(column[int(other[0])].as_py(), 40)
            raise ConfigError(
                f"where: {condition.text!r}: {condition.column} holds text and cannot be ordered "
                f"by a number; order it by a text such as {example!r}"
            )
    texts = column.filter(pa.array(is_number)).to_numpy()
    numbers = texts.astype(np.float64)
    of_numbers = _COMPARE[op](numbers, float(bound))
    # Floats are rounded, which keeps their order but makes neighbours equal.
    equal = np.flatnonzero(numbers == float(bound))
    verdicts = {
        text: number is not None and _COMPARE[op](number, bound)
        for text, number in ((text, _number(text)) for text in set(texts[equal]))
    }
    of_numbers[equal] = [verdicts[text] for text in texts[equal]]
    met = np.zeros(len(column), dtype=bool) if is_order else as_text
    met[is_number] = of_numbers
    return met


def _number(text: str) -> Decimal | None:
    """Exactly what is written, whatever its size; None where it is no number."""
    try:
        return Decimal(text)
    except DecimalException:
        pass
    try:
        return Decimal(float(text))  # an exponent of 19 digits: 0 or infinite
    except ValueError:
        return None


def _filled(array: pa.ChunkedArray) -> np.ndarray:
    """(n,) bool, False where there is nothing."""
    values: np.ndarray = array.fill_null(False).to_numpy()
    return values.astype(bool)


def _misfit(condition: _Condition, kind: pa.DataType) -> ConfigError:
    return ConfigError(
        f"where: {condition.text!r}: {condition.column} is {kind}, which {condition.value!r} is not"
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

"""YAML → plain values, with the text as it is written where a text is wanted.

YAML reads ``2019`` as a number, ``no`` as false, ``007`` as 7 and ``2024-01-01`` as a date, and
people name folders and columns so.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipkit.config.schema import SourceConfig
from clipkit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number, or true or false, and how it is written."""

    value: Any
    text: str


class _UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML takes the last of two equal keys in silence; we refuse."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: what follows may be set anew
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or mapping is no key", key_node.start_mark
                )
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key_node.value} stands here twice",
                    key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


class _ScalarLoader(_UniqueKeyLoader):
    """Numbers and truth values come with their text."""


def _with_text(construct: str) -> typing.Callable[[Any, Any], Scalar]:
    def scalar(loader: Any, node: Any) -> Scalar:
        return Scalar(getattr(loader, construct)(node), node.value)

    return scalar


def _as_text(loader: Any, node: Any) -> str:
    text: str = loader.construct_yaml_str(node)
    return text


# No key is a date; what looks like one is a name.
_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:timestamp", _as_text)
for _kind in ("int", "float", "bool"):
    _ScalarLoader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", _with_text(f"construct_yaml_{_kind}")
    )


def parse_yaml(text: str, *, where: str) -> Any:
    """Values of a text in YAML; nothing of it is run.

    Raises:
        ConfigError: it is no YAML, or a key stands twice.
    """
    return _load(text, where, _UniqueKeyLoader)


def read_yaml(path: Path, *, what: str = "config", schema: Any = None) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: the file.
        what: it is called.
        schema: a dataclass; where it wants a text, a number is the text that is written.

    Raises:
        ConfigError: it is missing, cannot be read, or holds something else; a key stands twice.
    """
    if not path.is_file():
        known_as = "suite-*.yaml" if what == "suite" else "[!s]*.yaml"
        near = sorted(str(p) for p in Path("configs").glob(known_as))
        known = f"; there are {', '.join(near)}" if near else ""
        raise ConfigError(f"{path}: no such {what} file{known}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    tree = _load(text, str(path), _ScalarLoader)
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        kind = type(tree.value if isinstance(tree, Scalar) else tree).__name__
        raise ConfigError(f"{path}: a {what} is a mapping of keys, this is a {kind}")
    plain: dict[str, Any] = _plain(tree, schema, "")
    return plain


def parse_value(text: str, *, key: str, schema: Any) -> Any:
    """The value of ``key=text`` on the command line.

    Where the schema wants a text, it is the text as it is, so that globs, brackets, numbers and
    colons need no quotes; those around all of it are taken off. Else it is YAML.

    Args:
        text: behind the sign.
        key: dotted, of the schema.
        schema: the dataclass that has the key.

    Raises:
        ConfigError: it is no YAML, or it is not clear what is meant.
    """
    kind = kind_of(schema, key)
    bare = text.strip()
    if key.endswith(".templates") and bare and not bare.startswith(("[", '"', "'")):
        return bare
    if key.endswith(".templates") and bare.startswith("[") and bare.endswith("]"):
        return _list_of_texts(bare[1:-1])
    if not _wants_text(kind) or not bare or bare[0] in "'\"" or bare in ("null", "Null", "~"):
        return _plain(_load(text, key, _ScalarLoader), kind, key)
    try:
        value = _load(text, key, _ScalarLoader)
    except ConfigError:
        return bare
    if isinstance(value, list) or (_is_source(kind) and _is_mapping(value)):
        return _plain(value, kind, key)
    return _plain(value, kind, key) if isinstance(value, Scalar) else bare


def kind_of(schema: Any, key: str) -> Any:
    """The type of a dotted key; None where there is no such key."""
    kind = schema
    for name in key.split("."):
        if typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind).get(name)
        else:
            return None
    return kind


def _load(text: str, where: str, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return yaml.load(text, Loader=loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        written = text.split("\n")[mark.line] if mark and mark.line < text.count("\n") + 1 else ""
        hint = "; put texts that hold {} in quotes" if "{}" in written else ""
        raise ConfigError(f"{where}{line}: {problem}{hint}") from None
    except ValueError as error:  # a number that is none
        raise ConfigError(f"{where}: {error}") from None


def _plain(value: Any, kind: Any, key: str) -> Any:
    """A tree without ``Scalar``: each is its text where the schema wants one, else its value.

    Raises:
        ConfigError: ``caption: no`` and its like, which may mean two things.
    """
    if isinstance(value, Scalar):
        if not _wants_text(kind):
            return value.value
        if isinstance(value.value, bool) and key.rsplit(".", 1)[-1] in ("caption", "image"):
            meant = "none for a source that has none" if not value.value else "a column's name"
            raise ConfigError(
                f"{key}: {value.text} is {str(value.value).lower()} in YAML; write {meant}, or "
                f"\"'{value.text}'\" for a column called {value.text}"
            )
        return value.text
    if isinstance(value, dict):
        plain: dict[str, Any] = {}
        for name, item in value.items():
            if isinstance(name, Scalar):
                name = name.value if kind is None else name.text
            if name in plain:
                raise ConfigError(f"{key}: the key {name} stands here twice")
            below = f"{key}.{name}" if key else str(name)
            plain[name] = _plain(item, None if kind is None else kind_of(kind, str(name)), below)
        return plain
    if isinstance(value, list):
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is list else None
        items = [_plain(item, inner, key) for item in value]
        if key.rsplit(".", 1)[-1] == "caption" and _wants_text(kind):
            return ",".join(map(str, items))  # several columns
        return items
    return value


def _wants_text(kind: Any) -> bool:
    """Whether a text, or a source, which may be written as its path, is wanted."""
    wanted = {each for each in typing.get_args(kind) or (kind,) if each is not type(None)}
    return wanted == {str} or _is_source(kind)


def _is_source(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, SourceConfig)


def _is_mapping(value: Any) -> bool:
    """``{path: x}``, and not ``{a}``, which is part of a path."""
    return isinstance(value, dict) and any(each is not None for each in value.values())


def _list_of_texts(inner: str) -> list[str]:
    """``a {}, 'b, {}'`` → both, in quotes or without."""
    texts: list[str] = []
    at = 0
    while at < len(inner):
        while at < len(inner) and inner[at] in " ,":
            at += 1
        if at < len(inner) and inner[at] in "'\"":
            end = inner.find(inner[at], at + 1)
            end = len(inner) if end < 0 else end
            texts.append(inner[at + 1 : end])
            at = end + 1
        elif at < len(inner):
            end = inner.find(",", at)
            end = len(inner) if end < 0 else end
            texts.append(inner[at:end].strip())
            at = end
    return texts

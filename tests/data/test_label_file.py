"""Files of labels, and labels between commas: what is read, what is said, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.data.label_file import read_label_file, read_labels
from clipkit.errors import ConfigError, DataError


def write(folder: Path, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "expected", "said"),
    [
        ("a.txt", "cat\nsalt, pepper\n\n", ["cat", "salt, pepper"], ""),
        ("a.names", 'cat\r\n"salt, pepper"\r\n', ["cat", "salt, pepper"], ""),
        ("a.txt", "cat\n\ndog\n", ["cat", "dog"], "left out 1 empty line"),
        ("a.txt", b"\xef\xbb\xbfcat\ndog", ["cat", "dog"], ""),
        ("a.txt", "cat\ndog".encode("utf-16"), ["cat", "dog"], "read as UTF-16"),
        ("a.txt", "café\nniño".encode("cp1252"), ["café", "niño"], "read as cp1252"),
        ("a.txt", "0 cat\n1 salt, pepper", ["cat", "salt, pepper"], "each name has its number"),
        ("a.txt", "0,cat\n1,dog", ["cat", "dog"], "each name has its number"),
        ("a.txt", "1. cat\n2. dog", ["cat", "dog"], "each name has its number"),
        ("a.txt", "1 apple\n2 apples", ["1 apple", "2 apples"], "begin with numbers ('1 apple')"),
        (
            "a.txt",
            "n01440764 tench, Tinca tinca\nn01443537 goldfish",
            ["tench", "goldfish"],
            "Word",
        ),
        ("a.csv", 'cat\n"salt, pepper"\n', ["cat", "salt, pepper"], ""),
        ("a.csv", "id;name\n1;dog\n0;cat\n", ["cat", "dog"], "the column name"),
        ("a.csv", "cat,0\ndog,1\n", ["cat", "dog"], "each name has its number"),
        ("a.tsv", "0\tcat\n1\tdog\n", ["cat", "dog"], "each name has its number"),
        ("a.json", '["cat", "salt, pepper"]', ["cat", "salt, pepper"], ""),
        ("a.json", '{"dog": 1, "cat": 0}', ["cat", "dog"], "each name has its number"),
        ("a.json", '{"model": "x", "id2label": {"0": "cat", "1": "dog"}}', ["cat", "dog"], "id2"),
        (
            *("a.json", '{"images": [], "categories": [{"id": 1, "name": "cat"}]}', ["cat"]),
            "the key categories",
        ),
        ("a.yaml", "path: x\nnc: 2\nnames: [cat, dog]\n", ["cat", "dog"], "the key names"),
        ("a.yaml", "cat: [cat, kitten]\ndog: dog\n", ["cat", "dog"], ""),
    ],
)
def test_a_file_of_labels_is_read_in_the_way_it_is_written(
    tmp_path: Path, name: str, content: str | bytes, expected: list[str], said: str
) -> None:
    found = read_labels(write(tmp_path, name, content))
    assert list(found.labels()) == expected
    assert said in " · ".join(found.notes)
    assert bool(said) == bool(found.notes)


def test_several_names_of_a_label_are_kept(tmp_path: Path) -> None:
    found = read_labels(write(tmp_path, "a.yaml", "cat: [cat, kitten]\ndog: dog\n"))
    assert found.labels() == {"cat": ["cat", "kitten"], "dog": ["dog"]}
    ids = read_label_file(write(tmp_path, "a.csv", "5,cat\n3,dog\n"), numbered=True)
    assert ids.classes == {"3": ["dog"], "5": ["cat"]}


def test_two_classes_of_one_name_in_a_file_tie_and_that_is_said(tmp_path: Path) -> None:
    found = read_labels(write(tmp_path, "a.txt", "missile\ncat\nmissile\n"))
    assert found.labels() == {"missile": ["missile"], "cat": ["cat"], "missile (2)": ["missile"]}
    assert "named twice, so that they tie: missile" in found.notes[0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('"salt, pepper",mug', ["salt, pepper", "mug"]),
        ("cat, red house ,", ["cat", "red house"]),
        ('5" pipe,mug', ['5" pipe', "mug"]),
        ("std::a,b/c", ["std::a", "b/c"]),
        ("cat", ["cat"]),
    ],
)
def test_labels_between_commas(given: str, expected: list[str]) -> None:
    assert read_labels(given).classes == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "it holds no labels"),
        ("a.txt", "\n \n", "it holds no labels"),
        ("a.txt", b"\x00\x01", "it is no text"),
        ("a.csv", "cat\nsalt, pepper\n", "row 2: has 2 fields"),
        ("a.csv", 'cat\n"salt\n', "a quote that does not close"),
        ("a.csv", "a,b,c\n1,2,3\n", "none is called name or label"),
        ("a.csv", "id,name\n0,cat\n0,dog\n", "'0' stands there twice"),
        ("a.json", '{"cat": 1, "cat": 2}', "'cat' stands there twice"),
        ("a.json", "[1", "not JSON"),
        ("a.json", "3", "give a list of names"),
        ("a.yaml", "[no, cat]", "False is no text; put it in quotes"),
    ],
)
def test_a_file_without_labels_is_refused_with_its_name(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigError) as caught:
        read_labels(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


def test_what_looks_like_a_file_and_is_missing_is_no_label(tmp_path: Path) -> None:
    for path in ("labels.txt", "my labels.csv", "names/of/classes", str(tmp_path / "x.json")):
        with pytest.raises(DataError, match="cannot be read"):
            read_labels(path)
    with pytest.raises(ConfigError, match="a folder"):
        read_labels(f"{tmp_path}/")
    with pytest.raises(ConfigError, match="quote a label that has a comma"):
        read_labels('"salt, pepper,mug')


def test_an_empty_line_among_numbered_classes_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "cat\n\ndog\n")
    with pytest.raises(ConfigError, match="line 2: is empty, and classes are numbered"):
        read_label_file(path, numbered=True)

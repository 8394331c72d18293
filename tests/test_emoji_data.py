"""The shipped emoji dataset keeps what its card promises, read with nothing but tarfile."""

import io
import json
import re
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import PIL
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "emoji"
SCRIPT = ROOT / "scripts" / "build_emoji_data.py"
SPLITS = ("train", "validation", "held-out")

Sample = dict[str, bytes]


@pytest.fixture(scope="module")
def card() -> str:
    return (DATA / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def samples() -> dict[str, dict[str, Sample]]:
    """split → key → extension → bytes."""
    found: dict[str, dict[str, Sample]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        for shard in sorted(DATA.glob(f"{split}-*.tar")):
            with tarfile.open(shard) as tar:
                for member in tar:
                    key, _, extension = member.name.partition(".")
                    file = tar.extractfile(member)
                    assert file is not None, member.name
                    assert extension not in found[split].get(key, {}), member.name
                    found[split].setdefault(key, {})[extension] = file.read()
    return found


@pytest.fixture(scope="module")
def facts(samples: dict[str, dict[str, Sample]]) -> dict[str, dict[str, dict[str, Any]]]:
    """split → key → the JSON of the sample, with its name and key."""
    return {
        split: {
            key: {**json.loads(s["json"]), "name": s["txt"].decode(), "key": key}
            for key, s in keyed.items()
        }
        for split, keyed in samples.items()
    }


def card_row(card: str, first: str) -> list[str]:
    row = re.search(rf"^\| {re.escape(first)} \| (.*) \|$", card, re.MULTILINE)
    assert row, f"the card has no row that begins with {first!r}"
    return row[1].split(" | ")


@pytest.mark.parametrize("split", SPLITS)
def test_counts_and_bytes_match_the_card(split: str, card: str, facts: Any) -> None:
    shards = list(DATA.glob(f"{split}-*.tar"))
    toned = [f for f in facts[split].values() if f["skin_tones"]]
    counts = [len(shards), len(facts[split]), len(toned), sum(s.stat().st_size for s in shards)]
    assert card_row(card, split) == [str(count) for count in counts]


def test_dataset_is_at_most_20_mb() -> None:
    assert sum(path.stat().st_size for path in DATA.glob("*.tar")) <= 20_000_000


def test_several_train_shards_of_like_size() -> None:
    sizes = [path.stat().st_size for path in DATA.glob("train-*.tar")]
    assert len(sizes) >= 4
    assert max(sizes) < 1.1 * min(sizes)


def test_both_licences_lie_beside_the_data() -> None:
    assert "SIL OPEN FONT LICENSE Version 1.1" in (DATA / "LICENSE.fonts.txt").read_text("utf-8")
    assert "Unicode-DFS-2016" in (DATA / "LICENSE.cldr.txt").read_text("utf-8")


def test_tar_headers_hold_no_time_and_no_owner() -> None:
    for shard in DATA.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for m in tar:
                assert (m.mtime, m.uid, m.gid, m.uname, m.gname) == (0, 0, 0, "", ""), m.name


def test_every_sample_is_complete(samples: Any, facts: Any) -> None:
    for split in SPLITS:
        for key, sample in samples[split].items():
            assert set(sample) == {"webp", "txt", "json"}, key
            f = facts[split][key]
            for field in ("name", "name_zh", "keywords", "keywords_zh"):
                assert f[field], f"{key}: {field} is empty"
            assert all(f["keywords"] + f["keywords_zh"]), key
            assert "".join(chr(int(code, 16)) for code in f["code_points"]) == f["emoji"]
            assert "-".join(code for code in f["code_points"] if code != "fe0f") == key


def test_every_picture_decodes_to_64_by_64_on_white(samples: Any) -> None:
    for split in SPLITS:
        for key, sample in samples[split].items():
            with Image.open(io.BytesIO(sample["webp"])) as image:
                assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64)), key
                # The cell is wider than high: the first row is paper, but for the filter's reach.
                assert min(image.crop((0, 0, 64, 1)).tobytes()) > 240, key


def test_keys_names_and_pictures_are_unique(samples: Any) -> None:
    everything = [(k, s) for keyed in samples.values() for k, s in keyed.items()]
    for what in (
        [key for key, _ in everything],
        [s["txt"] for _, s in everything],
        [s["webp"] for _, s in everything],
    ):
        assert [x for x, n in Counter(what).items() if n > 1] == []


def test_skin_tones_and_base_agree_with_code_points(facts: Any) -> None:
    names = {f["name"] for keyed in facts.values() for f in keyed.values()}
    modifier = dict(
        zip(
            ("light", "medium-light", "medium", "medium-dark", "dark"),
            ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"),
            strict=True,
        )
    )
    for keyed in facts.values():
        for f in keyed.values():
            used = {code for code in f["code_points"] if code in modifier.values()}
            if len(f["code_points"]) > 1:
                assert {modifier[tone] for tone in f["skin_tones"]} == used, f["name"]
            assert f["base"] in names, f["name"]
            assert (f["base"] == f["name"]) == (not f["skin_tones"]), f["name"]


@pytest.mark.parametrize("split", ["validation", "held-out"])
def test_base_and_tone_are_in_train_but_never_together(split: str, facts: Any) -> None:
    train = facts["train"].values()
    plain = {f["name"] for f in train if not f["skin_tones"]}
    tones = {tone for f in train for tone in f["skin_tones"]}
    elsewhere = defaultdict(set)
    for other in SPLITS:
        if other != split:
            for f in facts[other].values():
                elsewhere[f["base"]].add(frozenset(f["skin_tones"]))
    variants = Counter(f["base"] for f in train if f["skin_tones"])
    for f in facts[split].values():
        assert f["skin_tones"], f["name"]
        assert f["base"] in plain, f["name"]
        assert tones.issuperset(f["skin_tones"]), f["name"]
        assert frozenset(f["skin_tones"]) not in elsewhere[f["base"]], f["name"]
        assert variants[f["base"]] >= 3, f["name"]


@pytest.mark.parametrize("split", ["validation", "held-out"])
def test_split_is_an_eighth_of_the_skin_tone_variants(split: str, facts: Any) -> None:
    toned = sum(1 for keyed in facts.values() for f in keyed.values() if f["skin_tones"])
    assert len(facts[split]) == round(toned / 8)


def test_a_train_shard_mixes_topics() -> None:
    shares = []
    for shard in sorted(DATA.glob("train-*.tar")):
        with tarfile.open(shard) as tar:
            keys = {m.name.partition(".")[0] for m in tar}
        shares.append(sum(1 for key in keys if "1f3f" in key) / len(keys))
    assert max(shares) - min(shares) < 0.15


@pytest.mark.long
def test_rebuild_gives_the_committed_bytes(card: str) -> None:
    for package in ("fonts-noto-color-emoji", "unicode-cldr-core"):
        wanted = card_row(card, package)[0]
        try:
            query = ["dpkg-query", "--show", "--showformat=${Version}", package]
            found = subprocess.run(query, capture_output=True, text=True).stdout
        except OSError:
            found = ""
        if found != wanted:
            pytest.skip(f"{package} {wanted} is not installed (found: {found or 'none'})")
    if PIL.__version__ != card_row(card, "Pillow")[0]:
        pytest.skip(f"Pillow {card_row(card, 'Pillow')[0]} is not installed")
    command = [sys.executable, str(SCRIPT), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr

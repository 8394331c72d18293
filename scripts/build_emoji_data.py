"""Debian's emoji font + Unicode's names → data/emoji, the dataset that ships with clipkit.

    python scripts/build_emoji_data.py              # make data/emoji again
    python scripts/build_emoji_data.py --check      # do the committed bytes still come out?

Every picture is drawn from `fonts-noto-color-emoji`; every word comes from `unicode-cldr-core`.
With the versions that the card (data/emoji/README.md) names, each file comes out byte for byte
the same: nothing here depends on the clock, the machine's order of files, or a random seed that
is not written below.
"""

import argparse
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import PIL
from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageStat, features

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CLDR = Path("/usr/share/unicode/cldr/common")
LICENSES = {  # file beside the shards: the Debian package whose copyright file it copies
    "LICENSE.fonts.txt": "fonts-noto-color-emoji",
    "LICENSE.cldr.txt": "unicode-cldr-core",
}
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "data" / "emoji"

SEED = "clipkit emoji 1"  # goes into every hash that orders or chooses
STRIKE = 109  # the only size that the bitmap font has
CELL = 136  # pixels; one drawn emoji is 136 wide and 128 high
SIZE = 64
STEP = 4  # channel values are rounded to multiples of this, then stored losslessly
WEBP = {"lossless": True, "quality": 80, "method": 6}
TRAIN_SHARDS = 8
SPLITS = ("train", "validation", "held-out")
SHARE = 8  # held-out and validation each take one in SHARE of the skin-tone variants
MAX_BYTES = 20_000_000

TONES = {  # as a name says it: as skin_tones lists it
    f"{tone} skin tone": tone for tone in ("light", "medium-light", "medium", "medium-dark", "dark")
}
TONE_MODIFIERS = range(0x1F3FB, 0x1F400)
REGIONAL_INDICATORS = range(0x1F1E6, 0x1F200)
# Wide characters that are nevertheless text, not emoji, unless U+FE0F follows.
WIDE_BUT_TEXT = {0x3030, 0x303D, 0x3297, 0x3299, 0x1F202, 0x1F237}
# Of emoji that look exactly alike, the name to keep: what the picture shows, or whose flag it is.
# A set with no name in this list keeps the emoji with the fewest code points.
KEEP_NAMES = {
    "family: man, man, boy",
    "flag: Australia",
    "flag: British Indian Ocean Territory",
    "flag: France",
    "flag: Norway",
    "flag: Spain",
    "flag: United States",
}


@dataclass(frozen=True)
class Emoji:
    """One sample before it is split and packed."""

    key: str
    text: str
    name: str
    keywords: tuple[str, ...]
    name_zh: str
    keywords_zh: tuple[str, ...]
    base: str
    skin_tones: tuple[str, ...]
    webp: bytes

    def files(self) -> list[tuple[str, bytes]]:
        """The three files of the sample, in the order in which they stand in a shard."""
        facts = {
            "emoji": self.text,
            "code_points": [f"{ord(c):04x}" for c in self.text],
            "keywords": self.keywords,
            "name_zh": self.name_zh,
            "keywords_zh": self.keywords_zh,
            "base": self.base,
            "skin_tones": self.skin_tones,
        }
        line = json.dumps(facts, ensure_ascii=False, separators=(",", ":"))
        return [
            (f"{self.key}.json", line.encode()),
            (f"{self.key}.txt", self.name.encode()),
            (f"{self.key}.webp", self.webp),
        ]


@dataclass
class Tally:
    """What was left out and what the stored pictures lost, for the card."""

    named: int = 0
    not_drawn: int = 0
    no_chinese: int = 0
    plain_text: tuple[str, ...] = ()
    same_picture: tuple[tuple[str, tuple[str, ...]], ...] = ()
    psnr_mean: float = 0.0
    psnr_min: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the emoji dataset that ships with clipkit.")
    parser.add_argument("out", nargs="?", type=Path, default=DEFAULT_OUT, metavar="OUT")
    parser.add_argument(
        "--check", action="store_true", help="build aside and compare with OUT; change nothing"
    )
    args = parser.parse_args()
    try:
        return check(args.out) if args.check else write(args.out)
    except (ValueError, OSError) as error:
        print(f"build_emoji_data: {error}", file=sys.stderr)
        return 1


def write(out: Path) -> int:
    """Build beside `out`, then rename file by file, the card last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as aside:
        names = build(Path(aside))
        out.mkdir(exist_ok=True)
        for stale in shard_names(out) - set(names):
            (out / stale).unlink()
        for name in sorted(names, key=lambda n: (n == "README.md", n)):
            os.replace(Path(aside) / name, out / name)
    print(f"{out}: {len(names)} files, {size_of(out, names):,} bytes")
    return 0


def check(out: Path) -> int:
    """Build in a temporary folder and say whether the bytes equal those in `out`."""
    if not (out / "README.md").is_file():
        raise ValueError(f"{out}: there is no dataset to check; build it without --check first")
    with tempfile.TemporaryDirectory() as aside:
        names = build(Path(aside))
        differs = [n for n in names if read_or_none(out / n) != (Path(aside) / n).read_bytes()]
        differs += sorted(shard_names(out) - set(names))
    if not differs:
        print(f"{out}: all {len(names)} files equal a fresh build, byte for byte")
        return 0
    print(f"{out}: {len(differs)} of {len(names)} files differ: {', '.join(differs)}")
    card = (out / "README.md").read_text(encoding="utf-8")
    for what, here in versions().items():
        row = re.search(rf"^\| {re.escape(what)} \| (.*?) \|$", card, re.MULTILINE)
        there = row[1] if row else "missing"
        if there != here:
            print(f"  {what} is {here} here, {there} in the card; equal bytes need equal versions")
    return 1


def build(folder: Path) -> list[str]:
    """Make every file of the dataset in `folder`; return their names.

    Raises:
        ValueError: a source is missing, or the result breaks a promise of the card.
    """
    check_sources()
    tally = Tally()
    emoji = read_emoji(tally)
    split_of = choose_splits(emoji)
    check_splits(emoji, split_of)
    for split in SPLITS:
        chosen = sorted(
            (e for e in emoji if split_of[e.key] == split), key=lambda e: rank("order", e.key)
        )
        shards = TRAIN_SHARDS if split == "train" else 1
        for i in range(shards):
            write_shard(folder / f"{split}-{i:03d}.tar", chosen[i::shards])
    for name, package in LICENSES.items():
        (folder / name).write_bytes(copyright_file(package).read_bytes())
    (folder / "README.md").write_text(card(folder, emoji, split_of, tally), encoding="utf-8")
    names = sorted(path.name for path in folder.iterdir())
    total = size_of(folder, names)
    if total > MAX_BYTES:
        raise ValueError(f"the dataset is {total:,} bytes, over {MAX_BYTES:,}; raise STEP")
    return names


def check_sources() -> None:
    needed = {
        FONT: "fonts-noto-color-emoji",
        CLDR / "annotations" / "en.xml": "unicode-cldr-core",
        CLDR / "annotations" / "zh.xml": "unicode-cldr-core",
        CLDR / "annotationsDerived" / "en.xml": "unicode-cldr-core",
        CLDR / "annotationsDerived" / "zh.xml": "unicode-cldr-core",
    } | {copyright_file(package): package for package in LICENSES.values()}
    for path, package in needed.items():
        if not path.is_file():
            raise ValueError(f"{path} is not there; install it: apt-get install {package}")
    if not features.check("raqm"):
        raise ValueError("Pillow finds no raqm to shape emoji; apt-get install libfribidi0")
    if not features.check("webp"):
        raise ValueError("this Pillow cannot write WebP; install Pillow from PyPI")


def copyright_file(package: str) -> Path:
    return Path("/usr/share/doc") / package / "copyright"


def versions() -> dict[str, str]:
    """What the bytes depend on, by the names that stand in the card."""
    found = {package: debian_version(package) for package in LICENSES.values()}
    found["Pillow"] = PIL.__version__
    for name, feature in {"libwebp": "webp", "raqm": "raqm", "HarfBuzz": "harfbuzz"}.items():
        found[name] = str(features.version(feature))
    found["FreeType"] = str(features.version("freetype2"))
    return found


def debian_version(package: str) -> str:
    command = ["dpkg-query", "--show", "--showformat=${Version}", package]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise ValueError(
            f"dpkg-query knows no version of {package}; install it: apt-get install {package}"
        ) from None


# --- words ---------------------------------------------------------------------------------------


def read_annotations(language: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Names and keywords of one language, by the character sequence without U+FE0F."""
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for folder in ("annotations", "annotationsDerived"):
        for node in ElementTree.parse(CLDR / folder / f"{language}.xml").iter("annotation"):
            sequence, text = node.attrib["cp"], (node.text or "").strip()
            if node.get("type") == "tts":
                names[sequence] = text
            else:
                keywords[sequence] = tuple(word.strip() for word in text.split("|"))
    return names, keywords


def fully_qualified(sequence: str) -> str:
    """The sequence with U+FE0F after each character that is text by default.

    CLDR leaves U+FE0F out. Emoji are wide unless they are text by default (UAX 11), and a skin
    tone makes its base an emoji without U+FE0F (UTS 51).
    """
    out = []
    for char, follower in zip(sequence, sequence[1:] + "\0", strict=True):
        out.append(char)
        if is_text_by_default(char) and ord(follower) not in TONE_MODIFIERS:
            out.append("\ufe0f")
    return "".join(out)


def is_text_by_default(char: str) -> bool:
    code = ord(char)
    if code in WIDE_BUT_TEXT:
        return True
    if code in REGIONAL_INDICATORS or char in "\u200d\u20e3":
        return False
    # Above U+1F6F3 all emoji are emoji by default, tag characters are never followed by U+FE0F,
    # and older Pythons do not know the newest characters to be wide.
    return code <= 0x1F6F3 and unicodedata.east_asian_width(char) != "W"


def split_name(name: str, names: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """The name of the base emoji, and the skin tones, in the order in which they are named.

    "kiss: man, man, dark skin tone" → ("kiss: man, man", ("dark",)).
    """
    head, _, tail = name.partition(": ")
    parts = tail.split(", ")
    tones = tuple(TONES[part] for part in parts if part in TONES)
    if not tones:
        return name, ()
    rest = [part for part in parts if part not in TONES]
    base = f"{head}: {', '.join(rest)}" if rest else head
    # "kiss: person, person, …" has no plain form of that name: its plain form is "kiss".
    return (base if base in names else head), tones


# --- pictures ------------------------------------------------------------------------------------


def read_emoji(tally: Tally) -> list[Emoji]:
    """All emoji that have names in both languages and a picture of their own, in key order."""
    names, keywords = read_annotations("en")
    names_zh, keywords_zh = read_annotations("zh")
    english = set(names.values())
    font = ImageFont.truetype(str(FONT), STRIKE, layout_engine=ImageFont.Layout.RAQM)

    tally.named = len(names)
    drawn: dict[str, Image.Image] = {}
    plain_text = []
    for sequence in sorted(names):
        image = draw(font, fully_qualified(sequence))
        if image is None:
            tally.not_drawn += 1
        elif sequence.isascii():
            plain_text.append(sequence)  # "#" and "*": parts of keycaps, not emoji
        elif sequence not in names_zh or sequence not in keywords_zh or sequence not in keywords:
            tally.no_chinese += 1
        else:
            drawn[sequence] = image
    tally.plain_text = tuple(plain_text)

    psnrs = []
    emoji = []
    for sequence in without_doubles(drawn, names, tally):
        webp, psnr = encode(drawn[sequence])
        psnrs.append(psnr)
        base, tones = split_name(names[sequence], english)
        emoji.append(
            Emoji(
                key="-".join(f"{ord(c):04x}" for c in sequence),
                text=fully_qualified(sequence),
                name=names[sequence],
                keywords=keywords[sequence],
                name_zh=names_zh[sequence],
                keywords_zh=keywords_zh[sequence],
                base=base,
                skin_tones=tones,
                webp=webp,
            )
        )
    tally.psnr_mean = sum(psnrs) / len(psnrs)
    tally.psnr_min = min(psnrs)

    doubled = [name for name, n in Counter(e.name for e in emoji).items() if n > 1]
    if doubled:
        raise ValueError(f"English names given to two emoji: {', '.join(sorted(doubled))}")
    return sorted(emoji, key=lambda e: e.key)


def draw(font: ImageFont.FreeTypeFont, text: str) -> Image.Image | None:
    """The emoji on white, SIZE × SIZE; None where the font has no single glyph for it.

    A sequence that the font does not know falls apart into glyphs side by side, so it is wider
    than one glyph; a character that it does not know is drawn as an empty box of no height.
    """
    left, top, right, bottom = font.getbbox(text)
    if font.getlength(text) != font.getlength("\N{GRINNING FACE}") or bottom <= top:
        return None
    cell = Image.new("RGB", (CELL, CELL), "white")
    corner = ((CELL - (right - left)) / 2 - left, (CELL - (bottom - top)) / 2 - top)
    ImageDraw.Draw(cell).text(corner, text, font=font, embedded_color=True, fill="black")
    image = cell.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return None if image.getextrema() == ((255, 255),) * 3 else image


def without_doubles(
    drawn: dict[str, Image.Image], names: dict[str, str], tally: Tally
) -> list[str]:
    """Of the sequences whose pictures are equal pixel for pixel, one each."""
    alike = defaultdict(list)
    for sequence in sorted(drawn, key=lambda s: (len(s), s)):
        alike[drawn[sequence].tobytes()].append(sequence)
    kept, dropped = [], []
    for group in alike.values():
        first = next((s for s in group if names[s] in KEEP_NAMES), group[0])
        kept.append(first)
        if len(group) > 1:
            dropped.append((names[first], tuple(sorted(names[s] for s in group if s != first))))
    tally.same_picture = tuple(sorted(dropped))
    return kept


def encode(image: Image.Image) -> tuple[bytes, float]:
    """WebP bytes, and their PSNR in dB against the unrounded picture."""
    # Lossy WebP halves the resolution of colour, which shows at 64 × 64 (about 32 dB at any
    # quality). Rounding the channels first keeps edges sharp and costs less than plain lossless.
    table = [min(255, (value + STEP // 2) // STEP * STEP) for value in range(256)]
    table[255] = 255  # white stays white
    rounded = image.point(table * 3)
    buffer = io.BytesIO()
    rounded.save(buffer, "WEBP", **WEBP)
    with Image.open(buffer) as stored:
        difference = ImageChops.difference(stored.convert("RGB"), image)
    error = sum(ImageStat.Stat(difference).sum2) / (3 * SIZE * SIZE)
    # An exact picture would have no PSNR; 99 dB stands for it.
    return buffer.getvalue(), 10 * math.log10(255**2 / error) if error else 99.0


# --- splits --------------------------------------------------------------------------------------


def rank(purpose: str, what: str) -> bytes:
    """A place in a fixed shuffled order."""
    return hashlib.sha256(f"{SEED}|{purpose}|{what}".encode()).digest()


def choose_splits(emoji: list[Emoji]) -> dict[str, str]:
    """The split of every key.

    The unit is a base with a set of tones: "handshake: light, dark" and "handshake: dark, light"
    are one unit and stay together. Held-out and then validation go through the units in hash
    order and take each one that still fits: at most one in SHARE of all skin-tone variants, and
    at most one in SHARE (rounded up) of any one base's.
    """
    units = defaultdict(list)
    for e in emoji:
        if e.skin_tones:
            units[e.base, tuple(sorted(set(e.skin_tones)))].append(e.key)
    of_base: Counter[str] = Counter()
    for (base, _), keys in units.items():
        of_base[base] += len(keys)

    split_of = {e.key: "train" for e in emoji}
    for split in ("held-out", "validation"):
        room = round(of_base.total() / SHARE)
        room_of = {base: math.ceil(n / SHARE) for base, n in of_base.items()}
        for unit in sorted(units, key=lambda u: rank(split, f"{u[0]}|{'|'.join(u[1])}")):
            base, keys = unit[0], units[unit]
            if len(keys) <= min(room, room_of[base]) and split_of[keys[0]] == "train":
                split_of.update(dict.fromkeys(keys, split))
                room -= len(keys)
                room_of[base] -= len(keys)
    return split_of


def check_splits(emoji: list[Emoji], split_of: dict[str, str]) -> None:
    """Hold the rule that the card states, whatever chose the splits."""
    train = [e for e in emoji if split_of[e.key] == "train"]
    variants = Counter(e.base for e in train if e.skin_tones)
    tones = {tone for e in train for tone in e.skin_tones}
    plain = {e.name for e in train if not e.skin_tones}
    split_of_unit: dict[tuple[str, frozenset[str]], str] = {}
    for e in emoji:
        if e.skin_tones:
            split = split_of_unit.setdefault((e.base, frozenset(e.skin_tones)), split_of[e.key])
            assert split == split_of[e.key], f"{e.name}: base and tones together in two splits"
            assert e.base in plain, f"{e.name}: its base has no plain picture in train"
            assert variants[e.base] >= 3, f"{e.base}: under three skin-tone variants in train"
            assert tones.issuperset(e.skin_tones), f"{e.name}: a tone that train never shows"


# --- files ---------------------------------------------------------------------------------------


def write_shard(path: Path, emoji: list[Emoji]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for e in emoji:
            for name, data in e.files():
                info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the owner's name is empty
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def shard_names(folder: Path) -> set[str]:
    return {p.name for split in SPLITS for p in folder.glob(f"{split}-*.tar")}


def read_or_none(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def size_of(folder: Path, names: Iterable[str]) -> int:
    return sum((folder / name).stat().st_size for name in names)


# --- card ----------------------------------------------------------------------------------------


def card(folder: Path, emoji: list[Emoji], split_of: dict[str, str], tally: Tally) -> str:
    """The dataset card: a YAML head for Hugging Face tools, then prose for people."""
    split_rows = []
    for split in SPLITS:
        chosen = [e for e in emoji if split_of[e.key] == split]
        shards = sorted(p.name for p in folder.glob(f"{split}-*.tar"))
        toned = sum(1 for e in chosen if e.skin_tones)
        split_rows.append(
            f"| {split} | {len(shards)} | {len(chosen)} | {toned} | {size_of(folder, shards)} |"
        )
    tone_rows = []
    for tone in TONES.values():
        counts = [
            sum(1 for e in emoji if split_of[e.key] == split and tone in e.skin_tones)
            for split in SPLITS
        ]
        tone_rows.append(f"| {tone} | {counts[0]} | {counts[1]} | {counts[2]} |")
    same_rows = [f"| {kept} | {'; '.join(gone)} |" for kept, gone in tally.same_picture]
    found = versions()
    variants = sum(1 for e in emoji if e.skin_tones)
    pairs = sum(1 for e in emoji if len(e.skin_tones) == 2)
    return CARD.format(
        total=len(emoji),
        variants=variants,
        pairs=pairs,
        bases=len({e.base for e in emoji if e.skin_tones}),
        split_rows="\n".join(split_rows),
        tone_rows="\n".join(tone_rows),
        same_rows="\n".join(same_rows),
        same_count=sum(len(gone) for _, gone in tally.same_picture),
        same_sets=len(tally.same_picture),
        version_rows="\n".join(f"| {what} | {version} |" for what, version in found.items()),
        font_version=found["fonts-noto-color-emoji"],
        cldr_version=found["unicode-cldr-core"],
        step=STEP,
        half_step=STEP // 2,
        share=SHARE,
        size=SIZE,
        strike=STRIKE,
        webp_quality=WEBP["quality"],
        webp_method=WEBP["method"],
        **{name: getattr(tally, name) for name in ("named", "not_drawn", "no_chinese")},
        plain_text=" and ".join(f"`{text}`" for text in tally.plain_text),
        psnr_mean=f"{tally.psnr_mean:.1f}",
        psnr_min=f"{tally.psnr_min:.1f}",
    )


CARD = """\
---
pretty_name: Emoji in English and Chinese
language:
- en
- zh
license: other
license_name: ofl-1.1-and-unicode-dfs-2016
license_link: LICENSE.fonts.txt
task_categories:
- zero-shot-image-classification
- image-to-text
size_categories:
- 1K<n<10K
tags:
- emoji
- webdataset
- image-text-pairs
- compositional-generalization
configs:
- config_name: default
  data_files:
  - split: train
    path: train-*.tar
  - split: validation
    path: validation-*.tar
  - split: held_out
    path: held-out-*.tar
---

# Emoji in English and Chinese

{total} emoji, {size} × {size} pixels on white, each with its English name as the caption, and with
keywords, a Chinese name and Chinese keywords beside it. Small enough to train on with a CPU, and
it asks a real question: does a model that has seen *waving hand* and has seen *dark skin tone*
know *waving hand: dark skin tone*, which it has never seen?

| split | shards | samples | skin-tone variants | bytes |
|---|---|---|---|---|
{split_rows}

`{{split}}-NNN.tar` are WebDataset shards: USTAR, the samples shuffled once with a fixed seed, so
that a shard holds no one topic.

## A sample

| file | holds |
|---|---|
| `KEY.webp` | the picture, RGB, {size} × {size} |
| `KEY.txt` | the English name, such as `waving hand: light skin tone`; no two are equal |
| `KEY.json` | the rest, below |

`KEY` is the code points in hex, without U+FE0F, such as `1f44b-1f3fb`. The JSON has

| field | holds |
|---|---|
| `emoji` | the emoji itself as text, fully qualified |
| `code_points` | its code points, a list of hex strings |
| `keywords` | English keywords, a list |
| `name_zh` | the Chinese name (simplified) |
| `keywords_zh` | Chinese keywords, a list |
| `base` | the English name without skin tones; equal to the name where there are none |
| `skin_tones` | `light`, `medium-light`, `medium`, `medium-dark`, `dark`, as the name lists them |

Two people of one tone are listed with that tone once, as in their name.

```python
from datasets import load_dataset

emoji = load_dataset("data/emoji")  # train, validation, held_out
emoji["held_out"][0]["txt"]
```

(`datasets` allows no hyphen in a split's name, so `held-out-*.tar` is `held_out` there.)

## Splits

{variants} samples are skin-tone variants of {bases} people, gestures and activities (*bases*);
{pairs} of them show two people of different tones. Everything else is in train.

- **held-out** is one in {share} of the skin-tone variants, to measure with once. **validation** is
  another one in {share}, chosen in the same way, to look at while you work.
- The unit is a base with a *set* of tones. Five tones of *waving hand* are five units. *Handshake:
  light, dark* and *handshake: dark, light* are one unit and go to the same split, so that the words
  of a held-out name were not seen together in another order either.
- For every unit in held-out and validation: the base is in train, plain and with at least three
  other skin-tone variants; each of its tones is in train; the base and this set of tones together
  are nowhere but in this split. For a single tone that means: the tone on other bases only.
- The choice is fixed: units are walked in the order of a SHA-256 of a seed, the split's name and
  the unit, and taken while they fit; one base gives each split at most one in {share} of its
  variants, rounded up.

Where each tone occurs (an emoji of two tones counts for both):

| tone | train | validation | held-out |
|---|---|---|---|
{tone_rows}

## What is in, and what is not

CLDR names {named} characters and sequences in English. The font draws all but {not_drawn} of them
as one glyph; those {not_drawn} are punctuation and symbols that are no emoji. Also left out:

- {plain_text}: the font has them only as parts of keycaps, and they are not emoji.
- {no_chinese} for want of a Chinese name or of keywords.
- {same_count}, because their picture equals another's, pixel for pixel ({same_sets} sets). The one
  kept is the emoji that the picture shows, or the land whose flag it is:

| kept | left out |
|---|---|
{same_rows}

The five skin tones and four kinds of hair that Unicode calls components are kept: the font draws
each as a picture of its own. The pictures of families are
black silhouettes that differ little, and some flags differ by a small crest only. A few bases show
hardly any skin (*person in bed*, *person golfing*): their tones are hard to tell apart.

## How the pictures were made

Drawn at {strike} pixels, the one size the font has, with raqm's shaping and in colour; centred on
a white square; reduced to {size} × {size} with a Lanczos filter. Channel values were then rounded
to multiples of {step} (no value moved by more than {half_step} in 255; white stayed white) and
stored as lossless WebP (quality {webp_quality}, method {webp_method}). Against the unrounded
pictures, PSNR is {psnr_mean} dB in the mean and {psnr_min} dB at worst, which the eye cannot see.
Lossy WebP was measured and not taken: its halved colour resolution held 300 of the pictures to a
mean of 31 to 33 dB, 24 dB at worst, at every quality from 80 to 100. Plain lossless would bring
the whole to 21 MB with the padding of the tar files.

## Sources and licences

| what | from | licence |
|---|---|---|
| pictures | Debian `fonts-noto-color-emoji` {font_version} (Noto Color Emoji, © Google Inc.) | \
SIL Open Font License 1.1, in `LICENSE.fonts.txt` |
| names and keywords | Debian `unicode-cldr-core` {cldr_version} (© 1991-2022 Unicode, Inc.) | \
Unicode-DFS-2016, in `LICENSE.cldr.txt` |

The two licence files are the `copyright` files of those packages.

## Making it again

```sh
apt-get install fonts-noto-color-emoji unicode-cldr-core libfribidi0
python scripts/build_emoji_data.py --check
```

The files come out byte for byte the same with these versions:

| what | version |
|---|---|
{version_rows}
"""


if __name__ == "__main__":
    sys.exit(main())

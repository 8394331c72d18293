"""Probabilities of labels for each image → as a table, as pictures in a notebook, as a frame."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, overload

import numpy as np

from clipkit.display.console import display_width, escape_control, pad, short_path, shorten
from clipkit.inputs import check_count

if TYPE_CHECKING:
    import pandas as pd

OTHER = "other"
_MOST_LINES, _MOST_CARDS, _BARS = 20, 50, 5


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one image shows.

    Attributes:
        name: of the image, for showing.
        label: the likeliest; ``other`` where that is not likely enough; None where the image
            cannot be read.
        score: the probability of the likeliest label; NaN where the image cannot be read.
        ranked: all labels with their probabilities, the likeliest first; empty where the image
            cannot be read.
        fault: why it cannot be read, or None.
    """

    name: str
    label: str | None
    score: float
    ranked: list[tuple[str, float]]
    fault: str | None = None

    def top(self, k: int = 1) -> list[tuple[str, float]]:
        """The k likeliest labels with their probabilities, the likeliest first."""
        check_count("k", k)
        return self.ranked[:k]


@dataclass(repr=False, eq=False)
class ZeroShotResult(Sequence[Prediction]):
    """What each image shows, in the order of the images: a sequence of ``Prediction``, and a part
    of it is a result again. A notebook shows it as pictures.

    Attributes:
        labels: C labels.
        scores: (N, C) float32, the probability of each label; rows sum to 1 (not where the model
            answers yes or no to each label, see ``ZeroShotClassifier``), and are NaN for an image
            that cannot be read.
        names: N names of the images.
        faults: why an image cannot be read, naming it; None where it can. N of them.
        thumbnails: N small pictures as WebP files; None where none was kept.
        other: below this probability of its likeliest label an image is ``other``.
    """

    labels: list[str]
    scores: np.ndarray
    names: list[str]
    faults: list[str | None]
    thumbnails: list[bytes | None]
    other: float | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> ZeroShotResult: ...
    def __getitem__(self, index: int | slice) -> Prediction | ZeroShotResult:
        if isinstance(index, slice):
            return ZeroShotResult(
                self.labels,
                self.scores[index],
                self.names[index],
                self.faults[index],
                self.thumbnails[index],
                self.other,
            )
        row, name, fault = self.scores[index], self.names[index], self.faults[index]
        if fault is not None:
            return Prediction(name, None, float("nan"), [], fault)
        order = np.argsort(-row, kind="stable")
        ranked = [(self.labels[c], float(row[c])) for c in order]
        label, score = ranked[0]
        unsure = self.other is not None and score < self.other
        return Prediction(name, OTHER if unsure else label, score, ranked)

    def __iter__(self) -> Iterator[Prediction]:
        return (self[i] for i in range(len(self)))

    def top(self, k: int = 1) -> list[list[tuple[str, float]]]:
        """For each image its k likeliest labels with their probabilities, the likeliest first;
        none for an image that cannot be read."""
        return [each.top(k) for each in self]

    def to_pandas(self) -> pd.DataFrame:
        """A row an image: image, label, score, fault, and ``p(LABEL)`` for each label."""
        import pandas as pd

        found = list(self)
        columns = {
            "image": self.names,
            "label": [each.label for each in found],
            "score": [each.score for each in found],
            "fault": self.faults,
        }
        likely = {f"p({label})": self.scores[:, c] for c, label in enumerate(self.labels)}
        return pd.DataFrame({**columns, **likely})

    def __repr__(self) -> str:
        if not len(self):
            return f"ZeroShotResult: no images, {len(self.labels)} labels"
        lines = format_result(self[:_MOST_LINES], k=3)
        rest = len(self) - _MOST_LINES
        return lines + (f"\n… and {rest:,} more images" if rest > 0 else "")

    def _repr_html_(self) -> str:
        cards = "".join(
            _card(each, thumbnail)
            for each, thumbnail in zip(self[:_MOST_CARDS], self.thumbnails, strict=False)
        )
        rest = len(self) - _MOST_CARDS
        more = f"<p>… and {rest:,} more images; result[{_MOST_CARDS}:] shows the next</p>"
        return (
            '<div style="font-size:13px;line-height:1.35">'
            f"<p>{len(self):,} image{'s' * (len(self) != 1)}, {len(self.labels):,} labels</p>"
            f'<div style="display:flex;flex-wrap:wrap;gap:16px">{cards}</div>'
            f"{more if rest > 0 else ''}</div>"
        )


def format_result(result: ZeroShotResult, *, k: int, width: int = 0) -> str:
    """A line an image: its name, ``other`` where it is that, its k likeliest labels.

    Args:
        result: what to show.
        k: labels an image.
        width: columns of the names at least.
    """
    names = [escape_control(name) for name in result.names]
    width = max([width, *map(display_width, names)])
    shown = [[(escape_control(label), p) for label, p in best] for best in result.top(k)]
    label_width = max((display_width(label) for best in shown for label, _ in best), default=0)
    lines = []
    for name, each, best in zip(names, result, shown, strict=True):
        cells = [f"{pad(label, label_width)} {p:6.1%}" for label, p in best]
        if result.other is not None:
            cells.insert(0, pad(OTHER if each.label == OTHER else "", len(OTHER)))
        if each.fault is not None:
            cells = [f"cannot be read: {escape_control(each.fault)}"]
        lines.append("  ".join([pad(name, width), *cells]).rstrip())
    return "\n".join(lines)


def _card(each: Prediction, thumbnail: bytes | None) -> str:
    """The picture, its name, and a bar for each of the likeliest labels."""
    picture = '<div style="width:96px;height:96px;opacity:0.6">no picture</div>'
    if thumbnail is not None:
        data = base64.b64encode(thumbnail).decode()
        picture = (
            f'<img src="data:image/webp;base64,{data}" alt="" style="width:96px;height:96px;'
            'object-fit:contain;background:#fff;border-radius:4px">'
        )
    bars = "".join(_bar(label, p) for label, p in each.top(_BARS))
    if each.fault is not None:
        bars = f"<div>cannot be read: {escape(each.fault)}</div>"
    elif each.label == OTHER:
        bars = f"<div><b>{OTHER}</b></div>{bars}"
    name = shorten(short_path(each.name), 60)
    return (
        '<div style="display:flex;gap:10px;width:340px;overflow-wrap:anywhere">'
        f'<div style="flex:none">{picture}</div><div style="flex:1;min-width:0">'
        f'<div style="opacity:0.7" title="{escape(each.name)}">{escape(name)}</div>'
        f"{bars}</div></div>"
    )


def _bar(label: str, p: float) -> str:
    return (
        '<div style="display:flex;gap:6px;align-items:center">'
        '<span style="flex:1;min-width:0;overflow:hidden;text-overflow:ellipsis;white-space:nowrap"'
        f' title="{escape(label)}">{escape(label)}</span>'
        '<span style="flex:none;width:80px;height:9px;background:#8883;border-radius:3px">'
        f'<span style="display:block;width:{p:.1%};height:9px;background:#2a78d6;'
        'border-radius:3px"></span></span>'
        '<span style="flex:none;width:52px;text-align:right;white-space:nowrap">'
        f"{p:.1%}</span></div>"
    )

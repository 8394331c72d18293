"""Rows of a classification → which classes are taken for which, how sure it was, and examples."""

from __future__ import annotations

from collections import Counter

import numpy as np

from clipkit.display.figure import Figure
from clipkit.display.matrix import MatrixFigure
from clipkit.display.page import Answer, Gallery, Query, note, queries, table
from clipkit.display.reliability import reliability_chart
from clipkit.evaluation.calibration import calibration
from clipkit.evaluation.classification import confusion_counts
from clipkit.evaluation.report.pictures import Pictures
from clipkit.evaluation.report.tables import show

_CLASSES = 20  # of a confusion matrix: more do not fit a page
_PAIRS = 12  # that are taken for one another most often
_EXAMPLES = 12  # right ones, and as many wrong ones


def has_answers(rows: dict[str, np.ndarray]) -> bool:
    """Whether there is one class a row, and one that it was taken for."""
    return all(
        name in rows and len(rows[name]) and isinstance(rows[name][0], str)
        for name in ("label", "predicted")
    ) and is_numbers(rows, "top1")


def confusion_matrix(title: str, label: np.ndarray, predicted: np.ndarray) -> Figure:
    """Of the images of each class, the share that was taken for each class.

    Args:
        title: what is shown.
        label: (N,) class names.
        predicted: (N,) class names.
    """
    names = Counter(label.tolist())
    shown = sorted(names, key=lambda name: (-names[name], name))[:_CLASSES]
    place = {name: i for i, name in enumerate(shown)}
    # What is not shown comes last.
    right, guessed = (
        np.array([place.get(name, len(shown)) for name in each.tolist()])
        for each in (label, predicted)
    )
    matrix = confusion_counts(right, guessed, len(shown) + 1)[:-1]
    others = len(names) > len(shown) or bool(matrix[:, -1].any())
    matrix = matrix if others else matrix[:, :-1]
    totals = matrix.sum(axis=1)
    drawn = MatrixFigure(
        matrix / totals[:, None],
        [f"{name} ({int(total):,})" for name, total in zip(shown, totals, strict=True)],
        [*shown, *(["any other"] if others else [])],
        most=_CLASSES + 1,
        title=title,
        percent=True,
        cell=34,
    )
    text = "Rows: what an image is, and how many there are; columns: what it was taken for, in %."
    if len(names) > len(shown):
        text += f" Of {len(names):,} classes the {len(shown)} with the most images."
    return Figure(title, drawn.svg(), text, wide=True, white=True)


def confused_pairs(label: np.ndarray, predicted: np.ndarray) -> str:
    """A table of the mistakes that were made most often; a sentence where there are none."""
    wrong = label != predicted
    if not wrong.any():
        return note("Not one image was taken for another class.")
    # By names and not by arrays of them, which are as wide as the longest name.
    pairs = Counter(zip(label[wrong].tolist(), predicted[wrong].tolist(), strict=True))
    rows = []
    for name, guess in sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:_PAIRS]:
        count = pairs[name, guess]
        rows.append([name, guess, f"{count:,}", f"{count / (label == name).sum():.1%}"])
    header = ["an image of", "taken for", "images", "of that class"]
    return table(header, rows, texts=(0, 1))


def reliability(title: str, rows: dict[str, np.ndarray]) -> Figure | None:
    """How sure the model was and how often right; None where no probability was kept."""
    if not is_numbers(rows, "confidence"):
        return None
    right = rows["top1"] == 1
    try:
        found = calibration(rows["confidence"].astype(np.float64), right, bins=10)
    except ValueError:  # these are no probabilities
        return None
    text = (
        f"On the dashed line a probability is what it says. ECE {found.ece:.3f} with 10 bins. "
        "Grey: how many images."
    )
    return reliability_chart(title, found.counts, found.confidences, found.accuracies, note=text)


def examples(rows: dict[str, np.ndarray], path: object, pictures: Pictures) -> str:
    """Some right and some wrong answers with their pictures, spread evenly over the data; without
    pictures a table of the wrong ones."""
    keys, label, predicted = (texts_of(rows, name) for name in ("key", "label", "predicted"))
    right = label == predicted
    scores = np.full(len(keys), np.nan)
    if is_numbers(rows, "confidence"):
        scores = rows["confidence"].astype(np.float64)
    chosen = {
        "Wrong answers": spread(np.flatnonzero(~right), _EXAMPLES),
        "Right answers": spread(np.flatnonzero(right), _EXAMPLES),
    }
    found, fault = pictures.find(path, {keys[i]: i for each in chosen.values() for i in each})
    if not found:
        wrong = chosen["Wrong answers"]
        header = ["sample", "is", "taken for", "probability"]
        lines = [[keys[i], label[i], predicted[i], show(scores[i], ".3f")] for i in wrong]
        return note(fault) + (table(header, lines, texts=(0, 1, 2)) if lines else "")
    shown = []
    for words, each in chosen.items():
        answers = [
            Answer(
                found[keys[i]].picture if keys[i] in found else None,
                label[i] if right[i] else f"{label[i]}, taken for {predicted[i]}",
                float(scores[i]) if np.isfinite(scores[i]) else None,
                bool(right[i]),
            )
            for i in each
        ]
        total = int((right if words == "Right answers" else ~right).sum())
        if answers:
            shown.append(Query(words, answers, f"{len(each)} of {total:,}", quoted=False))
    return queries(Gallery("", shown, fault))


def is_numbers(rows: dict[str, np.ndarray], name: str) -> bool:
    """Whether there is this column, and of numbers."""
    return name in rows and rows[name].dtype.kind in "fiub"


def texts_of(rows: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A column as ``str`` objects, each as long as it is."""
    return np.array([str(each) for each in rows[name]], dtype=object)


def spread(rows: np.ndarray, most: int) -> list[int]:
    """``most`` of the rows at most, evenly spaced."""
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most + 2)[1:-1].round().astype(int)]
    found: list[int] = rows.tolist()
    return found

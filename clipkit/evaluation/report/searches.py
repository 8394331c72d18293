"""Rows of a retrieval task → examples of what is found first and what is not, without the model."""

from __future__ import annotations

import numpy as np

from clipkit.display.page import Answer, Gallery, Query, note, queries, table
from clipkit.evaluation.report.answers import is_numbers, spread
from clipkit.evaluation.report.pictures import Pictures

_IMAGES, _TEXTS = 8, 10


def has_searches(rows: dict[str, np.ndarray]) -> bool:
    """Whether there is the rank of each query's right answer."""
    there = all(name in rows and len(rows[name]) for name in ("key", "direction", "rank"))
    return there and is_numbers(rows, "rank")


def searches(rows: dict[str, np.ndarray], path: object, pictures: Pictures) -> str:
    """Texts whose image is not found first; images, with theirs, whose caption is and is not."""
    keys, ways, ranks = rows["key"].astype(str), rows["direction"].astype(str), rows["rank"]
    parts = []
    texts = ways == "text_to_image"
    late = spread(np.flatnonzero(texts & (ranks > 1)), _TEXTS)
    first, total = int((texts & (ranks == 1)).sum()), int(texts.sum())
    parts.append(note(f"{first:,} of {total:,} texts find their image first."))
    if late:
        late.sort(key=lambda i: -int(ranks[i]))
        header = ["a text that does not", "place of its image"]
        parts.append(table(header, [[keys[i], f"{ranks[i]:,}"] for i in late]))
    places = np.cumsum(~texts) - 1  # of an image among the images
    chosen = {
        "Images whose caption is not found first": ~texts & (ranks > 1),
        "Images whose caption is found first": ~texts & (ranks == 1),
    }
    rows_of = {words: spread(np.flatnonzero(which), _IMAGES) for words, which in chosen.items()}
    asked = {keys[i]: int(places[i]) for each in rows_of.values() for i in each}
    found, fault = pictures.find(path, asked)
    shown = []
    for words, each in rows_of.items():
        answers = [
            Answer(
                found[keys[i]].picture,
                f"{found[keys[i]].caption} (place {ranks[i]:,})",
                None,
                bool(ranks[i] == 1),
            )
            for i in each
            if keys[i] in found
        ]
        if answers:
            about = f"{len(answers)} of {int(chosen[words].sum()):,}"
            shown.append(Query(words, answers, about, quoted=False))
    if shown:
        parts.append(queries(Gallery("", shown, fault)))
    elif fault:
        parts.append(note(fault))
    return "".join(parts)

"""Trains with each option of the loss, on data with and without duplicates, and measures.

    python scripts/loss_choices.py emoji
    python scripts/loss_choices.py photos FOLDER

``emoji`` is the shipped data, whose names are unique: text→image R@1 of validation, in its own
gallery and in that of all emoji. ``photos`` are ``train-*.tar`` and ``test-*.tar`` of a folder,
with few different captions, so that each stands in a batch many times: how often an image's
nearest caption is its own, and a caption's nearest image one of its own.

Sizes are those of configs/emoji.yaml; 12 epochs. Runs are kept in ``--runs``; a run that is
there is not made again.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from emoji_results import ROOT, evaluate, measure, train
from machine import machine

# Name, and the overrides that make it. SigLIP begins with a temperature of 0.1 and a bias of -10.
SIGMOID = ["loss.kind=sigmoid", "loss.init_temperature=0.1"]
BOTH = {
    "InfoNCE": [],
    "InfoNCE, label smoothing 0.1": ["loss.label_smoothing=0.1"],
    "sigmoid": SIGMOID,
}
LOSSES: dict[str, dict[str, list[str]]] = {
    "emoji": BOTH
    | {
        "sigmoid, bias from 0": [*SIGMOID, "loss.init_bias=0"],
        "sigmoid, temperature from 0.02": ["loss.kind=sigmoid"],
    },
    "photos": BOTH
    | {
        "InfoNCE, duplicates are positives": ["loss.duplicates=positives"],
        "sigmoid, duplicates are positives": [*SIGMOID, "loss.duplicates=positives"],
        "sigmoid, duplicates are positives, bias from 0": [
            *SIGMOID,
            "loss.duplicates=positives",
            "loss.init_bias=0",
        ],
    },
}
PLAIN = str.maketrans(" ,", "-_")  # a name, as a folder has it
COMMON = ["train.epochs=12", "eval.every=0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("emoji", "photos"))
    parser.add_argument("folder", nargs="?", type=Path, help="of the photos' shards")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "loss-choices")
    parser.add_argument("--count", type=int, default=3, help="how many seeds")
    args = parser.parse_args()
    if (args.what == "photos") != (args.folder is not None):
        parser.error("photos takes a folder, emoji takes none")
    args.runs.mkdir(parents=True, exist_ok=True)
    losses = LOSSES[args.what]
    rows: dict[str, dict[str, list[float]]] = {name: {} for name in losses}
    for seed in range(args.count):
        for name, overrides in losses.items():
            run = args.runs / f"{args.what} {name} {seed}".translate(PLAIN)
            every = [*COMMON, *overrides, f"seed={seed}"]
            if args.what == "emoji":
                train(run, *every)
                found = {
                    "R@1": evaluate(run, "validation", full=False)["text_to_image_R@1"],
                    "R@1, all emoji": evaluate(run, "validation", full=True)["text_to_image_R@1"],
                }
            else:
                train(run, *photos(args.folder), *every)
                metrics = measure(run, f"{args.folder}/test-*.tar")
                found = {
                    "accuracy": metrics["image_to_text_R@1"],
                    "text→image R@1": metrics["text_to_image_R@1"],
                }
            for metric, value in found.items():
                rows[name].setdefault(metric, []).append(value)
    print(f"\n{args.count} seeds, {machine('torch', 'transformers')}\n")
    metrics = list(next(iter(rows.values())))
    print(f"| {args.what}: mean (lowest – highest) | {' | '.join(metrics)} |")
    print("|---|" + "---|" * len(metrics))
    for name, values in rows.items():
        cells = [f"{statistics.mean(v):.3f} ({min(v):.3f} – {max(v):.3f})" for v in values.values()]
        print(f"| {name} | {' | '.join(cells)} |")


def photos(folder: Path) -> list[str]:
    """Overrides for photographs, which are shown cropped and either way round."""
    return [
        f"data.train={folder}/train-*.tar",
        f"data.evaluate.validation={folder}/validation-*.tar",
        "data.augment.crop_scale=[0.6,1]",
        "data.augment.crop_ratio=[0.75,1.333]",
        "data.augment.horizontal_flip=0.5",
        "train.batch_size=128",
    ]


if __name__ == "__main__":
    main()

"""Trains the emoji recipe with several seeds, or with one choice undone at a time, and measures.

    python scripts/emoji_results.py seeds       # held-out, mean and spread of seeds 0, 1, 2
    python scripts/emoji_results.py choices     # validation, seed 0, one choice undone at a time
    python scripts/emoji_results.py since       # this tree beside the first that had the demo

Everything goes through the command line, as a user would. Choices are judged on validation
only; held-out is looked at for reporting. Three to twelve minutes a run. Runs are kept in
``--runs``; a run that is there is not made again. With ``--jobs 2`` two runs train at once, side by
side, each with half of the cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import machine

ROOT = Path(__file__).resolve().parent.parent
FIRST = "fce7024"  # the demo as it was first done: its code, its recipe
LONGER = ["train.epochs=50"]  # takes 0.6 of the time that ``FIRST`` took
CONFIG = "configs/emoji.yaml"
EVERYTHING = [f"data/emoji/{split}-*.tar" for split in ("train", "validation", "held-out")]
# What the recipe chose since ``FIRST``, each undone: name, and the overrides that undo it.
CHOICES: dict[str, list[str]] = {
    "the recipe": [],
    "50 epochs": LONGER,
    "no hard negatives": ["data.hard_negatives=0"],
    "4 layers of text": ["model.text.layers=4"],
    "AdamW, lr 5e-4, weight decay 0.1": [
        "optim.name=adamw", "optim.lr=5e-4", "optim.weight_decay=0.1"
    ],
    "weight decay 0.1": ["optim.weight_decay=0.1"],
    "no samples kept": ["data.decoded_gb=0"],
}  # fmt: skip


Run = tuple[Path, list[str], Path]  # its folder, overrides, and the tree whose code trains it


def clipkit(*arguments: str, tree: Path = ROOT) -> None:
    subprocess.run(
        [sys.executable, "-m", "clipkit", *arguments],
        cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True,
    )  # fmt: skip


def train_all(wanted: list[Run], jobs: int) -> None:
    """Trains runs, several at a time."""
    if jobs > 1:
        os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // jobs, 1))
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(lambda run: train(run[0], *run[1], tree=run[2]), wanted))


def train(folder: Path, *overrides: str, tree: Path = ROOT) -> float:
    """Trains a run unless it is there; returns its seconds from start to end."""
    clock = folder / "seconds.json"
    if not clock.is_file():
        begin = time.perf_counter()
        clipkit("train", CONFIG, f"output={folder}", *overrides, tree=tree)
        clock.write_text(json.dumps(time.perf_counter() - begin))
    seconds: float = json.loads(clock.read_text())
    return seconds


def evaluate(
    folder: Path, split: str, *, caption: str | None = None, full: bool
) -> dict[str, float]:
    """Retrieval on a split, in its own gallery or in that of all emoji."""
    # The keywords of an emoji are one question.
    arguments = ["--caption", caption, "--captions", "join"] if caption else []
    if full:
        arguments += ["--gallery", *EVERYTHING]
    return measure(folder, f"data/emoji/{split}-*.tar", *arguments)


def measure(folder: Path, source: str, *arguments: str) -> dict[str, float]:
    """What ``clipkit eval`` finds."""
    out = folder / "eval.json"
    clipkit("eval", str(folder), source, "--json", str(out), *arguments)
    metrics: dict[str, float] = json.loads(out.read_text())["metrics"]
    return metrics


def seeds(runs: Path, count: int, jobs: int) -> None:
    rows: dict[str, list[float]] = {}
    minutes = []
    train_all([(runs / f"seed-{seed}", [f"seed={seed}"], ROOT) for seed in range(count)], jobs)
    for seed in range(count):
        folder = runs / f"seed-{seed}"
        minutes.append(train(folder, f"seed={seed}") / 60)
        for title, caption in (
            ("names", None),
            ("keywords", "json.keywords"),
            ("Chinese names", "json.name_zh"),
        ):
            for full in (False, True):
                metrics = evaluate(folder, "held-out", caption=caption, full=full)
                gallery = "all emoji" if full else "held-out"
                for k in (1, 5):
                    row = f"{title}, gallery {gallery}, text→image R@{k}"
                    rows.setdefault(row, []).append(metrics[f"text_to_image_R@{k}"])
    print(f"\n| held-out, {count} seeds | mean | lowest | highest |\n|---|---|---|---|")
    for row, values in rows.items():
        mean = statistics.mean(values)
        print(f"| {row} | {mean:.3f} | {min(values):.3f} | {max(values):.3f} |")
    print(f"\nminutes of clipkit train: {', '.join(f'{m:.1f}' for m in minutes)}")


def choices(runs: Path, jobs: int) -> None:
    table = []
    undone = enumerate(CHOICES.values())
    train_all([(runs / f"choice-{number}", each, ROOT) for number, each in undone], jobs)
    for number, (name, overrides) in enumerate(CHOICES.items()):
        folder = runs / f"choice-{number}"
        seconds = train(folder, *overrides)
        own = evaluate(folder, "validation", full=False)
        full = evaluate(folder, "validation", full=True)
        table.append(
            f"| {name} | {own['text_to_image_R@1']:.3f} | {own['text_to_image_R@5']:.3f} | "
            f"{full['text_to_image_R@1']:.3f} | {seconds / 60:.1f} |"
        )
    print("\n| validation, seed 0 | R@1 | R@5 | R@1, gallery of all emoji | minutes |")
    print("|---|---|---|---|---|", *table, sep="\n")


def since(runs: Path, count: int, jobs: int) -> None:
    """Trains by the code and recipe of ``FIRST`` and by those of this tree, in turns."""
    names = {"then": FIRST, "now": "this tree", "longer": f"this tree, {' '.join(LONGER)}"}
    minutes: dict[str, list[float]] = {name: [] for name in names}
    reached: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(old), FIRST], check=True)
        try:
            wanted: dict[tuple[str, int], Run] = {
                (name, seed): (
                    runs / f"{name}-{seed}",
                    [f"seed={seed}", *(LONGER if name == "longer" else [])],
                    old if name == "then" else ROOT,
                )
                for seed in range(count)
                for name in ("then", "longer", "now")
            }
            train_all(list(wanted.values()), jobs)
            for (name, _), (run, options, tree) in wanted.items():
                minutes[name].append(train(run, *options, tree=tree) / 60)
                own, full = (evaluate(run, "held-out", full=full) for full in (False, True))
                keys = ("text_to_image_R@1", "text_to_image_R@5")
                reached[name].append([own[keys[0]], own[keys[1]], full[keys[0]]])
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=True)
    print(f"\n| held-out, {count} seeds | minutes | R@1 | R@5 | R@1, gallery of all emoji |")
    print("|---|---|---|---|---|")
    for name, what in names.items():
        cells = [f"{statistics.mean(each):.3f}" for each in zip(*reached[name], strict=True)]
        took = ", ".join(f"{each:.1f}" for each in minutes[name])
        print(f"| {name}: {what} | {took} | {' | '.join(cells)} |")
    for name in ("now", "longer"):
        ratio = statistics.median(minutes[name]) / statistics.median(minutes["then"])
        print(f"\nclipkit train, {name} / then: {ratio:.2f} of the time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("seeds", "choices", "since"))
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "emoji-results")
    parser.add_argument("--count", type=int, default=3, help="how many seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs that train at once")
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    if args.what == "choices":
        choices(args.runs, args.jobs)
    else:
        {"seeds": seeds, "since": since}[args.what](args.runs, args.count, args.jobs)
    print(machine("torch", "transformers"))


if __name__ == "__main__":
    main()

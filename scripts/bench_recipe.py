"""clipkit beside open_clip's own trainer on data/emoji: recall for the same pairs, and its time.

    python -m venv /tmp/open_clip
    /tmp/open_clip/bin/pip install 'open_clip_torch[training]' 'webdataset<=0.2.86'
    python scripts/bench_recipe.py settings --open-clip-python /tmp/open_clip/bin/python
    python scripts/bench_recipe.py race --open-clip-python /tmp/open_clip/bin/python

``race`` trains both, one after the other, with the sizes of configs/emoji.yaml, batches of 256,
bf16 AMP and as many pairs. Each saves every few epochs; the clock runs from the start of the
process to the writing of a checkpoint. What was saved is evaluated afterwards, off the clock, by
one function for both. open_clip has its own tokenizer, loader, initialisation, loss and AdamW.
With ``--seeds 3`` each is trained three times, in turns, and means are compared.
``settings`` is how its hyperparameters were chosen: on validation, in shorter runs.

Runs are kept in ``--runs``; a run that is there is not made again.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "emoji"
CONFIG = "configs/emoji.yaml"
BATCH, SAMPLES = 256, 3177
EPOCH = -(-SAMPLES // BATCH)  # steps of open_clip's epoch: what is over is filled with repeats
# The longest name has 21 tokens in open_clip's vocabulary. Its text tower is causal and pools at
# the end token, so that a shorter context computes the same, in less time.
LONGEST, DEFAULT_CONTEXT = 24, 77
VIT = {"image_size": 64, "layers": 6, "width": 192, "head_width": 64, "patch_size": 16}
TEXT = {"vocab_size": 49408, "width": 192, "heads": 3, "layers": 2}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
COLD = {"init_logit_scale": 3.912}  # a temperature of 0.02
RECIPE = ["--wd", "0.1", "--grad-clip-norm", "1.0", "--aug-cfg", "scale=(1.0,1.0)"]
# Of open_clip: what its model's file holds besides sizes, and its arguments. Its warm-up of
# 10,000 steps would be longer than the run.
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "its defaults": ({}, {}, []),
    "clipkit's recipe": (COLD, HALF, RECIPE),
    "clipkit's recipe, lr 1e-3": (COLD, HALF, [*RECIPE, "--lr", "1e-3"]),
}
BEST = "clipkit's recipe"
SPLITS = ("validation", "held-out")
GALLERIES = [f"{s} R@1{g}" for s in SPLITS for g in ("", ", all emoji")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("settings", "race"))
    parser.add_argument("--open-clip-python", help="an interpreter that has open_clip_train")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "bench-recipe")
    parser.add_argument("--epochs", type=int, help="of open_clip; 20 for settings, 40 for a race")
    parser.add_argument("--every", type=int, default=4, help="epochs from checkpoint to checkpoint")
    parser.add_argument("--workers", type=int, default=1, help="of open_clip's loader")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each in a race")
    parser.add_argument("--embed", nargs="+", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.embed:
        return embed(args.embed)
    args.runs.mkdir(parents=True, exist_ok=True)
    if args.what == "settings":
        compare_settings(args)
    else:
        race(args)


def compare_settings(args: argparse.Namespace) -> None:
    epochs = args.epochs or 20
    rows = []
    for name in SETTINGS:
        run = train_open_clip(args, name, LONGEST, epochs=epochs, every=epochs)
        own, full = recalls(run, args.open_clip_python)[-1]["validation"]
        rows.append(f"| {name} | {own:.3f} | {full:.3f} |")
    print(f"\n{described(args)}\n")
    print(f"| open_clip, {epochs} epochs, validation | R@1 | R@1, all emoji |\n|---|---|---|")
    print(*rows, sep="\n")


def race(args: argparse.Namespace) -> None:
    epochs = args.epochs or 40
    pairs, between = epochs * EPOCH * BATCH, args.every * EPOCH * BATCH
    peer = args.open_clip_python
    default = train_open_clip(args, BEST, DEFAULT_CONTEXT, epochs=2, every=1)
    runs: dict[str, list[Path]] = {"open_clip": [], "clipkit": []}
    for seed in range(args.seeds):
        theirs = train_open_clip(args, BEST, LONGEST, epochs=epochs, every=args.every, seed=seed)
        runs["open_clip"].append(theirs)
        ours = train_clipkit(args, steps=pairs // BATCH, every=between // BATCH, seed=seed)
        runs["clipkit"].append(ours)
    found = {
        "open_clip": [recalls(run, peer) for run in runs["open_clip"]],
        "clipkit": [recalls(run, sys.executable) for run in runs["clipkit"]],
    }
    print(f"\n{described(args)}; {args.seeds} runs of each\n")
    print(f"| after {pairs:,} pairs | minutes | images/s | {' | '.join(GALLERIES)} |")
    print("|---|---|---|---|---|---|---|")
    for name, each in found.items():
        for number, rows in enumerate(each):
            rate = images_per_second(runs[name][number], between)
            seed = f", seed {number}" if args.seeds > 1 else ""
            print(f"| {name}{seed} | {minutes(rows[-1])} | {rate:.0f} | {cells(rows[-1])} |")
        if args.seeds > 1:
            end = mean([rows[-1] for rows in each])
            print(f"| {name}, mean | {minutes(end)} | | {cells(end)} |")
    rate = images_per_second(default, EPOCH * BATCH)
    print(f"\nopen_clip with its default context, {DEFAULT_CONTEXT} tokens: {rate:.0f} images/s\n")
    print("text→image R@1 along the way, in the split's own gallery and among all emoji:\n")
    columns = ["minutes", *GALLERIES]
    heads = [f"{name}, {column}" for name in found for column in columns]
    print(f"| pairs | {' | '.join(heads)} |")
    print("|---" * (1 + len(heads)) + "|")
    means = {name: [mean(rows) for rows in zip(*each, strict=True)] for name, each in found.items()}
    for number, rows in enumerate(zip(*means.values(), strict=True), start=1):
        each = [f"{minutes(row)} | {cells(row)}" for row in rows]
        print(f"| {number * between:,} | {' | '.join(each)} |")
    print()
    for split in SPLITS:
        for number, gallery in enumerate(("its own gallery", "the gallery of all emoji")):
            print(f"{split} R@1 in {gallery}: {verdict(means, split, number)}")


Row = dict[str, Any]  # "seconds", and of each split R@1 in its own gallery and among all emoji


def mean(rows: Sequence[Row]) -> Row:
    """Of the runs of one trainer at one checkpoint."""
    result: Row = {"seconds": statistics.mean(row["seconds"] for row in rows)}
    for split in SPLITS:
        each = zip(*(row[split] for row in rows), strict=True)
        result[split] = [statistics.mean(values) for values in each]
    return result


def minutes(row: Row) -> str:
    return f"{row['seconds'] / 60:.1f}"


def cells(row: Row) -> str:
    return " | ".join(f"{value:.3f}" for split in SPLITS for value in row[split])


def verdict(means: dict[str, list[Row]], split: str, number: int) -> str:
    """How long clipkit takes to the recall that open_clip ends at, beside open_clip."""
    end = means["open_clip"][-1]
    goal = end[split][number]
    line = f"{goal:.3f} by open_clip in {minutes(end)} min, "
    rounding = 1e-9  # of a mean
    reached = [row for row in means["clipkit"] if row[split][number] >= goal - rounding]
    if not reached:
        return line + "not reached by clipkit"
    share = reached[0]["seconds"] / end["seconds"]
    return line + f"by clipkit in {minutes(reached[0])} min, {share:.2f} of it"


def described(args: argparse.Namespace) -> str:
    from machine import machine

    ask = "from importlib.metadata import version as v; print(v('open_clip_torch'), v('torch'))"
    command = [args.open_clip_python, "-c", ask]
    peer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    ours = machine("torch", "transformers")
    return f"{ours}; open_clip {peer[0]} with torch {peer[1]}, {args.workers} loader workers"


def train_clipkit(args: argparse.Namespace, *, steps: int, every: int, seed: int) -> Path:
    """Returns the run's folder; ``seconds.json`` there tells when each checkpoint was written."""
    run: Path = args.runs / f"clipkit-{steps}-{every}-{seed}"
    command = [sys.executable, "-m", "clipkit", "train", CONFIG, f"output={run}"]
    command += [f"train.steps={steps}", "train.epochs=null", "eval.every=0"]
    command += [f"train.save_every={every}", "train.keep=1000", f"seed={seed}"]
    return timed(command, run, "checkpoints/step-*/manifest.json")


def train_open_clip(
    args: argparse.Namespace, name: str, context: int, *, epochs: int, every: int, seed: int = 0
) -> Path:
    """The same, by open_clip's trainer."""
    more, preprocess, options = SETTINGS[name]
    number = list(SETTINGS).index(name)
    run: Path = args.runs / f"open_clip-{number}-{context}-{epochs}-{every}-{seed}"
    model = run / "vit"  # by this name it takes the paper's betas and epsilon for a ViT
    model.mkdir(parents=True, exist_ok=True)
    sizes = {"embed_dim": 192, "vision_cfg": VIT, "text_cfg": {**TEXT, "context_length": context}}
    config = {"model_cfg": {**sizes, **more}, "preprocess_cfg": preprocess}
    (model / "open_clip_config.json").write_text(json.dumps(config))
    command = [args.open_clip_python, "-m", "open_clip_train.main", "--model", f"local-dir:{model}"]
    command += ["--device", "cpu", "--precision", "amp_bf16", "--batch-size", str(BATCH)]
    command += ["--train-data", f"{DATA}/train-{{000..007}}.tar", "--dataset-type", "webdataset"]
    command += ["--train-num-samples", str(SAMPLES), "--workers", str(args.workers)]
    command += ["--warmup", "50", "--epochs", str(epochs), "--save-frequency", str(every)]
    command += ["--logs", str(run), "--name", "log", "--seed", str(seed), *options]
    return timed(command, run, "log/checkpoints/epoch_*.pt")


def timed(command: list[str], run: Path, checkpoints: str) -> Path:
    clock = run / "seconds.json"
    if not clock.is_file():
        print(" ".join(command), file=sys.stderr)
        begin = time.time()
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        written = {str(path): path.stat().st_mtime - begin for path in run.glob(checkpoints)}
        if not written:
            raise SystemExit(
                f"{run}: nothing was saved; remove the folder and look at what is said"
            )
        clock.write_text(json.dumps(dict(sorted(written.items(), key=lambda item: item[1]))))
    return run


def images_per_second(run: Path, between: int) -> float:
    """From the first checkpoint to the last, so without the start of the process."""
    seconds = list(json.loads((run / "seconds.json").read_text()).values())
    return (len(seconds) - 1) * between / (seconds[-1] - seconds[0])


def recalls(run: Path, python: str) -> list[Row]:
    """For each checkpoint its seconds, and for each split text→image R@1 in both galleries."""
    import numpy as np

    from clipkit.evaluation.metrics import retrieval_metrics

    seconds: dict[str, float] = json.loads((run / "seconds.json").read_text())
    with tempfile.TemporaryDirectory() as folder:
        command = [python, __file__, "race", "--embed", folder, *seconds]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        found = [np.load(Path(folder) / f"{number}.npz") for number in range(len(seconds))]
        found = [{name: saved[name] for name in saved.files} for saved in found]
    rows = []
    begin, places = 0, {}
    for split in SPLITS:
        count = len(read_pairs(split))
        places[split] = np.arange(begin, begin + count)
        begin += count
    for time_taken, saved in zip(seconds.values(), found, strict=True):
        row: dict[str, Any] = {"seconds": time_taken}
        for split, place in places.items():
            texts, number = saved["texts"][place], np.arange(len(place))
            own = retrieval_metrics(saved["images"][place], texts, np.stack([number, number], 1))
            full = retrieval_metrics(saved["images"], texts, np.stack([place, number], 1))
            row[split] = [metrics["text_to_image_R@1"] for metrics in (own, full)]
        rows.append(row)
    return rows


def read_pairs(split: str) -> list[tuple[bytes, str]]:
    """(image file, name) of each emoji of a split."""
    pairs = []
    for shard in sorted(DATA.glob(f"{split}-*.tar")):
        with tarfile.open(shard) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore
        keys = [name.removesuffix(".webp") for name in files if name.endswith(".webp")]
        pairs += [(files[f"{key}.webp"], files[f"{key}.txt"].decode()) for key in keys]
    return pairs


def embed(paths: list[Path]) -> None:
    """Writes NUMBER.npz in the first folder for each of the checkpoints that follow: (N, D) of
    all images, those of validation and held-out first, and (M, D) of the texts of these two."""
    import numpy as np

    folder, *checkpoints = paths
    pairs = [pair for split in SPLITS for pair in read_pairs(split)]
    texts = [text for _, text in pairs]
    images = [image for image, _ in pairs + read_pairs("train")]
    for number, checkpoint in enumerate(checkpoints):
        encode = with_open_clip if checkpoint.suffix == ".pt" else with_clipkit
        image_embeds, text_embeds = encode(checkpoint, images, texts)
        np.savez(folder / f"{number}.npz", images=image_embeds, texts=text_embeds)


def with_clipkit(checkpoint: Path, images: list[bytes], texts: list[str]) -> tuple[Any, Any]:
    import clipkit

    model = clipkit.load(checkpoint.parent / "model")
    return model.encode_image(images), model.encode_text(texts)


def with_open_clip(checkpoint: Path, images: list[bytes], texts: list[str]) -> tuple[Any, Any]:
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{checkpoint.parents[2] / 'vit'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(state["state_dict"])
    model.eval()
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(images), BATCH):
            opened = [Image.open(io.BytesIO(data)) for data in images[begin : begin + BATCH]]
            pixels = torch.stack([preprocess(image) for image in opened])
            parts.append(model.encode_image(pixels, normalize=True))
        text_embeds = model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    return torch.cat(parts).numpy(), text_embeds.numpy()


if __name__ == "__main__":
    main()

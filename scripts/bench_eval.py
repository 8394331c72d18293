"""``clipkit eval`` beside CLIP_benchmark: zero-shot and retrieval of one model on 10,000 images.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install clip_benchmark 'numpy<2.4'
    python scripts/bench_eval.py runs/emoji --peer-python /tmp/peer/bin/python

The model is a CLIP run, such as the demo's, exported to an open_clip folder that both load. The
images are the pictures of data/emoji, turned, scaled and moved at random, in the middle of a grey
picture of 500 × 375 with some noise, as JPEGs in 8 shards; each has a caption of its own, and a
class, one of at most 1,000 names. CLIP_benchmark reads them as a ``wds`` folder, clipkit by a suite
of two tasks.

What is timed is the command line from its start to its end: importing, loading the model, reading,
decoding, embedding and measuring. CLIP_benchmark has a command for each of the two tasks, and so
reads and embeds the images twice; clipkit has one for both, and keeps the images' embeddings for
the second. Caches and indexes of clipkit are removed before each turn. All take turns; medians.

CLIP_benchmark runs at its defaults (4 workers, batches of 64, bf16 by autocast), the same in
float32, and both with as many workers as cores and batches of 256; the fastest of the four is its
best. clipkit runs at its defaults, in float32, and the figures are compared with those in it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from machine import machine
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SHARDS, CLASSES = 8, 1000
CAPTIONS = ("{}", "a picture of {}", "the sign {}", "here is {}", "a drawing of {}")
TEMPLATES = ("{}", "a picture of {}", "a small picture of {}")
DEFAULT, BEST = {"workers": 4, "batch": 64}, {"workers": os.cpu_count() or 1, "batch": 256}
PEERS: dict[str, dict[str, Any]] = {
    "CLIP_benchmark": {**DEFAULT, "amp": True},
    "CLIP_benchmark, float32": {**DEFAULT, "amp": False},
    "CLIP_benchmark, 256 at once": {**BEST, "amp": True},
    "CLIP_benchmark, 256 at once, float32": {**BEST, "amp": False},
}
# What each calls the same figure: the task of ours, and the metric of both.
FIGURES = [
    ("classes", "top1", "acc1"),
    ("classes", "top5", "acc5"),
    ("classes", "mean_per_class_recall", "mean_per_class_recall"),
    *(("captions", f"text_to_image_R@{k}", f"image_retrieval_recall@{k}") for k in (1, 5, 10)),
    *(("captions", f"image_to_text_R@{k}", f"text_retrieval_recall@{k}") for k in (1, 5, 10)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a CLIP run or folder, e.g. runs/emoji")
    parser.add_argument("--peer-python", required=True, help="an interpreter with clip_benchmark")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("# Evaluation beside CLIP_benchmark\n")
    print(f"    python scripts/bench_eval.py {' '.join(sys.argv[1:])}\n")
    print(machine("torch", "numpy", "pillow"))
    names = ("clip_benchmark", "open_clip_torch", "torch", "webdataset")
    ask = f"from importlib.metadata import version; print(*map(version, {names}))"
    told = output_of([args.peer_python, "-c", ask]).split()
    print("peer:", ", ".join(f"{name} {each}" for name, each in zip(names, told, strict=True)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = folder / "model"
        output_of(
            [sys.executable, "-m", "clipkit", "export", args.model, model, "--to", "open_clip"]
        )
        num_classes = make_images(folder, args.images)
        print(f"{args.images:,} images, {num_classes} classes, medians of {args.rounds} turns\n")
        return compare(folder, model, args)


def compare(folder: Path, model: Path, args: argparse.Namespace) -> int:
    ways: dict[str, Callable[[], dict[str, float]]] = {"clipkit": lambda: ours(folder, model)}
    for name, options in PEERS.items():
        ways[name] = lambda options=options: theirs(folder, model, args.peer_python, options)
    times: dict[str, list[float]] = {way: [] for way in ways}
    figures: dict[str, dict[str, float]] = {}
    for _ in range(args.rounds):
        for way, run in ways.items():
            forget(folder)
            begin = time.perf_counter()
            figures[way] = run()
            times[way].append(time.perf_counter() - begin)
    medians = {way: statistics.median(values) for way, values in times.items()}
    print("| | seconds | least, most | clipkit takes of it |")
    print("|---|---|---|---|")
    for way, seconds in medians.items():
        least, most = min(times[way]), max(times[way])
        share = medians["clipkit"] / seconds
        print(f"| {way} | {seconds:.1f} | {least:.1f}, {most:.1f} | {share:.2f} |")
    print(f"\n| figure | {' | '.join(ways)} |")
    print("|---|" + "---|" * len(ways))
    for name in figures["clipkit"]:
        print(f"| {name} | {' | '.join(f'{figures[way][name]:.4f}' for way in ways)} |")
    exact = figures["CLIP_benchmark, float32"]
    apart = max(abs(figures["clipkit"][name] - exact[name]) for name in exact)
    same = apart <= 1e-4
    print(f"\nlargest difference of a figure in float32: {apart:.1e}")
    default = medians["clipkit"] / medians["CLIP_benchmark"]
    best = medians["clipkit"] / min(medians[way] for way in PEERS)
    print(
        f"clipkit takes {default:.2f} of the time of CLIP_benchmark's defaults and {best:.2f} of "
        f"its best; the figures are {'the same to 1e-4' if same else 'NOT the same'}"
    )
    return 0 if same else 1


def forget(folder: Path) -> None:
    """Removes what clipkit has kept."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for index in (folder / "shards").glob("*.clipkit-index.npz"):
        index.unlink()


def ours(folder: Path, model: Path) -> dict[str, float]:
    out = folder / "out"
    command = [sys.executable, "-m", "clipkit", "eval", model]
    output_of([*command, "--suite", folder / "suite.yaml", "--out", out], folder)
    tasks = json.loads((out / "results.json").read_text(encoding="utf-8"))["tasks"]
    return {
        f"{task} {name}": tasks[task]["metrics"][name]
        for task, name, _ in FIGURES
        if name in tasks[task]["metrics"]
    }


def theirs(folder: Path, model: Path, python: str, options: dict[str, Any]) -> dict[str, float]:
    found: dict[str, dict[str, float]] = {}
    for task, kind in (("classes", "classification"), ("captions", "retrieval")):
        out = folder / f"{task}.json"
        command: list[Any] = [
            *(python, "-m", "clip_benchmark.cli", "eval", "--dataset", "wds/emoji"),
            *("--dataset_root", folder / task, "--split", "test", "--task", f"zeroshot_{kind}"),
            *("--model", f"local-dir:{model}", "--pretrained", "none", "--output", out),
            *("--recall_k", "1", "5", "10", "--quiet"),
            *("--num_workers", options["workers"], "--batch_size", options["batch"]),
            *([] if options["amp"] else ["--no_amp"]),
        ]
        output_of(command, folder)
        found[task] = json.loads(out.read_text(encoding="utf-8"))["metrics"]
    return {
        f"{task} {name}": found[task][their_name]
        for task, name, their_name in FIGURES
        if np.isfinite(found[task][their_name])
    }


def output_of(command: list[Any], folder: Path | None = None) -> str:
    """What a command prints; it ends this one where it fails."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    if folder is not None:
        environment["XDG_CACHE_HOME"] = str(folder / "cache")
    result = subprocess.run(
        [str(each) for each in command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{result.stderr[-3000:]}")
    return result.stdout


def make_images(folder: Path, count: int) -> int:
    """The shards, the folders that CLIP_benchmark wants, and the suite; the number of classes."""
    emoji = read_emoji()
    common = [name for name, _ in Counter(each["base"] for each in emoji).most_common(CLASSES)]
    emoji = [each for each in emoji if each["base"] in set(common)]
    emoji = emoji[: max(1, min(len(emoji), count))]
    classes = sorted({each["base"] for each in emoji})
    if count > len(emoji) * len(CAPTIONS):
        sys.exit(f"--images: at most {len(emoji) * len(CAPTIONS):,}")
    rng = np.random.default_rng(0)
    shards = folder / "shards"
    shards.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(shards / f"{shard}.tar", "w") as tar:
            for i in range(count * shard // SHARDS, count * (shard + 1) // SHARDS):
                each = emoji[i % len(emoji)]
                caption = CAPTIONS[i // len(emoji)].format(each["name"])
                members = {
                    "jpg": photograph(each["image"], rng),
                    "cls": str(classes.index(each["base"])).encode(),
                    "txt": caption.encode(),
                }
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{i:06d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    for task, kind in (("classes", "classification"), ("captions", "retrieval")):
        split = folder / task / "test"
        split.mkdir(parents=True)
        (split / "nshards.txt").write_text(str(SHARDS))
        (folder / task / "dataset_type.txt").write_text(kind)
        (folder / task / "classnames.txt").write_text("\n".join(classes), encoding="utf-8")
        (folder / task / "zeroshot_classification_templates.txt").write_text(
            "\n".join(each.replace("{}", "{c}") for each in TEMPLATES)
        )
        for tar in shards.glob("*.tar"):
            (split / tar.name).symlink_to(tar)
    data = str(shards / "*.tar")
    classification = {"kind": "zero_shot", "data": data, "label": "cls"}
    classification["class_names"] = str(folder / "classes" / "classnames.txt")
    tasks = {
        "classes": {**classification, "templates": list(TEMPLATES)},
        "captions": {"kind": "retrieval", "data": data},
    }
    (folder / "suite.yaml").write_text(yaml.safe_dump({"tasks": tasks}), encoding="utf-8")
    return len(classes)


def read_emoji() -> list[dict[str, Any]]:
    """Name, base name and picture of each emoji of the training shards; each name once."""
    from clipkit.config.schema import SourceConfig
    from clipkit.data import open_source

    reader = open_source(SourceConfig(path=str(ROOT / "data/emoji/train-*.tar")), progress=False)
    found: dict[str, dict[str, Any]] = {}
    for row in range(len(reader)):
        pair = reader[row]
        name = str(pair.caption)
        found.setdefault(name, {"name": name, "base": pair.metadata["base"], "image": pair.image})
    return list(found.values())


def photograph(picture: bytes, rng: np.random.Generator) -> bytes:
    """A JPEG of 500 × 375 with an emoji in its middle, turned, scaled and moved a little."""
    emoji = Image.open(io.BytesIO(picture)).convert("RGBA")
    size = int(rng.uniform(300, 375))
    emoji = emoji.resize((size, size), Image.Resampling.BICUBIC)
    emoji = emoji.rotate(rng.uniform(-8, 8), Image.Resampling.BICUBIC)
    grey = rng.integers(215, 256) + rng.normal(0, 6, (375, 500, 3))
    canvas = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    left, top = (500 - size) // 2 + rng.integers(-12, 13), (375 - size) // 2
    canvas.paste(emoji, (int(left), top), emoji)
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())

"""Images a second from WebDataset tars to batches, beside open_clip, webdataset and the floor.

    python -m venv /tmp/open_clip
    /tmp/open_clip/bin/pip install 'open_clip_torch[training]' 'webdataset<=0.2.86'
    python scripts/bench_data.py PHOTOS --open-clip-python /tmp/open_clip/bin/python

The JPEGs of the validation and test shards found in the folder are packed twice, repeated to
about 3,000: as they are, and enlarged to about 2000 × 1500. Every way of loading then runs in
a process of its own, one after the other in each round, with the same number of workers,
batches of 256 (two of them warm it up) and pixels of 224 × 224; the table has the medians of
the rounds. The trainer's side does nothing but take the batches.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from machine import machine

BATCH, SIZE, SHARDS = 256, 224, 8
SETS = {"400 px": 3000, "2000 px": 3000}  # samples of each
WAYS = {
    "clipkit": "clipkit, simplejpeg",
    "clipkit-pillow": "clipkit, Pillow alone",
    "open_clip": "open_clip's get_wds_dataset",
    "webdataset": "webdataset, PIL + torchvision to uint8",
    "floor": "libjpeg-turbo decoding in full alone",
}
PEERS = ("open_clip", "webdataset")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, nargs="?", default="../shared/data/clothing")
    parser.add_argument("--open-clip-python", help="an interpreter that has open_clip_train")
    parser.add_argument("--cache", type=Path, help="keeps the tars here for the next time")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--samples", type=int, help="of each set; 3,000 otherwise")
    parser.add_argument("--batches", type=int, help="to time; about what the set has, otherwise")
    parser.add_argument("--only", choices=SETS, help="one of the sets")
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        way, folder = args.one
        print(f"{RUN[way](Path(folder), args.workers, args.batches):.1f}")
        return
    print(machine("torch", "torchvision", "pillow", "simplejpeg"))
    with tempfile.TemporaryDirectory() as temporary:
        for name in [args.only] if args.only else SETS:
            samples = args.samples or SETS[name]
            folder = (args.cache or Path(temporary)) / f"{name.split()[0]}-{samples}"
            if not (folder / "done").exists():
                pack(args.source, folder, samples, enlarge=name == "2000 px")
            measure(name, samples, folder, args)


def measure(name: str, samples: int, folder: Path, args: argparse.Namespace) -> None:
    # A multiple of the workers: open_clip's make a whole batch each, and finish together.
    batches = args.batches or max(1, (samples // BATCH - 2) // args.workers) * args.workers
    ways = [way for way in WAYS if way not in PEERS or args.open_clip_python]
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way in ways:
            python = args.open_clip_python if way in PEERS else sys.executable
            command = [python, __file__, "--one", way, str(folder), "--batches", str(batches)]
            command += ["--workers", str(args.workers)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{WAYS[way]}: {done.stderr[-2000:]}")
            rates[way].append(float(done.stdout.split()[-1]))
    print(f"\n{name}: {samples} images, {args.workers} workers, {batches} batches of {BATCH}\n")
    print("| | images/s, median | lowest – highest | against open_clip |\n|---|---|---|---|")
    medians = {way: statistics.median(values) for way, values in rates.items()}
    base = medians.get("open_clip", float("nan"))
    for way, values in rates.items():
        spread = f"{min(values):.0f} – {max(values):.0f}"
        print(f"| {WAYS[way]} | {medians[way]:.0f} | {spread} | {medians[way] / base:.2f} |")
    print("\nWhere clipkit's time goes, one process, ms an image:\n")
    print("| | read | decode | transform | collate | transport |\n|---|---|---|---|---|---|")
    for way in ("clipkit", "clipkit-pillow"):
        parts = " | ".join(f"{part:.2f}" for part in time_parts(folder, way))
        print(f"| {WAYS[way]} | {parts} |")
    firsts = sorted(time_first_batch(folder, args.workers) for _ in range(3))
    print(f"\nFrom opening the source, its index kept, to the first batch: {firsts[1]:.1f} s")
    if "open_clip" in medians:
        fast, pillow = (medians[way] / base for way in ("clipkit", "clipkit-pillow"))
        print(f"\n{name}: clipkit is {fast:.2f} × open_clip, {pillow:.2f} × with Pillow alone")
    sys.stdout.flush()


def pack(source: Path, folder: Path, samples: int, *, enlarge: bool) -> None:
    """The photographs, repeated, as shards of KEY.jpg and KEY.txt."""
    from PIL import Image

    photos: list[tuple[bytes, bytes]] = []
    for shard in [*sorted(source.glob("validation-*.tar")), *sorted(source.glob("test-*.tar"))]:
        with tarfile.open(shard) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore
        names = [name.removesuffix(".jpg") for name in files if name.endswith(".jpg")]
        photos += [(files[f"{name}.jpg"], files[f"{name}.txt"]) for name in names]
    if not photos:
        raise SystemExit(f"{source}: no validation-*.tar or test-*.tar with .jpg and .txt")
    if enlarge:
        for i, (data, caption) in enumerate(photos[:samples]):
            image = Image.open(io.BytesIO(data)).convert("RGB")
            size = (2000, 1500) if image.width >= image.height else (1500, 2000)
            buffer = io.BytesIO()
            image.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            photos[i] = buffer.getvalue(), caption
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i in range(samples * number // SHARDS, samples * (number + 1) // SHARDS):
                for extension, data in zip(("jpg", "txt"), photos[i % len(photos)], strict=True):
                    info = tarfile.TarInfo(f"{i:06d}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    (folder / "done").touch()


def rate(batches: Iterator[object], count: int) -> float:
    """Images a second over ``count`` batches, after two."""
    next(batches), next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - begin)


def clipkit_parts(folder: Path, pillow: bool):  # type: ignore[no-untyped-def]
    from clipkit.config.schema import DataConfig, PreprocessConfig, SourceConfig
    from clipkit.data import jpeg, open_source
    from clipkit.data.tokenize import train_tokenizer

    if pillow:
        jpeg.simplejpeg = None  # type: ignore[assignment]  # and so in the workers, forked later
    elif jpeg.simplejpeg is None:
        raise SystemExit("simplejpeg is not installed; pip install 'clipkit-pretraining[fast]'")
    reader = open_source(SourceConfig(path=str(folder / "*.tar")))
    captions = [reader[i].caption or "" for i in range(200)]
    return (
        reader,
        DataConfig(),
        PreprocessConfig(),
        train_tokenizer(captions, vocab_size=1000, context_length=77),
    )


def run_clipkit(folder: Path, workers: int, count: int, pillow: bool = False) -> float:
    from clipkit.data import build_train_loader

    reader, config, preprocess, tokenizer = clipkit_parts(folder, pillow)
    config.workers = workers
    options = {"seed": 0, "batch_size": BATCH, "start_step": 0, "steps": count + 8}
    # Some steps more than are timed, so that no worker runs out of work before the end.
    loader = build_train_loader(reader, config, preprocess, tokenizer, **options)
    measured = rate(iter(loader), count)
    loader.close()
    return measured


def run_open_clip(folder: Path, workers: int, count: int) -> float:
    from types import SimpleNamespace

    import open_clip
    from open_clip_train.data import get_wds_dataset

    args = SimpleNamespace(
        train_data=str(folder / f"{{00000..{SHARDS - 1:05d}}}.tar"),
        train_num_samples=(count + 2 + workers) * BATCH,
        train_data_upsampling_factors=None,
        dataset_resampled=True,  # so that a worker cannot run out before the others
        seed=0,
        workers=workers,
        batch_size=BATCH,
        world_size=1,
    )
    transform = open_clip.image_transform((SIZE, SIZE), is_train=True)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    return rate(iter(get_wds_dataset(args, transform, True, tokenizer=tokenizer).dataloader), count)


def run_webdataset(folder: Path, workers: int, count: int) -> float:
    """Its own loader with the transform a user would write: nothing normalised, no tokens."""
    import webdataset as wds
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.9, 1.0), interpolation=3),
            transforms.PILToTensor(),
        ]
    )
    dataset = (
        wds.WebDataset(str(folder / f"{{00000..{SHARDS - 1:05d}}}.tar"), resampled=True)
        .shuffle(1000)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(transform, lambda text: text)
        .batched(BATCH)
    )
    return rate(iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers)), count)


def run_floor(folder: Path, workers: int, count: int) -> float:
    """Each of as many processes decodes its share of the files, all in memory."""
    import multiprocessing

    import simplejpeg

    images = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            images += [tar.extractfile(m).read() for m in tar if m.name.endswith("jpg")]  # type: ignore
    images = images[: count * BATCH]
    gate = multiprocessing.Barrier(workers + 1)

    def work(number: int) -> None:
        gate.wait()
        for data in images[number::workers]:
            simplejpeg.decode_jpeg(data)
        gate.wait()

    context = multiprocessing.get_context("fork")
    for number in range(workers):
        context.Process(target=work, args=(number,), daemon=True).start()
    gate.wait()
    begin = time.perf_counter()
    gate.wait()
    return len(images) / (time.perf_counter() - begin)


def time_parts(folder: Path, way: str, count: int = BATCH) -> list[float]:
    """Of one batch, in this process: read, decode, transform, collate and transport."""
    import numpy as np
    import torch

    from clipkit.data import jpeg, train_transform
    from clipkit.data.decode import decode_pixels
    from clipkit.data.pieces import Piece, PieceMaker, join
    from clipkit.data.tokenize import tokenize
    from clipkit.data.transforms import smallest_decoded_edge

    installed = jpeg.simplejpeg
    torch.set_num_threads(1)
    reader, config, preprocess, tokenizer = clipkit_parts(folder, way == "clipkit-pillow")
    at_least = smallest_decoded_edge(preprocess, config.augment)
    cap = config.max_image_pixels
    parts = []
    for _ in range(3):
        clock = [time.perf_counter()]
        pairs = [reader[i] for i in range(count)]
        clock.append(time.perf_counter())
        decode = transform = 0.0
        pixels = torch.zeros((count, 3, SIZE, SIZE), dtype=torch.uint8)
        for i, pair in enumerate(pairs):
            begin = time.perf_counter()
            image = decode_pixels(pair.image or b"", max_pixels=cap, at_least=at_least)
            middle = time.perf_counter()
            pixels[i] = train_transform(image, preprocess, config.augment, 0, i)
            decode, transform = decode + middle - begin, transform + time.perf_counter() - middle
        clock.append(time.perf_counter())
        ids, cut = tokenize(tokenizer, [p.caption or "" for p in pairs], context_length=77)
        rows = [(at, at + 64) for at in range(0, count, 64)]
        pieces = [
            Piece(pixels[a:b].clone(), np.asarray(ids)[a:b], [True] * 64, [""] * 64, [], cut)
            for a, b in rows
        ]
        maker = PieceMaker(reader, preprocess, tokenizer, cap)
        begin_collate = time.perf_counter()
        tokens = begin_collate - clock[-1]
        join(pieces, 0, maker)
        collate = time.perf_counter() - begin_collate + tokens
        begin_transport = time.perf_counter()
        for piece in pieces:
            assert piece.pixel_values is not None
            piece.pixel_values.share_memory_()
        transport = time.perf_counter() - begin_transport
        parts.append([clock[1] - clock[0], decode, transform, collate, transport])
    jpeg.simplejpeg = installed
    return [statistics.median(values) * 1000 / count for values in zip(*parts, strict=True)]


def time_first_batch(folder: Path, workers: int) -> float:
    """Seconds, without the start of the process and its imports."""
    from clipkit.data import build_train_loader

    begin = time.perf_counter()
    reader, config, preprocess, tokenizer = clipkit_parts(folder, pillow=False)
    config.workers = workers
    loader = build_train_loader(
        reader, config, preprocess, tokenizer, seed=0, batch_size=BATCH, start_step=0, steps=8
    )
    next(iter(loader))
    taken = time.perf_counter() - begin
    loader.close()
    return taken


RUN = {
    "clipkit": run_clipkit,
    "clipkit-pillow": lambda folder, workers, count: run_clipkit(folder, workers, count, True),
    "open_clip": run_open_clip,
    "webdataset": run_webdataset,
    "floor": run_floor,
}


if __name__ == "__main__":
    main()

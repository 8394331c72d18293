"""Images and captions embedded a second, beside sentence-transformers, transformers and open_clip.

    python -m venv /tmp/open_clip && /tmp/open_clip/bin/pip install open_clip_torch
    python scripts/bench_embed.py SHARDS --open-clip-python /tmp/open_clip/bin/python

SHARDS are tars of photographs and captions. The same files are embedded by a ViT-B/32 with random
weights (the same for all but open_clip, whose own are of the same sizes), from encoded bytes to
NumPy; loading models is not counted. All take turns, and medians are compared.

Each peer runs at its defaults: float32, batches of 32, captions padded to the longest of a batch
(open_clip: to 77, the only length it takes). Its best: weights in bf16, batches of 64, captions
sorted by length (sentence-transformers does that by itself). clipkit runs what ``clipkit embed``
does, without writing: a loader process that decodes images, bf16, batches of 256, captions packed;
the same in float32, so that the ratio of the two is the share of bf16, and that of clipkit in
float32 to a peer's default is the share of packing and overlap; and with ``--precision int8``.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

PEERS = ("sentence-transformers", "transformers", "open_clip")
WAYS = {
    "clipkit": {"precision": "auto"},
    "clipkit, float32": {"precision": "fp32"},
    "clipkit, int8": {"precision": "int8"},
    **{
        f"{peer}, {name}": {"precision": precision, "batch": batch}
        for peer in PEERS
        for name, precision, batch in (("default", "fp32", 32), ("best", "bf16", 64))
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", help="tars of photographs with captions: a path or glob")
    parser.add_argument("--open-clip-python", help="an interpreter that has open_clip")
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--captions", type=int, default=2048)
    parser.add_argument("--only", choices=("images", "captions"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(json.loads(args.worker))
    with tempfile.TemporaryDirectory() as folder:
        lengths = prepare(args, Path(folder))
        print(
            f"torch {torch.__version__}, {args.threads} threads, {args.images} images, "
            f"{args.captions} captions of {np.mean(lengths):.1f} tokens, medians of {args.rounds}"
        )
        for what in (args.only,) if args.only else ("images", "captions"):
            bench(what, Path(folder), args)


def prepare(args: argparse.Namespace, folder: Path) -> list[int]:
    """The model, and the images and captions that are embedded; tokens of each caption."""
    from clipkit.config.schema import ModelConfig, PreprocessConfig, SourceConfig
    from clipkit.data import open_source
    from clipkit.data.tokenize import train_tokenizer
    from clipkit.models import build_model, save_model

    source = open_source(SourceConfig(path=args.shards))
    pairs = [source[row % len(source)] for row in range(max(args.images, args.captions))]
    captions = [" ".join((pair.caption or "").split()) for pair in pairs]
    preprocess = PreprocessConfig()
    tokenizer = train_tokenizer(list(source.captions()), vocab_size=8192, context_length=77)
    model = build_model(ModelConfig(), preprocess, tokenizer, init_temperature=0.07, seed=0)
    save_model(model, folder / "model", preprocess, tokenizer)
    with tarfile.open(folder / "images.tar", "w") as tar:
        for i, pair in enumerate(pairs[: args.images]):
            info = tarfile.TarInfo(f"{i:06d}.jpg")
            info.size = len(pair.image or b"")
            tar.addfile(info, io.BytesIO(pair.image or b""))
    (folder / "captions.txt").write_text("\n".join(captions[: args.captions]), encoding="utf-8")
    return [len(ids) for ids in tokenizer(captions[: args.captions])["input_ids"]]


def bench(what: str, folder: Path, args: argparse.Namespace) -> None:
    from clipkit.models.products import has_int8_products  # open_clip's interpreter has no clipkit

    workers = {}
    for way, options in WAYS.items():
        who = way.split(",")[0]
        if way == "clipkit, int8" and not has_int8_products():
            continue
        python = args.open_clip_python if who == "open_clip" else sys.executable
        if python:
            question = {"who": who, "what": what, "folder": str(folder), **options}
            workers[way] = start(python, {**question, "threads": args.threads})
    count = args.images if what == "images" else args.captions
    times: dict[str, list[float]] = {way: [] for way in workers}
    for turn in range(args.rounds + 1):
        for way, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("\n")
            worker.stdin.flush()
            seconds = float(worker.stdout.readline())
            if turn:  # the first is to warm up
                times[way].append(seconds)
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    rates = {way: count / statistics.median(values) for way, values in times.items()}
    print(f"\n| {what} | a second | clipkit is faster by |")
    print("|---|---|---|")
    for way, rate in rates.items():
        print(f"| {way} | {rate:.1f} | {rates['clipkit'] / rate:.2f} |", flush=True)
    for peer in PEERS:
        of_peer = {way: rate for way, rate in rates.items() if way.startswith(peer + ",")}
        if of_peer:
            said = []
            for name, way in (("", "clipkit"), ("in int8 ", "clipkit, int8")):
                if way not in rates:
                    continue
                default = rates[way] / of_peer[f"{peer}, default"]
                best = rates[way] / max(of_peer.values())
                said.append(f"{name}{default:.2f} × its default, {best:.2f} × its best")
            print(f"\n{what}, {peer}: {'; '.join(said)}")


def start(python: str, question: dict[str, Any]) -> subprocess.Popen[str]:
    command = [python, __file__, "-", "--worker", json.dumps(question)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def work(question: dict[str, Any]) -> None:
    """Answers each line of standard input with the seconds of one pass."""
    torch.set_num_threads(question["threads"])
    make = {
        "clipkit": clipkit_way,
        "sentence-transformers": sentence_transformers_way,
        "transformers": transformers_way,
        "open_clip": open_clip_way,
    }[question["who"]]
    run = make(question, Path(question["folder"]))
    for _ in sys.stdin:
        begin = time.perf_counter()
        run()
        print(time.perf_counter() - begin, flush=True)


def clipkit_way(question: dict[str, Any], folder: Path) -> Callable[[], object]:
    import clipkit
    from clipkit.config.schema import SourceConfig
    from clipkit.data import build_eval_loader, open_source
    from clipkit.inputs import MAX_IMAGE_PIXELS
    from clipkit.retrieval.precision import DTYPES, choose_precision

    encoder = clipkit.load(folder / "model", device="cpu")
    images = question["what"] == "images"
    path = str(folder / ("images.tar" if images else "captions.txt"))
    asked = {"caption": "none"} if images else {"image": "none"}
    reader = open_source(SourceConfig(path=path, **asked), progress=False)
    wanted = {"images": images, "texts": not images, "max_image_pixels": MAX_IMAGE_PIXELS}
    precision, _ = choose_precision(encoder, reader, question["precision"], **wanted)

    def run() -> np.ndarray:
        loader = build_eval_loader(
            reader, encoder.preprocess, encoder.tokenizer,
            batch_size=256, workers=int(images), fields=(), **wanted,
        )  # fmt: skip
        with encoder.computing(DTYPES[precision]):
            parts = [
                encoded.image_embeds if images else encoded.text_embeds
                for encoded in encoder.encode_batches(loader, images=images, texts=not images)
            ]
        return np.concatenate(parts)

    return run


def inputs(question: dict[str, Any], folder: Path) -> list[Any]:
    """Bytes of images, or captions; captions by length where the best is asked for."""
    if question["what"] == "captions":
        captions = (folder / "captions.txt").read_text(encoding="utf-8").split("\n")
        return sorted(captions, key=len) if question["batch"] > 32 else captions
    with tarfile.open(folder / "images.tar") as tar:
        return [tar.extractfile(member).read() for member in tar]  # type: ignore[union-attr]


def opened(data: list[bytes]) -> list[Any]:
    from PIL import Image

    return [Image.open(io.BytesIO(each)).convert("RGB") for each in data]


def sentence_transformers_way(question: dict[str, Any], folder: Path) -> Callable[[], object]:
    from sentence_transformers import SentenceTransformer

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[question["precision"]]
    model = SentenceTransformer(
        str(folder / "model"), device="cpu", model_kwargs={"torch_dtype": dtype}
    )
    data = inputs(question, folder)

    def run() -> np.ndarray:
        items = opened(data) if question["what"] == "images" else data
        return model.encode(
            items, batch_size=question["batch"], normalize_embeddings=True, show_progress_bar=False
        )

    return run


def transformers_way(question: dict[str, Any], folder: Path) -> Callable[[], object]:
    from transformers import CLIPModel, CLIPProcessor

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[question["precision"]]
    model = CLIPModel.from_pretrained(folder / "model", dtype=dtype).eval()
    processor = CLIPProcessor.from_pretrained(folder / "model")
    data, size = inputs(question, folder), question["batch"]

    def embed(batch: list[Any]) -> np.ndarray:
        if question["what"] == "images":
            made = processor(images=opened(batch), return_tensors="pt")
            features = model.get_image_features(pixel_values=made["pixel_values"].to(dtype))
        else:
            made = processor(text=batch, return_tensors="pt", padding=True, truncation=True)
            features = model.get_text_features(**made)
        features = getattr(features, "pooler_output", features)
        return torch.nn.functional.normalize(features.float(), dim=-1).numpy()

    @torch.inference_mode()
    def run() -> np.ndarray:
        return np.concatenate([embed(data[at : at + size]) for at in range(0, len(data), size)])

    return run


def open_clip_way(question: dict[str, Any], folder: Path) -> Callable[[], object]:
    import open_clip

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[question["precision"]]
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    model = model.eval().to(dtype)
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    data, size = inputs(question, folder), question["batch"]

    def embed(batch: list[Any]) -> np.ndarray:
        if question["what"] == "images":
            pixels = torch.stack([preprocess(image) for image in opened(batch)])
            return model.encode_image(pixels.to(dtype), normalize=True).float().numpy()
        return model.encode_text(tokenize(batch), normalize=True).float().numpy()

    @torch.inference_mode()
    def run() -> np.ndarray:
        return np.concatenate([embed(data[at : at + size]) for at in range(0, len(data), size)])

    return run


if __name__ == "__main__":
    main()

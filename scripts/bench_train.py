"""Time of a training step beside open_clip's: forward, loss, backward, update.

    python -m venv /tmp/open_clip && /tmp/open_clip/bin/pip install open_clip_torch
    python scripts/bench_train.py --open-clip-python /tmp/open_clip/bin/python

The same CLIP, the same batch, the same loss; the two take turns, and medians are compared.
open_clip runs as its trainer does, ``--precision amp_bf16`` (its default recipe for bf16) and
``pure_bf16`` (its fastest: weights and moments in bf16 too), on texts padded to the 77 tokens of
its context, the only length that its CLIP takes. clipkit runs ``train.precision=bf16``: float32
weights and moments, captions packed, gradients clipped. Captions have 6 to 77 tokens, start and
end included, about 15 on average, a log-normal distribution as that of alt texts of ten words.

    python scripts/bench_train.py --device cuda --open-clip-python python

On a GPU it is ViT-B/16 and L/14 with 1,024 pairs; both sides also compiled, clipkit also sharded
(FSDP2, of one rank), and of L/14 activations are computed twice where they do not fit. A turn is
the mean of five steps; peak memory is what tensors took.

Utilisation counts the FLOPs of the patches and tokens that are really there (forward and twice
as many backward), against a matrix product of 2048 cubed in bf16, measured in turn; on a GPU
against its data sheet, and the rate of a product of 8192 cubed is told.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

# vision: width, layers, patch, pixels; text: width, layers; embedding.
SIZES = {
    "small": {"vision": (192, 6, 16, 64), "text": (192, 6), "embed": 192, "batch": 256},
    "vit-b-32": {"vision": (768, 12, 32, 224), "text": (512, 12), "embed": 512, "batch": 64},
}
GPU_SIZES = {
    "vit-b-16": {"vision": (768, 12, 16, 224), "text": (512, 12), "embed": 512, "batch": 1024},
    "vit-l-14": {"vision": (1024, 24, 14, 224), "text": (768, 12), "embed": 768, "batch": 1024},
}
SIZES |= GPU_SIZES
CONTEXT, VOCABULARY = 77, 49408
WAYS = {
    "clipkit": ("clipkit", {}),
    "clipkit, half the patches": ("clipkit", {"patch_dropout": 0.5}),
    "open_clip amp_bf16": ("open_clip", {"precision": "amp_bf16"}),
    "open_clip pure_bf16": ("open_clip", {"precision": "pure_bf16"}),
    "open_clip amp_bf16, half the patches": (
        "open_clip",
        {"precision": "amp_bf16", "patch_dropout": 0.5},
    ),
}

HALF = {"patch_dropout": 0.5}
GPU_WAYS = {
    "vit-b-16": {
        "clipkit": ("clipkit", {}),
        "clipkit, compiled": ("clipkit", {"compile": True}),
        "clipkit, compiled, FSDP2": ("clipkit", {"compile": True, "fsdp": True}),
        "clipkit, compiled, half the patches": ("clipkit", {"compile": True, **HALF}),
        "open_clip amp_bf16": ("open_clip", {"precision": "amp_bf16"}),
        "open_clip amp_bf16, compiled": ("open_clip", {"precision": "amp_bf16", "compile": True}),
        "open_clip amp_bf16, half the patches": ("open_clip", {"precision": "amp_bf16", **HALF}),
    },
    "vit-l-14": {
        "clipkit, compiled": ("clipkit", {"compile": True, "recompute": 0.6}),
        "open_clip amp_bf16": ("open_clip", {"precision": "amp_bf16", "recompute": True}),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--open-clip-python", help="an interpreter that has open_clip")
    parser.add_argument("--sizes", nargs="+", choices=SIZES)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="clipkit with train.compile too")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(json.loads(args.worker), args.threads)
    ways = dict(WAYS)
    if args.compile:
        ways["clipkit, compiled"] = ("clipkit", {"compile": True})
    where = f"{args.threads} threads"
    if args.device == "cuda":
        where = torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {where}, medians of {args.rounds} turns")
    every = (
        GPU_SIZES if args.device == "cuda" else [size for size in SIZES if size not in GPU_SIZES]
    )
    for size in args.sizes or every:
        bench(size, GPU_WAYS[size] if args.device == "cuda" else ways, args)


def bench(size: str, ways: dict[str, Any], args: argparse.Namespace) -> None:
    pythons = {"clipkit": sys.executable, "open_clip": args.open_clip_python}
    workers = {
        way: start(
            pythons[who], {"who": who, "size": size, "device": args.device, **options}, args.threads
        )
        for way, (who, options) in ways.items()
        if pythons[who]
    }
    times: dict[str, list[float]] = {way: [] for way in workers}
    ceilings = []
    facts: dict[str, dict[str, Any]] = {}
    for turn in range(args.rounds + 1):
        for way, worker in workers.items():
            answer = ask(worker)
            if turn:  # the first is to warm up
                times[way].append(answer["s"])
            facts[way] = answer
        ceilings.append(ceiling(args.threads, args.device))
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    batch, top = SIZES[size]["batch"], statistics.median(ceilings)
    tokens = next(iter(facts.values()))["tokens"] / batch
    print(
        f"\n{size}, batch {batch}, captions of {tokens:.1f} tokens; "
        f"ceiling {top / 1e12:.2f} TFLOP/s\n"
    )
    if args.device == "cuda":
        from clipkit.training.ceiling import find_ceiling

        known = find_ceiling(torch.device("cuda"), "bf16")
        top = known.flops_per_second
        print(f"utilisation of {top / 1e12:.0f} TFLOP/s, {known.source}\n")
    print("| | s a step | pairs/s | utilisation | loss | GiB |")
    print("|---|---|---|---|---|---|")
    seconds = {way: statistics.median(values) for way, values in times.items()}
    for way, s in seconds.items():
        share = facts[way]["flops"] / s / top
        loss = facts[way]["loss"]
        row = f"| {way} | {s:.3f} | {batch / s:.1f} | {share:.0%} | {loss:.3f} |"
        print(f"{row} {facts[way]['gib']:.1f} |", flush=True)
    base = "open_clip amp_bf16"
    if base in seconds:
        print()
        for way in seconds:
            if way.startswith("clipkit"):
                ratio = seconds[base] / seconds[way]
                print(f"{size}, {way}: {ratio:.2f} × as fast as {base}")


def start(python: str, question: dict[str, Any], threads: int) -> subprocess.Popen[str]:
    command = [python, __file__, "--worker", json.dumps(question), "--threads", str(threads)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer


def ceiling(threads: int, device: str) -> float:
    """FLOP/s of a matrix product in bf16."""
    torch.set_num_threads(threads)
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).bfloat16() for _ in range(2))
    rates = []
    for _ in range(4):
        wait(device)
        begin = time.perf_counter()
        a @ b
        wait(device)
        rates.append(2 * n**3 / (time.perf_counter() - begin))
    return max(rates)


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def work(question: dict[str, Any], threads: int) -> None:
    """Answers each line of standard input with the seconds of a step."""
    torch.set_num_threads(threads)
    device = question["device"]
    torch.manual_seed(0)
    step, lengths = (clipkit_step if question["who"] == "clipkit" else open_clip_step)(question)
    flops = model_flops(question["size"], lengths, question.get("patch_dropout", 0.0))
    for _ in sys.stdin:
        steps = 1
        if device == "cuda":  # others take turns with the memory
            steps = 5
            step()
            wait(device)
        begin = time.perf_counter()
        for _ in range(steps):
            loss = step()
        wait(device)
        seconds = (time.perf_counter() - begin) / steps
        gib = peak(device)
        answer = {"s": seconds, "loss": loss, "flops": flops, "tokens": sum(lengths), "gib": gib}
        if device == "cuda":
            torch.cuda.empty_cache()
        print(json.dumps(answer), flush=True)


def peak(device: str) -> float:
    """GiB that tensors took of a GPU; that the process took of the CPU's memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB


def make_batch(size: str) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """uint8 pixels (B, 3, H, W), ids (B, 77) padded with 0, and how many tokens each has."""
    count, pixels = SIZES[size]["batch"], SIZES[size]["vision"][3]
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        0, 256, (count, 3, pixels, pixels), dtype=torch.uint8, generator=generator
    )
    drawn = torch.randn(count, generator=generator).mul(0.45).add(2.54).exp()
    lengths = drawn.round().long().clamp(6, CONTEXT).tolist()
    ids = torch.zeros(count, CONTEXT, dtype=torch.long)
    for row, length in enumerate(lengths):
        words = torch.randint(1, VOCABULARY - 2, (length - 2,), generator=generator)
        ids[row, :length] = torch.cat(
            [torch.tensor([VOCABULARY - 2]), words, torch.tensor([VOCABULARY - 1])]
        )
    return images, ids, lengths


def model_flops(size: str, lengths: list[int], patch_dropout: float) -> float:
    """Of a step: 3 × the forward pass, of patches and tokens that are there."""
    width, layers, patch, pixels = SIZES[size]["vision"]
    text_width, text_layers = SIZES[size]["text"]
    embed, batch = SIZES[size]["embed"], len(lengths)
    patches = round((pixels // patch) ** 2 * (1 - patch_dropout))
    length = patches + 1
    vision = layers * (24 * length * width**2 + 4 * length**2 * width)
    vision += 2 * patches * 3 * patch**2 * width + 2 * width * embed
    text = sum(text_layers * (24 * n * text_width**2 + 4 * n**2 * text_width) for n in lengths)
    text += batch * 2 * text_width * embed
    return 3.0 * (batch * vision + text + 2 * batch**2 * embed)


def clipkit_step(question: dict[str, Any]) -> tuple[Any, list[int]]:
    from transformers import PreTrainedTokenizerFast

    from clipkit.config import Config
    from clipkit.config.schema import (
        LossConfig,
        ModelConfig,
        PreprocessConfig,
        TowerConfig,
        TrainConfig,
        VisionConfig,
    )
    from clipkit.training.build import build_accelerator, build_training_model
    from clipkit.training.distributed import clip_gradients, shard
    from clipkit.training.optim import build_optimizer
    from clipkit.training.step import TrainStep
    from clipkit.types import Batch

    class Tokenizer(PreTrainedTokenizerFast):  # of which only the ids matter
        def __init__(self) -> None:
            from tokenizers import Tokenizer as Fast
            from tokenizers.models import WordLevel

            names = {f"w{i}": i for i in range(VOCABULARY)}
            super().__init__(
                tokenizer_object=Fast(WordLevel(names, unk_token="w0")),
                bos_token=f"w{VOCABULARY - 2}",
                eos_token=f"w{VOCABULARY - 1}",
                pad_token="w0",
            )

    size = question["size"]
    width, layers, patch, pixels = SIZES[size]["vision"]
    text_width, text_layers = SIZES[size]["text"]
    config = Config(
        model=ModelConfig(
            embed_dim=SIZES[size]["embed"],
            vision=VisionConfig(
                width, layers, patch_size=patch, patch_dropout=question.get("patch_dropout", 0.0)
            ),
            text=TowerConfig(text_width, text_layers),
        ),
        loss=LossConfig(matmul="fp32" if question["device"] == "cpu" else "bf16"),
        train=TrainConfig(
            precision="bf16",
            compile=question.get("compile", False),
            activation_checkpointing=question.get("recompute", False),
            distributed="fsdp" if question.get("fsdp") else "ddp",
        ),
        preprocess=PreprocessConfig(image_size=pixels, context_length=CONTEXT),
    )
    if question.get("fsdp"):  # of one rank
        torch.distributed.init_process_group(
            "nccl", store=torch.distributed.HashStore(), rank=0, world_size=1
        )
    accelerator = build_accelerator(config)
    model = build_training_model(config, Tokenizer(), accelerator.device)
    if question.get("fsdp"):
        shard(model, accelerator.device)
    optimizer = build_optimizer(model.parameters_by_depth(), config.optim, config.train.precision)
    images, ids, lengths = make_batch(size)
    valid = torch.ones(len(ids), dtype=torch.bool)
    images = images.to(accelerator.device)  # as a run has it when a step begins
    batch = Batch(images, ids[:, : max(lengths)], valid, [""] * len(ids))
    train_step = TrainStep(model, model, accelerator, config)

    def step() -> float:
        result = train_step.gradients([batch], all_valid=True)
        clip_gradients(model, 1.0)
        optimizer.step()
        model.clamp_scale(100.0)
        optimizer.zero_grad(set_to_none=True)
        return float(result.loss)

    return step, lengths


def open_clip_step(question: dict[str, Any]) -> tuple[Any, list[int]]:
    import math

    import open_clip
    from open_clip.loss import ClipLoss

    size, pure = question["size"], question["precision"] == "pure_bf16"
    width, layers, patch, pixels = SIZES[size]["vision"]
    text_width, text_layers = SIZES[size]["text"]
    model = open_clip.CLIP(
        SIZES[size]["embed"],
        {
            "image_size": pixels,
            "layers": layers,
            "width": width,
            "patch_size": patch,
            "patch_dropout": question.get("patch_dropout", 0.0),
        },
        {
            "context_length": CONTEXT,
            "vocab_size": VOCABULARY,
            "width": text_width,
            "heads": text_width // 64,
            "layers": text_layers,
        },
        output_dict=True,
    )
    model = model.to(question["device"])
    if pure:
        model = model.to(torch.bfloat16)
    if question.get("recompute"):
        model.set_grad_checkpointing()
    model.train()
    named = list(model.named_parameters())

    def plain(name: str, p: torch.Tensor) -> bool:  # as in its trainer
        return p.ndim < 2 or "bn" in name or "ln" in name or "bias" in name or "logit" in name

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if plain(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not plain(n, p)], "weight_decay": 0.2},
        ],
        lr=5e-4,
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    called = torch.compile(model) if question.get("compile") else model  # as in its trainer
    loss_of = ClipLoss()
    raw, ids, lengths = make_batch(size)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    images = ((raw.float() / 255 - mean) / std).to(torch.bfloat16 if pure else torch.float32)
    images, ids = images.to(question["device"]), ids.to(question["device"])

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(question["device"], torch.bfloat16, enabled=not pure):
            output = called(images, ids)
            loss = loss_of(output["image_features"], output["text_features"], output["logit_scale"])
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        return float(loss.detach())

    return step, lengths


if __name__ == "__main__":
    main()

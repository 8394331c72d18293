"""How long a checkpoint holds the next step up, and how long it takes to be on the disk.

    python scripts/bench_save.py

A ViT-B/32 with a text tower of 6 × 512, about 110M parameters with AdamW's moments, is saved in
turns by the loop's own Saver, with and without ``train.save_in_background``; medians. The first
save in the background also takes the memory for its copy, and is told apart.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from clipkit.config.schema import (
    ModelConfig,
    OptimConfig,
    PreprocessConfig,
    TowerConfig,
    TrainConfig,
)
from clipkit.data.tokenize import train_tokenizer
from clipkit.models import build_model
from clipkit.training.optim import build_optimizer
from clipkit.training.saving import Saver


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    preprocess = PreprocessConfig()
    words = [f"picture number {i}" for i in range(2000)]
    tokenizer = train_tokenizer(words, vocab_size=600, context_length=preprocess.context_length)
    config = ModelConfig(text=TowerConfig(layers=6))
    model = build_model(config, preprocess, tokenizer, init_temperature=0.07, seed=0)
    optimizer = build_optimizer(model.parameters_by_depth(), OptimConfig())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    accelerator = Accelerator(cpu=True)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {millions:.0f}M parameters"
    )
    held: dict[bool, list[float]] = {False: [], True: []}
    whole: dict[bool, list[float]] = {False: [], True: []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        savers = {
            background: Saver(
                Path(folder), model, optimizer, None, accelerator, preprocess, tokenizer,
                TrainConfig(save_in_background=background, keep=1), data="", step=0,
            )
            for background in held
        }  # fmt: skip
        for step in range(1, args.rounds + 2):
            for background, saver in savers.items():
                begin = time.perf_counter()
                saver.save(2 * step + background, {})
                held[background].append(time.perf_counter() - begin)
                saver.wait()
                whole[background].append(time.perf_counter() - begin)
    print("\n| | the step waits, s | on the disk after, s |\n|---|---|---|")
    for background, name in ((False, "at once"), (True, "in the background")):
        waits, ends = (statistics.median(times[background][1:]) for times in (held, whole))
        print(f"| {name} | {waits:.2f} | {ends:.2f} |")
    print(f"| in the background, the first | {held[True][0]:.2f} | {whole[True][0]:.2f} |")
    ratio = statistics.median(held[False][1:]) / statistics.median(held[True][1:])
    print(f"\nA step waits {ratio:.1f} times as long for a checkpoint that is written at once.")


if __name__ == "__main__":
    main()

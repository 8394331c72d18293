"""One rank of the equivalence matrix: trains by each of the configs, one after the other."""

from __future__ import annotations

import json
import os
import sys

import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

import clipkit.training.distributed as distributed
import clipkit.training.loop as loop
from clipkit.config import load_config
from clipkit.models import DualEncoder


def main() -> None:
    sharded: list[bool] = []
    dtypes: set[str] = set()  # that a layer's weights have while it computes
    clip = distributed.clip_gradients

    def note(model: DualEncoder, max_norm: float | None) -> object:
        weights = [p for p in model.parameters() if p.ndim > 0]
        sharded.append(all(isinstance(p, DTensor) for p in weights))
        assert sharded[-1] == any(isinstance(p, DTensor) for p in weights)
        if len(sharded) == 1:
            layer = model.backbone.text_model.encoder.layers[0]
            layer.register_forward_pre_hook(
                lambda layer, *_: dtypes.add(str(layer.mlp.fc1.weight.dtype))
            )
        return clip(model, max_norm)

    loop.clip_gradients = note  # type: ignore[assignment]
    Accelerator.end_training = lambda self: None  # it would end the process group
    told = {}
    for path in sys.argv[2:]:
        sharded.clear()
        dtypes.clear()
        loop.train(load_config(path, []))
        told[path] = {"steps": len(sharded), "sharded": all(sharded), "dtypes": sorted(dtypes)}
    if int(os.environ.get("RANK", "0")) == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(told, file)
    if dist.is_initialized():
        dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

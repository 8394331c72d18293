from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from clipkit.config.schema import OptimConfig
from clipkit.training.optim import build_optimizer, learning_rate


def test_learning_rate_warms_up_linearly_and_ends_at_min_lr() -> None:
    config = OptimConfig(lr=1.0, min_lr=0.1, warmup_steps=4)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.55)  # half way down the cosine
    assert rates[104] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_a_run_shorter_than_its_warm_up_still_warms_up() -> None:
    config = OptimConfig(lr=1.0, warmup_steps=100)
    assert [learning_rate(s, 2, config) for s in range(2)] == [0.5, 1.0]


def test_norms_biases_and_scale_do_not_decay() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 3)
            self.linear = nn.Linear(3, 3)
            self.norm = nn.LayerNorm(3)
            self.logit_scale = nn.Parameter(torch.tensor(1.0))
            self.frozen = nn.Linear(3, 3).requires_grad_(False)

    model = Model()
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(weight_decay=0.2))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    named = {n: decay.get(id(p)) for n, p in model.named_parameters()}
    assert named == {
        "table.weight": 0.2,
        "linear.weight": 0.2,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "logit_scale": 0.0,
        "frozen.weight": None,
        "frozen.bias": None,
    }

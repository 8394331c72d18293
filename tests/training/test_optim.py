from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from clipkit.config.schema import OptimConfig
from clipkit.models.depth import PlacedParameter, TowerParts, place_parameters
from clipkit.training.muon import Muon, orthogonalise
from clipkit.training.optim import build_optimizer, set_learning_rate


def layer() -> nn.Module:
    return nn.ModuleDict({"linear": nn.Linear(3, 3), "norm": nn.LayerNorm(3)})


def tower(layers: int) -> nn.Module:
    encoder = nn.ModuleDict({"layers": nn.ModuleList(layer() for _ in range(layers))})
    parts = {"embeddings": nn.ModuleDict({"table": nn.Embedding(4, 3)}), "encoder": encoder}
    return nn.ModuleDict({**parts, "final_norm": nn.LayerNorm(3)})


class Model(nn.Module):
    """Two towers of other sizes than a ``DualEncoder``'s, and a scale."""

    def __init__(self) -> None:
        super().__init__()
        backbone = {
            "vision_model": tower(2),
            "text_model": tower(1),
            "visual_projection": nn.Linear(3, 3, bias=False),
            "text_projection": nn.Linear(3, 3, bias=False),
        }
        self.backbone = nn.ModuleDict(backbone)
        self.backbone.logit_scale = nn.Parameter(torch.tensor(1.0))

    def parameters_by_depth(self) -> Iterator[PlacedParameter]:
        one, other = self.backbone.vision_model, self.backbone.text_model
        heads = self.backbone.visual_projection, self.backbone.text_projection
        return place_parameters(
            self,
            [
                TowerParts(
                    "vision", [one.embeddings], one.encoder.layers, [one.final_norm, heads[0]]
                ),
                TowerParts(
                    "text", [other.embeddings], other.encoder.layers, [other.final_norm, heads[1]]
                ),
            ],
        )


def groups(model: Model, **options: Any) -> dict[str, dict[str, Any]]:
    """The group of each trainable parameter by its name."""
    optimizer = build_optimizer(model.parameters_by_depth(), OptimConfig(**options))
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {n: found[id(p)] for n, p in model.named_parameters() if id(p) in found}


def test_norms_biases_and_scale_do_not_decay() -> None:
    model = Model()
    model.backbone.text_model.requires_grad_(False)
    for name in ("adamw", "muon"):
        found = groups(model, name=name, weight_decay=0.2)
        decay = {name.split(".", 1)[1]: group["weight_decay"] for name, group in found.items()}
        layers = {
            f"vision_model.encoder.layers.{i}.{part}": value
            for i in (0, 1)
            for part, value in (
                ("linear.weight", 0.2),
                ("linear.bias", 0.0),
                ("norm.weight", 0.0),
                ("norm.bias", 0.0),
            )
        }
        assert decay == layers | {
            "vision_model.embeddings.table.weight": 0.2,
            "vision_model.final_norm.weight": 0.0,
            "vision_model.final_norm.bias": 0.0,
            "visual_projection.weight": 0.2,
            "text_projection.weight": 0.2,
            "logit_scale": 0.0,
        }


def test_layers_learn_slower_the_further_they_are_from_the_projection() -> None:
    found = groups(Model(), layer_decay=0.5, vision_lr_scale=0.1)
    scales = {name.split(".", 1)[1]: group["lr_scale"] for name, group in found.items()}
    assert scales["visual_projection.weight"] == pytest.approx(0.1)
    assert scales["vision_model.final_norm.weight"] == pytest.approx(0.1)
    assert scales["vision_model.encoder.layers.1.linear.weight"] == pytest.approx(0.05)
    assert scales["vision_model.encoder.layers.0.norm.bias"] == pytest.approx(0.025)
    assert scales["vision_model.embeddings.table.weight"] == pytest.approx(0.0125)
    assert scales["text_projection.weight"] == 1.0
    assert scales["text_model.encoder.layers.0.linear.bias"] == 0.5
    assert scales["text_model.embeddings.table.weight"] == 0.25
    assert scales["logit_scale"] == 1.0


def test_muon_takes_the_layers_matrices_at_their_own_rate() -> None:
    model = Model()
    optimizer = build_optimizer(
        model.parameters_by_depth(),
        OptimConfig(name="muon", lr=1e-3, muon_lr=2e-2, layer_decay=0.5),
    )
    set_learning_rate(optimizer, 5e-4)  # half way up the warm-up, say
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    named = {n.split(".", 1)[1]: found[id(p)] for n, p in model.named_parameters()}
    matrices = {n for n, group in named.items() if "betas" not in group}
    assert matrices == {
        "vision_model.encoder.layers.0.linear.weight",
        "vision_model.encoder.layers.1.linear.weight",
        "text_model.encoder.layers.0.linear.weight",
    }
    assert named["vision_model.encoder.layers.1.linear.weight"]["lr"] == pytest.approx(5e-3)
    assert named["vision_model.encoder.layers.1.linear.bias"]["lr"] == pytest.approx(2.5e-4)
    assert named["visual_projection.weight"]["lr"] == pytest.approx(5e-4)


def test_muon_steps_as_torch_does() -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in ((8, 24), (24, 8), (8, 8), (8, 24))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    options: dict[str, float] = {"lr": 0.01, "weight_decay": 0.1}
    both = [
        Muon([{"params": ours}], **options),
        torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options),
    ]
    start = [p.detach().clone() for p in ours]
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in both:
            optimizer.step()
    for a, b, before in zip(ours, theirs, start, strict=True):
        # bf16, in which both compute an update, has three digits.
        moved = float((b - before).detach().abs().max())
        assert moved > 0.01
        torch.testing.assert_close(a, b, rtol=0, atol=0.02 * moved)


def test_orthogonalise_brings_singular_values_close_to_one() -> None:
    torch.manual_seed(0)
    for shape in ((3, 16, 64), (2, 64, 16)):
        matrices = torch.randn(shape) * torch.logspace(-2, 2, shape[0]).view(-1, 1, 1)
        values = torch.linalg.svdvals(orthogonalise(matrices.bfloat16()).float())
        assert values.min() > 0.5
        assert values.max() < 1.4

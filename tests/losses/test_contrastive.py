from __future__ import annotations

import math
import multiprocessing as mp
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipkit.losses import contrastive_loss


def _pairs(count: int, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, dim, generator=generator)
    texts = images + 0.5 * torch.randn(count, dim, generator=generator)
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


def _numpy_loss(images: np.ndarray, texts: np.ndarray, scale: float) -> float:
    """The definition, in float64: no log-sum-exp trick, no library."""
    logits = scale * images.astype(np.float64) @ texts.astype(np.float64).T
    exp = np.exp(logits)
    image_to_text = -np.log(np.diag(exp) / exp.sum(axis=1)).mean()
    text_to_image = -np.log(np.diag(exp) / exp.sum(axis=0)).mean()
    return float((image_to_text + text_to_image) / 2)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_contrastive_loss_matches_numpy(scale: float) -> None:
    images, texts = _pairs(33)
    loss = contrastive_loss(images, texts, torch.tensor(scale))
    expected = _numpy_loss(images.numpy(), texts.numpy(), scale)
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_loss_of_indistinguishable_pairs_is_the_log_of_their_number() -> None:
    same = F.normalize(torch.ones(8, 4), dim=-1)
    assert float(contrastive_loss(same, same, torch.tensor(10.0))) == pytest.approx(math.log(8))


def test_gradient_of_logit_scale_matches_a_finite_difference() -> None:
    images, texts = _pairs(20)
    logit_scale = torch.tensor(2.5, requires_grad=True)
    contrastive_loss(images, texts, logit_scale.exp()).backward()
    step = 1e-4
    above, below = (
        _numpy_loss(images.numpy(), texts.numpy(), math.exp(2.5 + d)) for d in (step, -step)
    )
    assert logit_scale.grad is not None
    assert float(logit_scale.grad) == pytest.approx((above - below) / (2 * step), rel=1e-3)


def test_bf16_autocast_does_not_reach_the_logits() -> None:
    images, texts = _pairs(64)
    scale = torch.tensor(100.0)
    expected = contrastive_loss(images, texts, scale)
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive_loss(images, texts, scale)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)


def test_rows_that_are_not_valid_are_neither_positives_nor_negatives() -> None:
    images, texts = _pairs(12)
    valid = torch.ones(12, dtype=torch.bool)
    valid[[2, 7]] = False
    images = images.clone().requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(20.0), valid)
    alone = contrastive_loss(images[valid], texts[valid], torch.tensor(20.0))
    assert float(loss.detach()) == pytest.approx(float(alone), rel=1e-6)
    loss.backward()
    assert images.grad is not None
    assert torch.all(images.grad[~valid] == 0)
    assert torch.all(images.grad[valid].abs().sum(dim=1) > 0)


def test_a_batch_with_no_valid_row_has_loss_zero() -> None:
    images, texts = _pairs(4)
    images.requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(1.0), torch.zeros(4, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert images.grad is not None
    assert torch.all(images.grad == 0)


def test_batches_of_different_shape_are_refused() -> None:
    images, texts = _pairs(4)
    with pytest.raises(ValueError, match=r"\(4, 16\).*\(3, 16\)"):
        contrastive_loss(images, texts[:3], torch.tensor(1.0))


def _towers() -> torch.nn.Module:
    class Towers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = torch.nn.Linear(8, 6), torch.nn.Linear(5, 6)
            self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return (
                F.normalize(self.image(x), dim=-1),
                F.normalize(self.text(y), dim=-1),
                self.logit_scale.exp(),
            )

    torch.manual_seed(0)
    return Towers()


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    valid = torch.ones(12, dtype=torch.bool)
    valid[[1, 8, 9]] = False  # unevenly over ranks
    x = torch.randn(12, 8, generator=generator)
    return x, torch.randn(12, 5, generator=generator), valid


def _rank(rank: int, ranks: int, port: int, with_valid: bool, out: str) -> None:
    dist.init_process_group(
        "gloo", rank=rank, world_size=ranks, init_method=f"tcp://127.0.0.1:{port}"
    )
    model = torch.nn.parallel.DistributedDataParallel(_towers())
    rows = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
    x, y, valid = (tensor[rows] for tensor in _inputs())
    loss = contrastive_loss(*model(x, y), valid if with_valid else None)
    loss.backward()
    dist.all_reduce(total := loss.detach().clone())
    gradients = {name: p.grad for name, p in model.module.named_parameters()}
    if rank == ranks - 1:
        torch.save({"loss": total / ranks, "gradients": gradients}, out)
    dist.barrier()  # who leaves first closes the others' connections
    dist.destroy_process_group()
    # In about one of a hundred processes torch 2.15 aborts while it is torn down, after all is
    # done ("terminate called without an active exception").
    os._exit(0)


@pytest.mark.slow
@pytest.mark.parametrize("with_valid", [False, True])
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.long)])
def test_ranks_equal_one_process_logit_scale_included(
    ranks: int, with_valid: bool, tmp_path: Path
) -> None:
    model = _towers()
    x, y, valid = _inputs()
    loss = contrastive_loss(*model(x, y), valid if with_valid else None)
    loss.backward()

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = str(tmp_path / "result.pt")
    context = mp.get_context("spawn")
    processes = [
        context.Process(target=_rank, args=(rank, ranks, port, with_valid, out))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    result = torch.load(out, weights_only=True)
    torch.testing.assert_close(result["loss"], loss.detach(), rtol=1e-6, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(result["gradients"][name], parameter.grad, rtol=1e-5, atol=1e-6)

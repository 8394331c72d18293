"""The losses in blocks, against their definitions with whole matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clipkit.losses.blocks as blocks
from clipkit.losses import contrastive_loss, sigmoid_loss


def pairs(count: int, noise: float = 0.5, dim: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randn(count, dim, generator=generator)
    texts = images + noise * torch.randn(count, dim, generator=generator)
    return F.normalize(images, dim=-1), F.normalize(texts, dim=-1)


def some_groups(count: int) -> Tensor:
    """Shared texts, shared images, and rows that share both."""
    generator = torch.Generator().manual_seed(7)
    groups = torch.randint(0, count // 2, (count, 2), generator=generator)
    groups[-3:] = groups[0]
    return groups


def positives(groups: Tensor | None, count: int) -> Tensor:
    """(N, N) float64, m[i, j] = 1 where i and j are positives of one another."""
    if groups is None:
        return torch.eye(count, dtype=torch.float64)
    return (groups[:, None] == groups[None]).any(-1).double()


def whole_matrix(
    kind: str, images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, m: Tensor, smooth: float
) -> Tensor:
    count = len(images)
    logits = scale * images @ texts.T
    if kind == "sigmoid":
        return -F.logsigmoid((2 * m - 1) * (logits + bias)).sum() / count
    target = m / m.sum(1, keepdim=True)
    target = (1 - smooth) * target + smooth / count
    of_rows = -(target * logits.log_softmax(1)).sum(1).mean()
    of_columns = -(target * logits.T.log_softmax(1)).sum(1).mean()
    return (of_rows + of_columns) / 2


def both_ways(
    kind: str, count: int, scale: float, *, groups: bool = False, smooth: float = 0.0
) -> tuple[list[Tensor], list[Tensor]]:
    """[loss, gradients of images, texts, scale, bias], of ours and of the definition."""
    group = some_groups(count) if groups else None
    results = []
    for dtype in (torch.float32, torch.float64):
        images, texts = (x.to(dtype).requires_grad_() for x in pairs(count))
        s = torch.tensor(scale, dtype=dtype, requires_grad=True)
        b = torch.tensor(-10.0, dtype=dtype, requires_grad=True)
        if dtype == torch.float64:
            loss = whole_matrix(kind, images, texts, s, b, positives(group, count), smooth)
        elif kind == "sigmoid":
            loss = sigmoid_loss(images, texts, s, b, groups=group)
        else:
            loss = contrastive_loss(images, texts, s, groups=group, label_smoothing=smooth)
        loss.backward()
        grads = [x.grad for x in (images, texts, s, b) if x.grad is not None]
        results.append([loss.detach(), *grads])
    return results[0], results[1]


@pytest.fixture(params=[(7, 5), (64, 16), (1024, 2048)], ids=str)
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Blocks that do not divide the batch, that do, and one for all."""
    monkeypatch.setattr(blocks, "_CPU_BLOCK", request.param)
    size: tuple[int, int] = request.param
    return size


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("smooth", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_loss_and_gradients_equal_the_whole_matrix_in_float64(
    block: tuple[int, int], kind: str, groups: bool, smooth: float, scale: float
) -> None:
    if kind == "sigmoid" and smooth:
        pytest.skip("a yes or no has no columns to smooth over")
    ours, expected = both_ways(kind, 130, scale, groups=groups, smooth=smooth)
    assert len(ours) == len(expected) == (5 if kind == "sigmoid" else 4)
    for found, wanted in zip(ours, expected, strict=True):
        assert torch.isfinite(found).all()
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0, 100.0])
@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_the_error_is_at_most_that_of_the_whole_matrix_in_float32(
    scale: float, noise: float
) -> None:
    """Over batches, as one batch's rounding is luck."""
    ours, plain = [], []
    for count in range(1500, 1540, 4):
        images, texts = pairs(count, noise, 64)
        s, none = torch.tensor(scale), torch.eye(count)
        exact = whole_matrix("infonce", images.double(), texts.double(), s, s, none.double(), 0)
        logits = s * images @ texts.T
        labels = torch.arange(count)
        full = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
        ours.append(abs(float(contrastive_loss(images, texts, s)) - float(exact)))
        plain.append(abs(float(full) - float(exact)))
    rounding = 1e-7 * max(1.0, float(exact))  # of the result itself
    assert sum(ours) <= 1.2 * sum(plain) + rounding * len(ours)


def test_rows_without_a_near_match_do_not_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """At scale 100 a row opposite to all columns has logits of -100 beside others of 100."""
    monkeypatch.setattr(blocks, "_CPU_BLOCK", (8, 8))
    images = torch.zeros(24, 4)
    images[:, 0] = 1
    texts = images.clone()
    images[3], texts[17] = -images[3], -texts[17]
    images.requires_grad_()
    loss = contrastive_loss(images, texts, torch.tensor(100.0))
    loss.backward()
    exact = whole_matrix(
        "infonce", images.detach().double(), texts.double(), torch.tensor(100.0).double(),
        torch.tensor(0.0), torch.eye(24).double(), 0,
    )  # fmt: skip
    assert loss.item() == pytest.approx(float(exact), rel=1e-6)
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()


def test_what_an_invalid_row_holds_does_not_matter() -> None:
    images, texts = pairs(20)
    valid = torch.ones(20, dtype=torch.bool)
    valid[[4, 11]] = False
    expected = contrastive_loss(images, texts, torch.tensor(20.0), valid)
    broken = images.clone()
    broken[4] = math.nan
    broken.requires_grad_()
    loss = contrastive_loss(broken, texts, torch.tensor(20.0), valid)
    loss.backward()
    assert torch.equal(loss, expected)
    assert broken.grad is not None
    assert torch.isfinite(broken.grad).all()


def test_nan_in_a_valid_row_is_not_hidden() -> None:
    images, texts = pairs(20)
    images[4, 0] = math.nan
    assert math.isnan(float(contrastive_loss(images, texts, torch.tensor(20.0))))
    assert math.isnan(float(sigmoid_loss(images, texts, torch.tensor(9.0), torch.tensor(-9.0))))


def test_bf16_matmuls_come_close() -> None:
    images, texts = pairs(300, dim=64)
    exact = contrastive_loss(images, texts, torch.tensor(20.0))
    loss = contrastive_loss(images, texts, torch.tensor(20.0), bf16_matmul=True)
    assert float(loss) != float(exact)
    assert float(loss) == pytest.approx(float(exact), rel=0.01)


@pytest.mark.parametrize(("what", "shape"), [("valid", (3,)), ("groups", (4, 3))])
def test_flags_and_groups_of_another_shape_are_refused(what: str, shape: tuple[int, ...]) -> None:
    images, texts = pairs(4)
    given = {what: torch.zeros(shape, dtype=torch.bool if what == "valid" else torch.int64)}
    with pytest.raises(ValueError, match=f"contrastive_loss: {what}"):
        contrastive_loss(images, texts, torch.tensor(1.0), **given)


@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
def test_equal_captions_as_positives_change_the_sigmoid_loss_and_not_infonce(kind: str) -> None:
    """Each of ten texts stands in the batch several times, with one vector for all of them."""
    images, texts = pairs(64)
    names = torch.arange(64) % 10
    groups = torch.stack([names, torch.arange(64)], dim=1)
    gradients = []
    for given in (None, groups):
        leaves = [images.clone().requires_grad_(), texts[:10].clone().requires_grad_()]
        scale, bias = torch.tensor(20.0), torch.tensor(-10.0)
        if kind == "sigmoid":
            loss = sigmoid_loss(leaves[0], leaves[1][names], scale, bias, groups=given)
        else:
            loss = contrastive_loss(leaves[0], leaves[1][names], scale, groups=given)
        gradients.append(torch.cat(torch.autograd.grad(loss, leaves)))
    difference = float((gradients[1] - gradients[0]).abs().max() / gradients[0].abs().max())
    assert difference < 1e-5 if kind == "infonce" else difference > 0.1

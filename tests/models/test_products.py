"""Matrix products in int8: what they round, and that nothing else changes a vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipkit import ClipkitError, encoder
from clipkit.encoder import Encoder
from clipkit.errors import ConfigError
from clipkit.models.products import Int8Weights, has_int8_products

needs_int8 = pytest.mark.skipif(not has_int8_products(), reason="this CPU has no int8 products")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def small_encoder(small_model, small_preprocess, small_tokenizer) -> Encoder:
    return Encoder(small_model.eval(), small_preprocess, small_tokenizer, "cpu", name="small")


@pytest.fixture
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator)


def weights(outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    weight *= 10 ** torch.linspace(-3, 3, outputs)[:, None]  # each output has a scale of its own
    return weight, torch.randn(outputs, generator=generator)


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "outputs", "inputs"), [(1, 7, 5), (33, 96, 64), (257, 48, 300)])
def test_a_product_is_that_of_rounded_factors(rows, outputs, inputs, dtype):
    weight, bias = weights(outputs, inputs)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(2))
    x *= 10 ** torch.linspace(-8, 8, rows)[:, None]  # and each token one
    x = x.to(dtype)
    for added in (None, bias):
        found = Int8Weights.of(weight, added).linear(x)
        assert (found.dtype, found.shape) == (dtype, (rows, outputs))
        exact = x.double() @ weight.double().T + (0 if added is None else added.double())
        # Half a step of each token and weight, of 127 to the largest; and of bf16's own rounding.
        most, of_weight = (v.double().abs().amax(1) for v in (x, weight))
        step = most[:, None] * weight.double().abs().sum(1) / 126
        step = step + x.double().abs().sum(1)[:, None] * of_weight / 126
        bound = 0.6 * step + (2**-7 if dtype == torch.bfloat16 else 1e-5) * exact.abs()
        bound = bound + (2**-7 if dtype == torch.bfloat16 else 1e-5) * step
        assert ((found.double() - exact).abs() <= bound).all()


@needs_int8
@pytest.mark.parametrize("dtype", DTYPES)
def test_largest_numbers_keep_their_signs_and_zeros_and_nan_stay(dtype):
    weight = torch.eye(6)
    # Whatever the largest is, it must not be rounded to 128, which is -128 in int8.
    largest = torch.linspace(0.5, 300, 5_000)[:, None].to(dtype)
    x = largest * torch.tensor([1.0, -1, 0, 0.5, 1, -1], dtype=dtype)
    found = Int8Weights.of(weight, None).linear(x)
    assert ((found - x).abs() <= 0.01 * largest).all()
    assert not Int8Weights.of(weight, None).linear(torch.zeros(3, 6, dtype=dtype)).any()
    x[7, 2] = torch.nan
    x[9, 2] = torch.inf
    found = Int8Weights.of(weight, None).linear(x)
    assert found[[8, 10]].isfinite().all()
    assert not found[[7, 9]].isfinite().all(1).any()
    weight[3] = 0
    assert not Int8Weights.of(weight, None).linear(x[:5])[:, 3].any()


@needs_int8
def test_an_embedding_in_int8_is_near_and_does_not_depend_on_its_batch(small_encoder, pixels):
    texts = [f"a photo of {n} dogs near the house" for n in range(40)]
    images = list(pixels)
    exact = small_encoder.encode_image(images), small_encoder.encode_text(texts)
    with small_encoder.computing(torch.bfloat16):
        rounded = small_encoder.encode_image(images), small_encoder.encode_text(texts)
        with small_encoder.computing(torch.int8):
            assert small_encoder.dtype == torch.int8
            found = small_encoder.encode_image(images), small_encoder.encode_text(texts)
            alone = small_encoder.encode_image(images[3]), small_encoder.encode_text(texts[3])
            with small_encoder.computing(None):
                assert small_encoder.dtype == torch.float32
                inner = small_encoder.encode_image(images), small_encoder.encode_text(texts)
        assert small_encoder.dtype == torch.bfloat16
        after = small_encoder.encode_image(images), small_encoder.encode_text(texts)
    for one, other, single, bf16 in zip(exact, found, alone, rounded, strict=True):
        cosines = (one * other).sum(1)
        assert cosines.min() > 0.998  # narrow layers round more
        assert (1 - cosines).mean() > 3 * (1 - (one * bf16).sum(1)).mean()  # it was int8
        assert abs(other[3] - single).max() < 1e-2 * abs(single).max()
    assert all((one == other).all() for one, other in zip(exact, inner, strict=True))
    assert all((one == other).all() for one, other in zip(rounded, after, strict=True))


@needs_int8
def test_a_token_has_its_own_scale():
    made = Int8Weights.of(*weights(48, 300))
    x = torch.randn(20, 300, generator=torch.Generator().manual_seed(3))
    x *= 10 ** torch.linspace(-6, 6, 20)[:, None]
    together = made.linear(x)
    for row in range(20):
        alone = made.linear(x[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-6, atol=0)
    torch.testing.assert_close(made.linear(x.view(4, 5, 300)), together.view(4, 5, 48))


def test_what_cannot_be_computed_in_int8_is_refused(small_encoder, monkeypatch):
    def sentence() -> str:
        with pytest.raises(ConfigError) as caught, small_encoder.computing(torch.int8):
            pass
        assert isinstance(caught.value, ClipkitError)
        return str(caught.value)

    monkeypatch.setattr(encoder, "has_int8_products", lambda: False)
    assert "this CPU has no fast products for it (VNNI or AMX); take bf16 or fp32" in sentence()
    small_encoder.device = torch.device("cuda")
    assert "it is for CPUs, and the model is on cuda; take bf16" in sentence()
    small_encoder.model.train()
    assert "in training" in sentence()
    small_encoder.model = torch.nn.Linear(2, 2).eval()
    assert "small is no CLIP" in sentence()

"""The fast forward calls whatever is not plain: hooks fire, and wrapped modules take effect."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from by_transformers import theirs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention

from clipkit.models import DualEncoder
from clipkit.models.layers import kept_weights

KINDS = (nn.Linear, nn.LayerNorm, nn.Embedding, nn.Conv2d, CLIPAttention, CLIPMLP)


@pytest.fixture
def model(small_model: DualEncoder) -> DualEncoder:
    return small_model


def assert_theirs(model: DualEncoder, pixels: Tensor, ids: Tensor) -> None:
    for one, other in zip(theirs(model, pixels, ids), model(pixels, ids)[:2], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=3e-6)


def parts(model: DualEncoder, *kinds: type[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    return ((n, m) for n, m in model.named_modules() if isinstance(m, kinds or KINDS))


def replace(model: DualEncoder, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # pixels have no gradient
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_every_kind_of_hook_on_every_part_fires(model, pixels, ids, dtype):
    model.compute_dtype = dtype
    expected = [x.detach() for x in model(pixels, ids)[:2]]
    fired: dict[str, set[str]] = {}

    def note(kind: str, name: str) -> Callable[..., None]:
        return lambda *_: fired.setdefault(kind, set()).add(name)

    names = [name for name, _ in parts(model)]
    for name, module in parts(model):
        module.register_forward_pre_hook(note("before", name))
        module.register_forward_hook(note("after", name))
        module.register_full_backward_hook(note("backward", name))
    found = model(pixels, ids)[:2]
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=3e-6 if dtype is None else 0.02)
    sum(x.sum() for x in found).backward()
    assert fired["before"] == fired["after"] == fired["backward"] == set(names)
    assert len(names) > 30


def test_a_hook_that_changes_what_comes_out_changes_the_embeddings(model, pixels, ids):
    for name, module in parts(model):
        before = model(pixels, ids)[:2]
        hook = module.register_forward_hook(
            lambda _, __, y: (y[0] * 1.1, *y[1:]) if isinstance(y, tuple) else y * 1.1
        )
        after = model(pixels, ids)[:2]
        assert_theirs(model, pixels, ids)
        hook.remove()
        changed = [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]
        scales_only = name.endswith("_projection")  # of what is then made a unit vector
        assert any(changed) or scales_only, name


def test_hooks_on_all_modules_fire(model, pixels, ids):
    called: set[str] = set()
    hook = nn.modules.module.register_module_forward_hook(
        lambda m, *_: called.add(type(m).__name__)
    )
    try:
        model(pixels, ids)
    finally:
        hook.remove()
    assert {"Linear", "LayerNorm", "Embedding", "Conv2d", "CLIPAttention", "CLIPMLP"} <= called


class LowRank(nn.Module):
    """A LoRA wrapper (https://arxiv.org/abs/2106.09685), with a ``weight`` of its own as peft's."""

    def __init__(self, inside: nn.Linear) -> None:
        super().__init__()
        self.inside = inside
        self.down = nn.Parameter(torch.randn(2, inside.in_features) * 0.02)
        self.up = nn.Parameter(torch.randn(inside.out_features, 2) * 0.02)

    @property
    def weight(self) -> Tensor:
        return self.inside.weight

    @property
    def bias(self) -> Tensor | None:
        return self.inside.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) + F.linear(F.linear(x, self.down), self.up)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_lora_wrapper_of_each_linear_takes_effect_and_trains(model, pixels, ids, dtype):
    names = [name for name, _ in parts(model, nn.Linear)]
    for name in names:
        replace(model, name, LowRank(model.get_submodule(name)))
    assert_theirs(model, pixels, ids)
    model.compute_dtype = dtype
    sum(x.square().sum() for x in model(pixels, ids)[:2] for x in (x @ x.T,)).backward()
    wrappers = [model.get_submodule(name) for name in names]
    assert len(wrappers) > 12
    for name, wrapper in zip(names, wrappers, strict=True):
        # Of keys, whose bias the softmax does not see, the weights are no exception.
        assert wrapper.up.grad is not None, name
        assert float(wrapper.up.grad.abs().sum()) > 0, name
        assert float(wrapper.down.grad.abs().sum()) > 0, name


def test_pruned_weights_are_pruned(model, pixels, ids):
    whole = [x.detach() for x in model(pixels, ids)[:2]]
    for _, module in parts(model, nn.Linear, nn.Conv2d):
        prune.l1_unstructured(module, "weight", amount=0.5)
    assert_theirs(model, pixels, ids)
    pruned = [x.detach() for x in model(pixels, ids)[:2]]
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(whole, pruned, strict=True))
    for _, module in parts(model, nn.Linear, nn.Conv2d):
        prune.remove(module, "weight")
    for one, other in zip(pruned, model(pixels, ids)[:2], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=3e-6)


def test_parametrised_weights_are_used(model, pixels, ids):
    for _, module in list(parts(model, nn.Linear)):
        parametrizations.spectral_norm(module)
    model.eval()  # in training each call is a step of the power iteration
    assert_theirs(model, pixels, ids)
    sum(x.sum() for x in model(pixels, ids)[:2]).backward()
    layer = model.backbone.vision_model.encoder.layers[0]
    assert layer.mlp.fc1.parametrizations.weight.original.grad is not None


class Doubled(Tensor):
    """A tensor that products take for twice what it is, as a quantised one is not what it seems."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, weight, *rest = args
            return F.linear(x, 2 * weight.as_subclass(Tensor), *rest)
        return super().__torch_function__(function, types, args, kwargs or {})


def test_weights_that_are_no_plain_tensors_are_multiplied_in_their_own_way(model, pixels, ids):
    twice = copy.deepcopy(model)
    for _, module in parts(model, nn.Linear):
        weight = module.weight.detach().as_subclass(Doubled)
        module.weight = nn.Parameter(weight, requires_grad=False)
    for _, module in parts(twice, nn.Linear):
        module.weight.data *= 2
    for one, other in zip(twice(pixels, ids)[:2], model(pixels, ids)[:2], strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=3e-6)


def test_weights_quantised_by_torchao_take_effect(model, pixels, ids):
    quantization = pytest.importorskip("torchao.quantization")
    whole = [x.detach() for x in model.eval()(pixels, ids)[:2]]
    quantization.quantize_(model.backbone, quantization.Int8WeightOnlyConfig())
    with torch.no_grad():
        found, expected = model(pixels, ids)[:2], theirs(model, pixels, ids)
    for one, ours, by_them in zip(whole, found, expected, strict=True):
        torch.testing.assert_close(ours, by_them, rtol=0, atol=1e-5)
        assert not torch.equal(one, ours)
        assert float((one * ours).sum(1).min()) > 0.99


def test_what_is_not_plain_is_called_while_weights_are_kept(model, pixels, ids):
    model.eval()
    with torch.no_grad(), kept_weights(model):
        plain = model(pixels, ids)[:2]
        for name, module in list(parts(model, nn.Linear)):
            if not name.endswith("_projection"):
                replace(model, name, LowRank(module))
        wrapped, expected = model(pixels, ids)[:2], theirs(model, pixels, ids)
    for one, ours, by_them in zip(plain, wrapped, expected, strict=True):
        torch.testing.assert_close(ours, by_them, rtol=0, atol=3e-6)
        assert not torch.allclose(one, ours, atol=1e-4)


def test_an_instance_with_a_forward_of_its_own_is_called(model, pixels, ids):
    module = model.backbone.vision_model.encoder.layers[0].mlp.fc1
    before = model(pixels)[0]
    module.forward = lambda x: torch.zeros(*x.shape[:-1], module.out_features)
    assert not torch.allclose(before, model(pixels)[0], atol=1e-4)


def test_patch_dropout_leaves_out_the_same_patches_of_a_hooked_embedding(model, pixels):
    model.patch_dropout = 0.5
    model.train()

    def embedded() -> Tensor:
        torch.manual_seed(5)
        return model(pixels)[0]

    expected = embedded()
    model.backbone.vision_model.embeddings.patch_embedding.register_forward_hook(lambda *_: None)
    torch.testing.assert_close(embedded(), expected, rtol=0, atol=3e-6)


def test_hooks_that_nothing_would_run_are_told_once(model, pixels, recwarn):
    model(pixels)
    assert not recwarn.list
    model.backbone.vision_model.encoder.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match=r"backbone\.vision_model\.encoder: its hooks have no eff"):
        model(pixels)
    recwarn.clear()
    model(pixels)
    assert not recwarn.list

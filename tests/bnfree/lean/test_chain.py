"""The lean path of whole networks against their plain composition, in float64."""

from __future__ import annotations

import copy
import os
import shutil
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ReActNet, ResidualUnit, Stem, Variant
from bnfree.binarize import SignEstimator
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lean import blocks

KINDS = [pytest.param(ReActNet18, id="18"), pytest.param(ReActNetA, id="A")]


def spread(network: nn.Module, density: float | None = None) -> nn.Module:
    """Weights in general position: gains of both signs, shifts and slopes other than their first values."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "slope" in name:
                parameter.copy_(0.25 + 0.3 * noise)
            elif "gain" in name:
                parameter.copy_(0.5 + noise)
            elif "shift" in name:
                parameter.copy_(0.3 * noise)
    for layer in network.modules():
        if density is not None and isinstance(layer, BinaryConv2d):
            layer.set_mask(torch.rand(layer.weight.shape, generator=generator) < density)
    return network.double()


def small(kind=ReActNet18, density=None, **options) -> nn.Module:
    torch.manual_seed(0)
    return spread(kind(**{"num_classes": 3, "width": 4, "stem": "cifar", **options}), density)


def images(count=2, size=(9, 7), seed=1) -> Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everything(network: nn.Module, x: Tensor, lean: bool) -> dict[str, Tensor]:
    """Output and all gradients."""
    network = copy.deepcopy(network)
    network.lean = lean
    x = x.clone().requires_grad_()
    y = network(x)
    (y * torch.arange(1, y.numel() + 1).view(y.shape)).sum().backward()
    return {"output": y.detach(), "images": x.grad, **{name: p.grad for name, p in network.named_parameters()}}


def assert_same(network: nn.Module, x: Tensor) -> None:
    plain, lean = (everything(network, x, lean) for lean in (False, True))
    # A filter of two survivors has a gradient that is nothing but what rounding leaves of large terms.
    rounding = 1e-15 * max(expected.norm() for expected in plain.values())
    for name, expected in plain.items():
        assert (lean[name] - expected).norm() <= 1e-10 * expected.norm() + rounding, name


@pytest.fixture(params=[None, 100], ids=["whole", "blocks"])
def block_size(request, monkeypatch):
    """Also with blocks so small that every tensor is cut."""
    if request.param:
        monkeypatch.setattr(blocks, "BLOCK", request.param)
        monkeypatch.setattr(blocks, "FEWEST_BLOCKS", 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["bn_free", "none"])
@pytest.mark.parametrize("binary_weights", [True, False])
@pytest.mark.parametrize("density", [None, 0.3, 0.02])
def test_output_and_all_gradients(kind, norm, binary_weights, density, block_size):
    assert_same(small(kind, density, norm=norm, binary_weights=binary_weights), images())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("binary_weights", [True, False])
def test_the_batch_norm_twin(kind, binary_weights, block_size):
    # Large enough that no channel of the last stage has a single value, or values that are as good as equal.
    assert_same(small(kind, norm="batch_norm", binary_weights=binary_weights), images(6, (48, 48)))


@pytest.mark.parametrize("estimator", ["approx", "ste", "sigmoid"])
@pytest.mark.parametrize("options", [{"binary_shortcut": True}, {"reference": True}, {"stem": "imagenet"}])
def test_estimators_and_variants(estimator, options):
    network = small(estimator=estimator, **options)
    if options.get("reference"):
        # All-positive weights within 1e-3: rounding decides signs there.
        with torch.no_grad():
            for layer in network.modules():
                if isinstance(layer, BinaryConv2d):
                    layer.weight.normal_(std=0.1)
    assert_same(network, images(size=(16, 11)))


def test_an_estimator_of_ones_own():
    class Wave(SignEstimator):
        name = "wave for this test"

        @staticmethod
        def slope(x):
            return torch.cos(x)

    for estimator in (Wave.name, Wave):
        assert_same(small(estimator=estimator), images())


@given(
    count=st.integers(1, 3),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    kind=st.sampled_from([ReActNet18, ReActNetA]),
    binary_weights=st.booleans(),
    density=st.sampled_from([None, 0.5, 0.01, 0.0]),
    block=st.sampled_from([1, 37, 1000]),
)
@settings(max_examples=15, deadline=None)
def test_shapes(count, height, width, kind, binary_weights, density, block):
    with (
        mock.patch.object(blocks, "BLOCK", block if height * width < 30 else 1000),
        mock.patch.object(blocks, "FEWEST_BLOCKS", 1),
    ):
        assert_same(small(kind, density, width=2, binary_weights=binary_weights), images(count, (height, width)))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last(kind):
    network = small(kind).to(memory_format=torch.channels_last)
    assert_same(network, images(size=(16, 16)).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("frozen", ["weight", "gain", "shift", "slope", "stem", "body"])
def test_frozen_parameters_get_no_gradient_and_the_others_the_same(frozen):
    network, x = small(), images()
    whole = everything(network, x, True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(frozen not in name)
    part = everything(network, x, True)
    for name, gradient in part.items():
        if frozen in name:
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, whole[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["bn_free", "batch_norm"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, nullcontext])
def test_evaluation(kind, norm, context, block_size):
    network = small(kind, norm=norm).eval()
    x = images(3, (16, 16))
    with context():
        lean = [network(x) for _ in range(2)]
        network.lean = False
        expected = network(x)
    for output in lean:
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_close_to_the_truth_as_the_plain_path(kind, dtype):
    network, x = small(kind, width=8, num_classes=10).float(), images(8, (16, 16)).float()

    def gradient(lean: bool, autocast: bool) -> tuple[torch.dtype, Tensor]:
        network.zero_grad()
        network.lean = lean
        with torch.autocast("cpu", dtype, enabled=autocast):
            y = network(x)
        F.cross_entropy(y.float(), torch.arange(8)).backward()
        assert all(p.grad.dtype == torch.float32 for p in network.parameters())
        # The last stage: further down, activations that rounding moves across thresholds decide.
        return y.dtype, torch.cat([p.grad.flatten() for p in network.body[-1].parameters()])

    _, truth = gradient(False, False)
    plain_dtype, plain = gradient(False, True)
    lean_dtype, lean = gradient(True, True)
    assert lean_dtype == plain_dtype
    cosines = [F.cosine_similarity(g, truth, dim=0).item() for g in (plain, lean)]
    assert cosines[1] > cosines[0] - 0.05


# ---- who watches gets to see ----------------------------------------------------------------------------------------


def test_hooks_inside_see_what_they_would_see_in_the_plain_network():
    network, x = small(), images()
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    for lean in (True, False):
        network.lean = lean
        handles = [
            module.register_forward_hook(lambda m, i, o, lean=lean: seen[lean].append(o.detach()))
            for module in network.body.modules()
            if not isinstance(module, nn.Sequential)
        ]
        network(x)
        for handle in handles:
            handle.remove()
    assert len(seen[True]) == len(seen[False]) > 60
    for ours, theirs in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("place", ["body", "body.1", "body.1.2", "body.1.2.rsign", "body.1.0.projection"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_one_hook_is_called_and_changes_no_gradient(place, kind):
    network, x = small(), images()
    expected = everything(network, x, False)
    calls = []
    getattr(network.get_submodule(place), f"register_{kind}_hook")(lambda *_: calls.append(1))
    network.lean = True
    x.requires_grad_()
    y = network(x)
    (y * torch.arange(1, y.numel() + 1).view(y.shape)).sum().backward()
    assert calls == [1]
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_hooks_that_replace_and_global_hooks():
    network, x = small(), images()
    with torch.no_grad():
        before = network(x)
        handle = network.body[2][1].register_forward_hook(lambda m, i, o: 0 * o)
        assert not torch.allclose(network(x), before)
        handle.remove()
        units = []
        handle = nn.modules.module.register_module_forward_hook(
            lambda m, i, o: units.append(m) if isinstance(m, ResidualUnit) else None
        )
        network(x)
        handle.remove()
    assert len(units) == 16


def test_a_unit_of_another_class_or_with_another_forward_is_called():
    class Silent(ResidualUnit):
        def forward(self, x):
            return torch.zeros_like(super().forward(x))

    network, x = small(), images()
    network.body[3][3].__class__ = Silent
    with torch.no_grad():
        torch.testing.assert_close(network(x), network.classifier.bias.expand(2, 3))
    network = small()
    network.body[3][3].convolution.forward = lambda x: 0 * x
    silent = everything(network, x, True)
    assert silent["body.3.3.rprelu.slope"].abs().max() > 0
    assert silent["body.3.3.convolution.weight"] is None


def test_gradients_of_gradients_are_refused_in_a_sentence():
    network, x = small(), images().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    with pytest.raises(InputError, match=r"create_graph=True.*lean = False"):
        gradient.square().sum().backward()
    network.lean = False
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    gradient.square().sum().backward()


def test_checkpointing_and_functional_calls():
    network, x = small(), images()
    expected = everything(network, x, False)
    parameters = dict(network.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        y = torch.func.functional_call(network, parameters, (x,))
        return (y * torch.arange(1, y.numel() + 1).view(y.shape)).sum()

    for name, gradient in torch.func.grad(loss)(parameters).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)
    network.zero_grad()
    torch.utils.checkpoint.checkpoint(loss, parameters, use_reentrant=False).backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_the_setting_reaches_every_part_and_leaves_the_state_alone():
    network = small()
    names = list(network.state_dict())
    network.lean = False
    assert not any(m.lean for m in network.modules() if hasattr(m, "lean"))
    assert list(network.state_dict()) == names
    assert small(lean=False).lean is False
    assert copy.deepcopy(network).lean is False
    assert not ReActNetA(lean=False, width=2).body[0][0].rsign.lean


def test_results_repeat_bit_for_bit():
    network, x = small().float(), images().float()
    first, second = (everything(network, x, True) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


class AllKinds(ReActNet):
    """One unit of each kind: what compiles it compiles the larger networks."""

    def __init__(self, norm: str, binary_weights: bool = True):
        variant = Variant(norm, binary_weights, binary_shortcut=False, alpha=0.4, reference=False, estimator="approx")
        stem = Stem(3, 2, 3, 1, False, variant)
        kinds = [(2, 2, 3, 1, False), (2, 4, 1, 1, False), (4, 4, 3, 2, False), (4, 8, 3, 2, True)]
        body = nn.Sequential(*(ResidualUnit(*kind, beta=0.9, variant=variant) for kind in kinds))
        super().__init__(3, variant, stem, body)


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "binary_weights"), [("bn_free", True), ("bn_free", False), ("batch_norm", True)])
@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_in_one_graph(norm, binary_weights, dynamic):
    torch._dynamo.reset()
    network, x = spread(AllKinds(norm, binary_weights)), images(3, (16, 12))
    expected = everything(network, x, False)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    # Of what may change, sizes: torch 2.14 fails on numbers that may, every constant of the code included, within an
    # autograd function.
    with torch._dynamo.config.patch(specialize_float=True):
        y = compiled(x)
        (y * torch.arange(1, y.numel() + 1).view(y.shape)).sum().backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)
        network.eval()
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), network(x))


@pytest.mark.slow
def test_code_that_inductor_writes_gives_the_same_gradients():
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    torch._dynamo.reset()
    network, x = spread(AllKinds("bn_free")), images(3, (16, 12))
    expected = everything(network, x, False)
    y = torch.compile(network, fullgraph=True)(x)
    (y * torch.arange(1, y.numel() + 1).view(y.shape)).sum().backward()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)

"""Fast modes: the same numbers, numbers as near as promised, or a refusal."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.lean import blocks, fast, unit

needs_bf16 = pytest.mark.skipif(not fast.bf16_works(), reason="this CPU does not multiply bfloat16")
needs_int8 = pytest.mark.skipif(not fast.int8_works(), reason="no 8-bit convolutions by oneDNN here")


@needs_int8
@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
@pytest.mark.parametrize("block", [blocks.BLOCK, 300])
@pytest.mark.parametrize("density", [None, 0.4])
def test_int8_forward_gives_the_same_bits(kind, block, density, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "FEWEST_BLOCKS", 1)
    monkeypatch.setattr(fast, "FEWEST_POSITIONS", 1)
    network = kind(num_classes=5, width=8, stem="cifar")
    if density:
        for module in network.body.modules():
            if hasattr(module, "set_mask"):
                module.set_mask(torch.rand(module.weight.shape) < density)
    used = []
    original = unit.convolve_int8
    monkeypatch.setattr(unit, "convolve_int8", lambda *arguments: used.append(1) or original(*arguments))
    results = []
    for modes in ((), ("int8_forward",)):
        network.fast = modes
        network.zero_grad()
        x = torch.randn(3, 3, 19, 14, generator=torch.Generator().manual_seed(0)).requires_grad_()
        y = network(x)
        F.cross_entropy(y, torch.arange(3)).backward()
        results.append([y.detach(), x.grad, *(p.grad for p in network.parameters())])
        with torch.no_grad():
            results[-1].append(network.eval()(x))
        network.train()
    assert used
    assert all(torch.equal(exact, quick) for exact, quick in zip(*results, strict=True))


@needs_int8
# As wide as the kernel, and higher.
@example(1, 1, 1, (3, 0), 1, 4, 3, torch.contiguous_format, "product")
@given(
    images=st.integers(1, 3),
    channels=st.integers(1, 9),
    filters=st.integers(1, 9),
    size=st.sampled_from([(1, 0), (3, 1), (3, 0)]),
    stride=st.integers(1, 3),
    height=st.integers(3, 9),
    width=st.integers(3, 9),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last]),
    way=st.sampled_from(["convolution", "kept weights", "product"]),
)
@settings(deadline=None, max_examples=60)
def test_sums_in_8_bits_are_those_of_float64(images, channels, filters, size, stride, height, width, layout, way):
    kernel, padding = size
    s = torch.randint(0, 2, (images, channels, height, width)).mul_(2).sub_(1)
    values = torch.randint(-1, 2, (filters, channels, kernel, kernel)).float()
    expected = F.conv2d(s.double(), values.double(), None, stride, padding)
    codes = (s + 1).to(torch.uint8).contiguous(memory_format=layout)
    with mock.patch.object(fast, "MOST_POSITIONS", 10**9 if way == "product" else 0):
        for _ in range(2):
            y = fast.convolve_int8(codes, values, fast.Geometry(stride, padding, 1), keep=way == "kept weights")
            assert y.dtype == torch.float32
            assert torch.equal(y.double(), expected)


@needs_int8
def test_evaluation_in_8_bits_sees_new_weights(monkeypatch):
    monkeypatch.setattr(fast, "FEWEST_POSITIONS", 1)
    network, x = ReActNet18(width=8).eval(), torch.randn(2, 3, 16, 16)
    for _ in range(2):
        with torch.no_grad():
            network.fast = ()
            expected = network(x)
            network.fast = "int8_forward"
            assert all(torch.equal(network(x), expected) for _ in range(2))
            network.body[0][0].convolution.weight.mul_(-1)


@needs_int8
def test_int8_is_left_out_where_it_does_not_apply(monkeypatch):
    monkeypatch.setattr(unit, "convolve_int8", lambda *_: pytest.fail("8 bits for what is not exact in them"))
    ReActNet18(width=4, fast=["int8_forward"])(torch.randn(1, 3, 8, 8))
    monkeypatch.setattr(fast, "FEWEST_POSITIONS", 1)
    x = torch.randn(2, 3, 8, 8)
    ReActNet18(width=4, binary_weights=False, fast=["int8_forward"])(x)
    ReActNet18(width=4, fast=["int8_forward"]).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ReActNet18(width=4, fast=["int8_forward"])(x)


def test_unknown_modes():
    with pytest.raises(InputError, match="fast='float4' is not known.*int8_forward"):
        ReActNet18(width=4, fast=["float4"])
    with pytest.raises(InputError, match="fast='int7' is not known"):
        ReActNet18(width=4).fast = "int7"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("int8_forward", "int8_forward.*does not work here"),
        ("bf16_backward", "bf16_backward.*does not work here.*AVX512-BF16"),
        ("half_forward", "half_forward.*needs a GPU.*int8_forward"),
    ],
)
def test_modes_that_do_not_work_are_refused_in_training_only(mode, said, monkeypatch):
    monkeypatch.setattr(fast, "int8_works", lambda: False)
    monkeypatch.setattr(fast, "bf16_works", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(fast, "convolve_int8", None)
    network, x = ReActNet18(width=4, fast=[mode]), torch.randn(64, 3, 32, 32)
    with pytest.raises(InputError, match=said):
        network(x)
    network.eval()
    with torch.no_grad():
        result = network(x)
        network.fast = []
        assert torch.equal(network(x), result)


def test_a_wrong_convolution_is_found_out(monkeypatch):
    original = fast.convolve_int8
    fast.int8_works.cache_clear()
    try:
        monkeypatch.setattr(fast, "convolve_int8", lambda *arguments: original(*arguments) + 1)
        assert not fast.int8_works()
    finally:
        fast.int8_works.cache_clear()


def gradients(network, x):
    """Output and gradients of a loss."""
    network.zero_grad()
    x = x.clone().requires_grad_()
    y = network(x)
    F.cross_entropy(y.double(), torch.arange(len(x)) % y.shape[1]).backward()
    return {"output": y.detach(), "images": x.grad, **{name: p.grad for name, p in network.named_parameters()}}


def spread(network):
    """Weights in general position, so that rounding turns no sign over."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "shift" in name:
                parameter.normal_(std=0.3, generator=generator)
            elif "gain" in name:
                parameter.normal_(1, 0.3, generator=generator)
    return network


def errors(network, x, modes):
    """Relative errors of all gradients in fast modes; the output has to be the same."""
    network.fast = ()
    exact = gradients(network, x)
    network.fast = modes
    quick = gradients(network, x)
    assert torch.equal(exact["output"], quick["output"])
    return {name: ((quick[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact}


@needs_bf16
@pytest.mark.slow
@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
@pytest.mark.parametrize("density", [None, 0.4])
def test_bf16_backward_is_as_near_as_promised(kind, density):
    torch.manual_seed(0)
    network = spread(kind(width=16, stem="cifar"))
    if density:
        for module in network.body.modules():
            if hasattr(module, "set_mask"):
                module.set_mask(torch.rand(module.weight.shape) < density)
    found = sorted(errors(network, torch.randn(16, 3, 32, 32), "bf16_backward").values())
    # Values rounded to 8 bits on their way through all units, but not added up in 8 bits.
    assert 0 < found[len(found) // 2] < 2**-9
    assert found[-1] < 2**-7


@pytest.mark.parametrize("scale", [[1.0, -0.5, 2.0, 1.0], [0.25, 1.0, 1.0, -4.0]])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_in_bf16_round_nothing_but_gradients(scale, stride):
    generator = torch.Generator().manual_seed(0)
    s = torch.randint(0, 2, (2, 6, 7, 5), generator=generator).mul_(2).sub_(1).double()
    signs, scale = torch.randint(-1, 2, (4, 6, 3, 3), generator=generator).double(), torch.tensor(scale)
    effective = (signs * scale.view(-1, 1, 1, 1)).requires_grad_()
    s.requires_grad_()
    y = F.conv2d(s, effective, None, stride, 1)
    # Small integers, whose sums bfloat16 holds.
    gradient = torch.randint(-1, 2, y.shape, generator=generator).double()
    y.backward(gradient)
    of_s, of_filters = fast.gradients_bf16(
        gradient.float(), s.detach().bfloat16(), signs.float(), scale, fast.Geometry(stride, 1, 1), True, True
    )
    assert torch.equal(of_s.double(), s.grad)
    assert torch.equal(of_filters.double(), effective.grad)


@needs_bf16
def test_a_filter_with_gain_zero_has_a_gradient_in_bf16():
    torch.manual_seed(0)
    network = spread(ReActNet18(width=8))
    layer = network.body[1][1].convolution
    with torch.no_grad():
        layer.gain[3:6] = 0
    x = torch.randn(16, 3, 32, 32)
    exact, network.fast = gradients(network, x), "bf16_backward"
    quick = gradients(network, x)
    of_gain = [result["body.1.1.convolution.gain"].flatten()[3:6] for result in (exact, quick)]
    assert of_gain[0].abs().min() > 0
    torch.testing.assert_close(*reversed(of_gain), rtol=2e-2, atol=0)
    assert quick["body.1.1.convolution.weight"][3:6].abs().max() == 0


@needs_bf16
@pytest.mark.parametrize("options", [{"binary_weights": False}, {"norm": "batch_norm", "binary_weights": False}])
def test_bf16_is_left_to_binary_weights_in_single_precision(options, monkeypatch):
    monkeypatch.setattr(unit, "gradients_bf16", lambda *_: pytest.fail("bfloat16 where it is not promised"))
    x = torch.randn(2, 3, 16, 16)
    ReActNet18(width=4, fast=["bf16_backward"], **options)(x).sum().backward()
    ReActNet18(width=4, fast=["bf16_backward"]).double()(x.double()).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        ReActNet18(width=4, fast=["bf16_backward"])(x).sum().backward()


@needs_bf16
def test_bf16_backward_repeats_bit_for_bit():
    torch.manual_seed(0)
    network, x = spread(ReActNet18(width=8, fast=["bf16_backward"])), torch.randn(4, 3, 16, 16)
    first, second = gradients(network, x), gradients(network, x)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_float16_holds_the_sums_that_it_is_given():
    for channels in (1, 8, 63, 64, 227, 228, 455, 456, 512):
        for masked in (False, True):
            weight = torch.empty(1, channels, 3, 3)
            kept = fast.modes_for(("int8_forward", "half_forward"), weight, masked)
            # With n terms -1 or +1 a sum is -n, -n + 2, ...; masked terms are 0. A border takes away rows of them.
            counts = {channels * taps for taps in (4, 6, 9)}
            sums = {total for n in counts for total in range(-n, n + 1, 1 if masked else 2)}
            exact = all(torch.tensor(total, dtype=torch.float16).item() == total for total in sums)
            assert ("half_forward" in kept) <= exact
            assert ("half_forward" in kept) >= (9 * channels <= 2048)
            assert "int8_forward" in kept


@pytest.mark.parametrize("density", [None, 0.4])
def test_half_forward_gives_the_same_bits(density, monkeypatch):
    torch.manual_seed(0)
    network, x = spread(ReActNet18(width=4)), torch.randn(2, 3, 16, 16)
    if density:
        for module in network.body.modules():
            if hasattr(module, "set_mask"):
                module.set_mask(torch.rand(module.weight.shape) < density)
    exact = gradients(network, x)
    # What a GPU does, on the CPU.
    monkeypatch.setattr(unit, "runs_half", lambda rule, dtype, u: rule.weight.binary and dtype == torch.float32)
    half = gradients(network, x)
    assert all(torch.equal(exact[name], half[name]) for name in exact)


@needs_bf16
def test_modes_go_together_with_autocast_and_channels_last():
    torch.manual_seed(0)
    network, x = spread(ReActNet18(width=8)), torch.randn(4, 3, 24, 24)
    with torch.autocast("cpu", torch.bfloat16):
        exact, network.fast = gradients(network, x), ["int8_forward", "bf16_backward", "half_saved"]
        quick = gradients(network, x)
    assert torch.equal(exact["output"], quick["output"])
    assert all(torch.isfinite(gradient).all() for gradient in quick.values())
    contiguous = gradients(network, x)
    network.to(memory_format=torch.channels_last)
    last = gradients(network, x.contiguous(memory_format=torch.channels_last))
    # The last stage: further down, rounding may turn activations over.
    for name in (name for name in last if name.startswith("body.3.3") and name.endswith("weight")):
        assert (last[name] - contiguous[name]).norm() < 2**-8 * contiguous[name].norm()


@needs_bf16
@pytest.mark.slow
def test_modes_compile_in_one_graph():
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, x = ReActNet18(width=8, fast=["int8_forward", "bf16_backward", "half_saved"]), torch.randn(8, 3, 16, 16)
    network.body = torch.nn.Sequential(network.body[0][0], network.body[1][0])
    network.classifier = torch.nn.Linear(16, 10)
    spread(network)
    eager = gradients(network, x)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    network.zero_grad()
    F.cross_entropy(compiled(x).double(), torch.arange(8)).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad - eager[name]).norm() < 2**-7 * eager[name].norm(), name

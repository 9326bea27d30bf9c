"""Fast modes: the same numbers, or a refusal."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.lean import blocks, fast, unit

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
def test_int8_is_left_out_where_it_does_not_apply(monkeypatch):
    monkeypatch.setattr(unit, "convolve_int8", lambda *_: pytest.fail("8 bits for what is not exact in them"))
    ReActNet18(width=4, fast=["int8_forward"])(torch.randn(1, 3, 8, 8))
    monkeypatch.setattr(fast, "FEWEST_POSITIONS", 1)
    x = torch.randn(2, 3, 8, 8)
    ReActNet18(width=4, binary_weights=False, fast=["int8_forward"])(x)
    ReActNet18(width=4, fast=["int8_forward"]).double()(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        ReActNet18(width=4, fast=["int8_forward"])(x)


def test_unknown_and_unavailable_modes(monkeypatch):
    with pytest.raises(InputError, match="fast='float4' is not known.*int8_forward"):
        ReActNet18(width=4, fast=["float4"])
    monkeypatch.setattr(fast, "int8_works", lambda: False)
    with pytest.raises(InputError, match="int8_forward.*does not work here"):
        ReActNet18(width=4).fast = "int8_forward"


def test_a_wrong_convolution_is_found_out(monkeypatch):
    original = fast.convolve_int8
    fast.int8_works.cache_clear()
    try:
        monkeypatch.setattr(fast, "convolve_int8", lambda *arguments: original(*arguments) + 1)
        assert not fast.int8_works()
    finally:
        fast.int8_works.cache_clear()

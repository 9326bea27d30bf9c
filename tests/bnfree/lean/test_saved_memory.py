"""Bytes kept for the backward pass: exact counts, and the ratios that lean training promises."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from bnfree.backbones import NFResNet18, ReActNet18
from bnfree.errors import InputError
from bnfree.saved_memory import measure_saved_memory

FLOAT = 4


@pytest.fixture
def plain(monkeypatch):
    """The baseline of the benchmarks."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    import plain_reactnet

    yield plain_reactnet
    sys.modules.pop("plain_reactnet")


def kept(network: nn.Module, images: torch.Tensor) -> float:
    return measure_saved_memory(network, images).per_image


def test_what_a_unit_keeps_is_one_tensor_and_five_numbers_a_filter():
    network = ReActNet18(width=8)
    memory = measure_saved_memory(network, torch.randn(4, 3, 16, 16))
    moments = 5 * 8 * FLOAT
    assert memory.layers["body.0.1"] == 4 * 8 * 16 * 16 * FLOAT + moments
    # The images, which the stem keeps, and its moments.
    assert memory.layers["stem.convolution"] == 4 * 3 * 16 * 16 * FLOAT + moments
    units = [name for name in memory.layers if name.startswith("body.")]
    assert len(units) == 16
    assert memory.total == sum(memory.layers.values())
    assert memory.per_image == memory.total / 4


def test_a_unit_that_is_watched_keeps_more():
    network, images = ReActNet18(width=8), torch.randn(4, 3, 16, 16)
    lean = kept(network, images)
    network.body[0][1].register_forward_hook(lambda *_: None)
    watched = measure_saved_memory(network, images)
    assert lean < watched.per_image
    network.lean = False
    assert watched.per_image < kept(network, images) / 2


def test_every_image_counts_the_same():
    network = ReActNet18(width=8)
    few, many = (measure_saved_memory(network, torch.randn(n, 3, 16, 16)).total for n in (2, 8))
    per_image = (many - few) / 6
    # Seven more columns of moments, the 19 of the convolutions and what the head keeps are all that is left.
    assert few - 2 * per_image < 5 * 2 * FLOAT * (4 * 8 + 5 * 16 + 5 * 32 + 5 * 64 + 8)


@pytest.mark.parametrize("network", [NFResNet18(width=4), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())])
def test_other_networks_are_counted_too(network):
    memory = measure_saved_memory(network, torch.randn(2, 3, 16, 16))
    assert memory.total > 2 * 3 * 16 * 16 * FLOAT


def test_a_compiled_network_is_refused():
    network, images = ReActNet18(width=4, blocks_per_stage=[1, 1, 1, 1]), torch.randn(2, 3, 8, 8)
    with pytest.raises(InputError, match=r"^network was given to torch.compile"):
        measure_saved_memory(torch.compile(network, backend="eager"), images)
    network.body[0].compile(backend="eager")
    with pytest.raises(InputError, match=r"^network.body.0 was given to torch.compile.*count those of the network"):
        measure_saved_memory(network, images)


def per_image_in_a_batch_of_64(network: nn.Module, size: int) -> float:
    """From two small batches: what the weights take is the same in every batch."""
    images = torch.randn(2, 3, size, size)
    one, two = (measure_saved_memory(network, images[:n].clone()).total for n in (1, 2))
    return (two - one) + (2 * one - two) / 64


def test_reactnet18_keeps_a_ninth_of_a_plain_composition(plain):
    ours, theirs = (per_image_in_a_batch_of_64(network, 32) for network in plain.networks("ReActNet18"))
    assert theirs / 2**20 == pytest.approx(19.74, abs=0.05)
    assert ours / 2**20 < 2.15
    assert theirs > 9 * ours


def test_the_batch_norm_twin_keeps_twice_as_much():
    images = torch.randn(16, 3, 32, 32)
    bn_free, twin = (kept(ReActNet18(norm=norm), images) for norm in ("bn_free", "batch_norm"))
    assert bn_free < 0.55 * twin


@pytest.mark.slow
def test_reactnet_a_keeps_an_eighth(plain):
    ours, theirs = (per_image_in_a_batch_of_64(n, 224) for n in plain.networks("ReActNetA", num_classes=1000))
    assert theirs > 7 * ours


def test_the_plain_composition_computes_the_same(plain):
    for name, size in (("ReActNet18", 9), ("ReActNetA", 33)):
        for norm in ("bn_free", "batch_norm"):
            network, baseline = (n.double() for n in plain.networks(name, norm, width=4, num_classes=3, stem="cifar"))
            x = torch.randn(3, 3, size, size, dtype=torch.float64)
            outputs = [n(x) for n in (network, baseline)]
            torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-11)
            for output in outputs:
                (output * torch.arange(9).view(3, 3)).sum().backward()
            for ours, theirs in zip(network.parameters(), baseline.parameters(), strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad.view_as(ours), rtol=1e-7, atol=1e-10)

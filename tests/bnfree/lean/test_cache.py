"""Evaluation keeps prepared weights, and never after they have changed."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor

import bnfree.convolution as convolution_module
from bnfree.convolution import BinaryConv2d
from bnfree.lean import cache


@pytest.fixture
def preparations(monkeypatch):
    """Counts how often a weight is prepared."""
    calls: list[int] = []
    original = cache.prepare

    def prepare(*arguments):
        calls.append(1)
        return original(*arguments)

    for module in (cache, convolution_module):
        monkeypatch.setattr(module, "prepare", prepare)
    return calls


def layer(binary: bool = True) -> BinaryConv2d:
    torch.manual_seed(0)
    convolution = BinaryConv2d(4, 6, 3, padding=1, binary_weights=binary)
    convolution.set_mask(torch.rand(6, 4, 3, 3) < 0.7)
    return convolution.eval()


def output(convolution: BinaryConv2d) -> Tensor:
    with torch.no_grad():
        return convolution(torch.ones(1, 4, 5, 5, dtype=convolution.weight.dtype))


def truth(convolution: BinaryConv2d) -> Tensor:
    fresh = BinaryConv2d(4, 6, 3, padding=1, binary_weights=convolution.binary_weights).to(convolution.weight.dtype)
    fresh.load_state_dict(convolution.state_dict())
    fresh.lean = False
    return output(fresh)


def step(convolution):
    convolution.weight.grad, convolution.gain.grad = torch.randn(6, 4, 3, 3), torch.randn(6, 1, 1, 1)
    torch.optim.Adam(convolution.parameters(), lr=0.3).step()


def swap(convolution):
    for parameter in convolution.parameters():
        parameter.data.copy_(torch.randn_like(parameter))


def swap_gain(convolution):
    convolution.gain.data[2] = 3.5


def set_one(convolution):
    convolution.weight.data[2, 1, 1, 1] = 4


def permute_filters(convolution):
    convolution.weight.data.copy_(convolution.weight.data.flip(0))


def permute_within(convolution):
    convolution.weight.data.copy_(convolution.weight.data.flip(2, 3))


def replace(convolution):
    convolution.weight.data = torch.randn(6, 4, 3, 3)


def load(convolution):
    convolution.load_state_dict(BinaryConv2d(4, 6, 3).state_dict(), strict=False)


def mask_in_place(convolution):
    convolution.mask[1].logical_not_()


def mask_data(convolution):
    convolution.mask.data[1] = ~convolution.mask.data[1]


CHANGES = [
    step, swap, swap_gain, set_one, permute_filters, permute_within, replace, load, mask_in_place, mask_data,
    lambda c: c.set_mask(torch.rand(6, 4, 3, 3) < 0.5), lambda c: c.set_mask(None), lambda c: c.double(),
    lambda c: setattr(c, "binary_weights", not c.binary_weights),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("binary", [True, False])
def test_never_stale(change, binary):
    convolution = layer(binary)
    before = output(convolution)
    assert torch.equal(output(convolution), before)
    change(convolution)
    after = output(convolution)
    torch.testing.assert_close(after, truth(convolution))
    assert not torch.allclose(after.float(), before, rtol=1e-3, atol=1e-3) or convolution.weight.dtype == torch.float64


def test_kept_in_evaluation_dropped_by_training(preparations):
    convolution = layer()
    for _ in range(3):
        output(convolution)
    assert len(preparations) == 1
    convolution.eval()
    output(convolution)
    assert len(preparations) == 2
    convolution.train()
    for _ in range(3):
        output(convolution)
    assert len(preparations) == 5
    assert convolution._kept is None


def test_with_inference_mode_and_gradients(preparations):
    convolution = layer()
    x = torch.ones(1, 4, 5, 5)
    with torch.inference_mode():
        for _ in range(2):
            convolution(x)
    assert len(preparations) == 1
    with torch.no_grad():
        convolution(x)
    # With gradients the weight is part of the graph.
    convolution(x).sum().backward()
    assert convolution.weight.grad.abs().sum() > 0


def test_parameters_made_in_inference_mode():
    with torch.inference_mode():
        convolution = layer()
        for _ in range(2):
            torch.testing.assert_close(output(convolution), truth(convolution))


def test_copies_and_files_do_not_carry_it():
    convolution = layer()
    output(convolution)
    twin = copy.deepcopy(convolution)
    assert twin._kept is None
    with torch.no_grad():
        twin.weight.neg_()
    torch.testing.assert_close(output(twin), truth(twin))
    assert convolution._kept is not None
    file = io.BytesIO()
    torch.save(convolution, file)
    file.seek(0)
    assert torch.load(file, weights_only=False)._kept is None

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.diagnostics import NonFinite, any_non_finite, first_non_finite

HUGE = torch.finfo(torch.float32).max


@pytest.fixture
def network():
    torch.manual_seed(0)
    return ReActNet18(width=4)


@pytest.fixture
def images():
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def loss_of(network, images):
    return F.cross_entropy(network(images), torch.arange(len(images)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64])
def test_flags_are_those_of_every_element(dtype):
    good = [torch.full((3, 2), 3e4).to(dtype), torch.zeros(0, dtype=dtype), torch.full((5,), -1e-7).to(dtype)]
    assert any_non_finite(good) == 0
    for wrong in (torch.inf, -torch.inf, torch.nan):
        for index in range(5):
            bad = good[2].clone()
            bad[index] = wrong
            assert any_non_finite([*good, bad]) == 1
            assert any_non_finite([torch.ones(2, dtype=torch.float64), bad]) == 1
    assert any_non_finite([]) == 0


def test_finite_numbers_whose_sum_overflows_pass_and_stay_as_they_are():
    gradients = [torch.full((100,), HUGE), torch.full((3,), 1e-45), torch.arange(4)]
    before = [gradient.clone() for gradient in gradients]
    assert any_non_finite(gradients) == 0
    assert all(map(torch.equal, gradients, before))
    sparse = torch.sparse_coo_tensor([[0, 2]], [1.0, torch.nan], (4,))
    assert any_non_finite([sparse]) == 1


def test_nothing_is_found_in_a_sound_pass_and_nothing_changes(network, images):
    loss_of(network, images).backward()
    before = [parameter.grad for parameter in network.parameters()]
    values = [gradient.clone() for gradient in before]
    assert first_non_finite(network, lambda: loss_of(network, images), images) is None
    for parameter, same, value in zip(network.parameters(), before, values, strict=True):
        assert parameter.grad is same
        assert torch.equal(same, value)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("lean", [True, False])
def test_the_first_of_the_forward_order_is_named(network, images, lean):
    network.lean = lean
    with torch.no_grad():
        network.body[1][0].rprelu.shift_in[1] = HUGE
        network.body[1][0].rprelu.shift_out[1] = HUGE
        network.body[2][1].rprelu.shift_out[0] = torch.inf
    found = first_non_finite(network, lambda: loss_of(network, images), images)
    # A weight that is not finite comes before all outputs.
    assert found == NonFinite("weight", "body.2.1.rprelu.shift_out")
    with torch.no_grad():
        network.body[2][1].rprelu.shift_out[0] = 0
    found = first_non_finite(network, lambda: loss_of(network, images), images)
    assert found == NonFinite("output", "body.1.0.rprelu")
    assert "body.1.0.rprelu" in str(found)


def test_input_loss_and_gradient(network, images):
    bad = images.clone()
    bad[1, 0, 0, 0] = torch.nan
    assert first_non_finite(network, lambda: loss_of(network, bad), [bad, {"labels": torch.arange(4)}]).kind == "input"
    assert first_non_finite(network, lambda: loss_of(network, images) * torch.inf, images).kind == "loss"

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.nan

    network.body[2][0].register_forward_hook(lambda module, inputs, output: Wrong.apply(output))
    found = first_non_finite(network, lambda: loss_of(network, images), images)
    assert found == NonFinite("gradient", "body.2.0.rprelu")


def test_a_gradient_that_only_a_parameter_has():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            # sqrt has an infinite derivative at 0.
            return x + self.scale.sqrt()

    network = nn.Sequential(nn.Linear(2, 2), Layer())
    found = first_non_finite(network, lambda: network(torch.ones(1, 2)).sum())
    assert found == NonFinite("gradient", "1.scale")

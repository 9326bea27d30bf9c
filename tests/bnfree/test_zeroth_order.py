"""Gradients from differences of losses."""

import pytest
import torch
from torch import nn

from bnfree.zeroth_order import coordinate_gradients, draw_active


class Quadratic(nn.Module):
    """theta^T A theta / 2 + b^T theta, whose gradient is known."""

    def __init__(self, size):
        super().__init__()
        root = torch.randn(size, size, dtype=torch.float64)
        self.matrix, self.slope = root @ root.T / size, torch.randn(size, dtype=torch.float64)
        self.theta = nn.Parameter(torch.randn(size, dtype=torch.float64))

    def forward(self, x):
        return self.theta @ self.matrix @ self.theta / 2 + self.slope @ self.theta

    def gradient(self):
        return (self.matrix @ self.theta + self.slope).detach()


def test_coordinates_are_exact_where_as_many_random_directions_are_not():
    torch.manual_seed(0)
    f, x = Quadratic(60), torch.zeros(())
    value, (found,) = coordinate_gradients([f], x, lambda y: y, [(f.theta, torch.ones(60, dtype=torch.bool))])
    exact = f.gradient()
    assert value == f(x)
    assert (found - exact).norm() < 5e-3 * exact.norm()
    # What remains is the second order, known here.
    torch.testing.assert_close(found - exact, 5e-3 / 2 * f.matrix.diagonal(), rtol=1e-6, atol=1e-9)
    start, estimate = f.theta.detach().clone(), torch.zeros_like(exact)
    with torch.no_grad():
        for direction in torch.randn(60, 60, dtype=torch.float64):
            f.theta.copy_(start + 5e-3 * direction)
            estimate += (f(x) - value) / 5e-3 * direction / 60
    assert (estimate - exact).norm() > 0.5 * exact.norm()


class Counted(nn.Linear):
    """Counts how often it is run."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x)


def test_only_active_coordinates_are_moved_and_only_what_is_behind_them_runs():
    torch.manual_seed(0)
    pieces = [Counted(4, 5).double(), nn.Tanh(), Counted(5, 3).double()]
    first, last = pieces[0], pieces[2]
    with torch.no_grad():
        first.weight.mul_(1e-12)
    before = [p.detach().clone() for piece in pieces for p in piece.parameters()]
    active = [(p, torch.rand(p.shape) < 0.4) for p in (first.weight, last.weight, last.bias)]
    x = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.arange(6) % 3
    loss = lambda y: nn.functional.cross_entropy(y, labels)  # noqa: E731
    value, found = coordinate_gradients(pieces, x, loss, active, step=1e-6)
    assert first.runs == 1 + active[0][1].sum()
    assert last.runs == 1 + sum(chosen.sum() for _, chosen in active)
    for p, kept in zip([p for piece in pieces for p in piece.parameters()], before, strict=True):
        assert torch.equal(p, kept)
    exact = loss(nn.Sequential(*pieces)(x))
    exact.backward()
    assert value == exact
    for gradient, (p, chosen) in zip(found, active, strict=True):
        torch.testing.assert_close(gradient, torch.where(chosen, p.grad, 0), rtol=1e-4, atol=1e-6)
        assert not gradient[~chosen].any()


@pytest.mark.parametrize(("share", "counts"), [(0.1, [6, 1, 1]), (0.0, [1, 1, 1]), (1.0, [60, 5, 1])])
def test_each_parameter_has_its_share_of_active_coordinates(share, counts):
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in [(6, 10), (5,), (1,)]]
    drawn = [draw_active(parameters, share, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert [active.sum().item() for active in drawn[0]] == counts
    assert [active.shape for active in drawn[0]] == [p.shape for p in parameters]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    if share == 0.1:
        assert not torch.equal(drawn[0][0], drawn[2][0])


def test_a_network_of_500_parameters_learns_from_a_tenth_of_its_coordinates():
    torch.manual_seed(0)
    pieces = [nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 3)]
    parameters = [p for piece in pieces for p in piece.parameters()]
    assert 450 < sum(p.numel() for p in parameters) < 550
    x = torch.randn(30, 8)
    labels = x[:, :3].argmax(1)
    optimizer = torch.optim.SGD(parameters, lr=0.3, momentum=0.9)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(20):
        active = draw_active(parameters, 0.1, generator)
        value, gradients = coordinate_gradients(
            pieces, x, lambda y: nn.functional.cross_entropy(y, labels), list(zip(parameters, active, strict=True))
        )
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.6 * losses[0]

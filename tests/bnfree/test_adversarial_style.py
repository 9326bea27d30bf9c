"""The layer that changes styles: where it is the identity, what it moves, and which way its strengths learn."""

import pytest
import torch

from bnfree.adversarial_style import AdversarialStyle, restyle, with_statistics_of
from bnfree.errors import InputError


def drawn(seed=0):
    return torch.Generator().manual_seed(seed)


def test_it_is_the_identity_in_evaluation_and_in_one_kind_of_steps():
    x = torch.randn(4, 3, 5, 5)
    style = AdversarialStyle(3)
    style.draw("adversarial", drawn())
    assert torch.equal(style.eval()(x), x)
    style.train().draw("none", drawn())
    torch.testing.assert_close(style(x), x)
    # Of one image there is no spread: strengths start at 0 and change nothing.
    alone = AdversarialStyle(3)
    alone.draw("adversarial", drawn())
    torch.testing.assert_close(alone(x[:1]), x[:1])
    assert not alone.mean_strength.any()


def test_one_has_the_statistics_of_another_and_its_own_are_the_identity():
    x, other = torch.randn(4, 3, 5, 5), 2 * torch.rand(4, 3, 6, 4) + 1
    found = with_statistics_of(x, other)
    torch.testing.assert_close(found.mean((2, 3)), other.mean((2, 3)))
    torch.testing.assert_close(found.std((2, 3), correction=0), other.std((2, 3), correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(with_statistics_of(x, x), x)
    # What an image becomes does not depend on the others.
    torch.testing.assert_close(with_statistics_of(x[:1], other[:1]), found[:1])


def test_statistics_are_moved_by_what_is_said():
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    shifts = torch.randn(2, 4, 3, dtype=torch.float64) * 0.1
    moved = restyle(x, *shifts)
    torch.testing.assert_close(moved.mean((2, 3)), x.mean((2, 3)) + shifts[0])
    torch.testing.assert_close(
        moved.std((2, 3), correction=0), x.std((2, 3), correction=0) + shifts[1], rtol=1e-5, atol=0
    )


def test_strengths_start_as_the_spread_of_the_first_batch_alone():
    style, x = AdversarialStyle(3), torch.randn(6, 3, 5, 5)
    style.draw("adversarial", drawn())
    first = style(x)
    torch.testing.assert_close(style.mean_strength.detach(), x.mean((2, 3)).std(0, correction=0))
    torch.testing.assert_close(style.std_strength.detach(), x.std((2, 3), correction=0).std(0, correction=0))
    before = style.mean_strength.detach().clone()
    style.draw("adversarial", drawn())
    style(10 * x)
    assert torch.equal(style.mean_strength, before)
    other = AdversarialStyle(3)
    other.load_state_dict(style.state_dict())
    other.draw("adversarial", drawn())
    torch.testing.assert_close(other(x), first)


@pytest.mark.parametrize("kind", ["adversarial", "spread", "none"])
def test_strengths_learn_against_the_loss(kind):
    torch.manual_seed(0)
    style, x, weight = AdversarialStyle(3), torch.randn(6, 3, 5, 5), torch.randn(6, 3, 5, 5)
    style.draw(kind, drawn(3))
    (style(x) * weight).sum().backward()
    e = torch.randn(2, 6, 3, generator=drawn(3))
    if kind == "adversarial":
        expected = (e[0][:, :, None, None] * weight).sum((0, 2, 3))
        torch.testing.assert_close(style.mean_strength.grad, -10 * expected, rtol=1e-4, atol=1e-3)
    else:
        assert not style.mean_strength.grad.any()
        assert not style.std_strength.grad.any()
    with pytest.raises(InputError, match="reversal=0 must be"):
        AdversarialStyle(3, 0)


def test_strengths_of_a_file_are_kept_and_those_of_an_unused_layer_start_again():
    x = torch.randn(4, 3, 5, 5)
    used, unused = AdversarialStyle(3), AdversarialStyle(3).state_dict()
    used.draw("none", drawn())
    used(x)
    with torch.no_grad():
        used.mean_strength.add_(1)
    again = AdversarialStyle(3)
    again.load_state_dict(used.state_dict())
    again.draw("none", drawn())
    again(x)
    assert torch.equal(again.mean_strength, used.mean_strength)
    again.load_state_dict(unused)
    again(x)
    assert torch.equal(again.mean_strength, x.mean((2, 3)).std(0, correction=0))

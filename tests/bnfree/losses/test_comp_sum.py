"""Comp-sum losses against their formula and the losses that they join."""

import pytest
import torch
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.losses import build_loss
from bnfree.losses.comp_sum import CompSum

torch.manual_seed(0)
LOGITS, LABELS = 3 * torch.randn(8, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
P = LOGITS.softmax(1)[torch.arange(8), LABELS]


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0.0, (1 / P - 1).mean()),
        (1.0, F.cross_entropy(LOGITS, LABELS)),
        (1.7, ((1 - P**0.7) / 0.7).mean()),
        (2.0, (1 - P).mean()),
    ],
)
def test_it_is_the_losses_that_it_joins(tau, expected):
    torch.testing.assert_close(CompSum(tau)(LOGITS, LABELS), expected)


def test_it_is_continuous_at_the_cross_entropy():
    for tau in (1 - 1e-9, 1 + 1e-9):
        torch.testing.assert_close(CompSum(tau)(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS), rtol=1e-7, atol=0)


def test_above_one_it_is_bounded_and_below_finite():
    wrong, labels = torch.tensor([[1000.0, 0.0]]), torch.tensor([1])
    assert CompSum(1.7)(wrong, labels) == pytest.approx(1 / 0.7)
    assert CompSum(0.0)(wrong, labels) == pytest.approx(1e7, rel=1e-5)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7])
def test_gradients(tau):
    torch.autograd.gradcheck(lambda logits: CompSum(tau)(logits, LABELS), LOGITS.clone().requires_grad_())


def test_by_name_and_in_half_precision():
    loss = build_loss("comp_sum")
    assert loss.tau == 1.7
    assert loss(LOGITS.bfloat16(), LABELS).dtype == torch.float32


def test_mistakes():
    with pytest.raises(InputError, match="tau=-1 must be"):
        CompSum(-1)
    with pytest.raises(InputError, match=r"tau=1.7 needs labels that are classes"):
        CompSum()(LOGITS, P.new_ones(8, 5) / 5)
    torch.testing.assert_close(CompSum(1.0)(LOGITS, F.one_hot(LABELS).double()), F.cross_entropy(LOGITS, LABELS))

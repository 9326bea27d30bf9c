"""The pull on silent weights, and the average that says which are silent."""

import pytest
import torch

from bnfree.convolution import BinaryConv2d
from bnfree.silent_weights import centred_weight, silence_gradient, update_flip_rates
from bnfree.standardization import standardize_weight


def layer_of(masked=False, **options):
    torch.manual_seed(0)
    layer = BinaryConv2d(4, 5, 3, eps=0.0, **options).double()
    with torch.no_grad():
        layer.weight.add_(0.3)
    if masked:
        layer.set_mask(torch.rand(layer.weight.shape) < 0.6)
    return layer, torch.rand(layer.weight.shape) < 0.5


@pytest.mark.parametrize("masked", [False, True])
def test_the_pull_is_the_gradient_of_silent_standardised_weights(masked):
    layer, silent = layer_of(masked)
    weight = layer.weight.detach().clone().requires_grad_()
    hat = standardize_weight(weight, layer.mask, 0.0)
    (gradient,) = torch.autograd.grad((hat * silent).square().sum() / 2, weight)
    mask = torch.ones_like(silent) if layer.mask is None else layer.mask
    for pull, slope, w, m in zip(silence_gradient(layer, silent), gradient, weight.detach(), mask, strict=True):
        # The weights of `hat` have variance 1 / k.
        torch.testing.assert_close(pull, slope * w[m].var(correction=0) * m.sum())
    assert masked or not torch.equal(silence_gradient(layer, silent), torch.zeros_like(weight))


def test_the_pull_leads_to_the_mean_and_does_not_turn_the_others():
    layer, silent = layer_of()
    layer.weight.requires_grad_(False)
    before = centred_weight(layer)
    share = before[silent].abs().mean() / before.abs().mean()
    for _ in range(50):
        layer.weight.sub_(silence_gradient(layer, silent), alpha=0.02)
    after = centred_weight(layer)
    assert after[silent].abs().mean() / after.abs().mean() < 0.7 * share
    others = torch.nn.functional.cosine_similarity(before[~silent], after[~silent], dim=0)
    assert others > 0.97


def test_a_filter_that_is_silent_as_a_whole_is_left_alone():
    """Whose decay would not change what it computes."""
    layer, _ = layer_of()
    pull = silence_gradient(layer, torch.ones_like(layer.weight, dtype=torch.bool))
    assert pull.abs().max() < 1e-14


def test_plain_weights_have_the_published_decay():
    layer, silent = layer_of(standardize=False)
    assert torch.equal(silence_gradient(layer, silent), layer.weight.detach() * silent)


@pytest.mark.parametrize("standardize", [True, False])
def test_a_filter_without_survivors_has_no_pull(standardize):
    layer, silent = layer_of(standardize=standardize)
    mask = torch.ones_like(silent)
    mask[1] = False
    layer.set_mask(mask)
    pull = silence_gradient(layer, silent)
    assert pull.isfinite().all()
    assert not pull[1].any()


def test_flips_are_averaged_where_neither_sign_is_masked():
    rates = torch.tensor([0.5, 0.5, 0.5, 0.5])
    update_flip_rates(rates, torch.tensor([1, 1, 0, -1]).char(), torch.tensor([-1, 1, 1, 0]).char(), 0.9)
    torch.testing.assert_close(rates, torch.tensor([0.55, 0.45, 0.45, 0.45]))


def test_one_flip_is_remembered_for_2300_steps():
    """With the published constants."""
    rates = torch.zeros(1, dtype=torch.float64)
    one, other = torch.ones(1).char(), -torch.ones(1).char()
    update_flip_rates(rates, one, other, 0.999)
    steps = 0
    while rates >= 1e-4:
        update_flip_rates(rates, one, one, 0.999)
        steps += 1
    assert steps == 2302

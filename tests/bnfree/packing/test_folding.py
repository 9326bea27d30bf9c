"""What is folded, computed again in float64; and what cannot be packed."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from packable_networks import TwoUnits, images, random_network, scatter
from torch import nn

from bnfree.backbones import NFResNet18, ReActNet18
from bnfree.backbones.residual import ResidualUnit
from bnfree.errors import InputError
from bnfree.packing import compare, pack
from bnfree.packing.folding import fold


@pytest.mark.parametrize("density", [None, 0.4])
def test_constants_of_a_bn_free_unit_follow_the_formula(density):
    network = scatter(TwoUnits(), density=density)
    unit, folded = network.body[1], fold(network, "float32").units[1]
    latent = unit.convolution.weight.detach().double().numpy()
    mask = np.ones_like(latent) if density is None else unit.convolution.mask.numpy().astype(float)
    gain = unit.convolution.gain.detach().double().numpy()[:, 0, 0, 0]
    assert (gain < 0).any()
    for o, (filters, survivors) in enumerate(zip(latent, mask, strict=True)):
        kept = filters[survivors == 1]
        standardised = (kept - kept.mean()) / ((kept.std() + 1e-5) * len(kept) ** 0.5)
        scale = 0.3 * abs(gain[o]) * np.abs(standardised).mean()
        assert folded.weight.scale[o].item() == pytest.approx(scale, rel=1e-6)
        signs = folded.weight.values()[o].numpy()
        assert (signs[survivors == 0] == 0).all()
        assert (signs[survivors == 1] == np.where(standardised >= 0, 1, -1) * np.sign(gain[o])).all()
    beta, shift = unit.beta.item(), unit.rsign.shift.detach().double()
    assert torch.allclose(folded.thresholds.double(), -shift / beta, rtol=1e-6)
    assert folded.shortcut_scale == 1, "beta is in the projection"


def test_constants_of_a_batch_norm_unit_follow_the_formula():
    network = scatter(TwoUnits(norm="batch_norm", binary_shortcut=False))
    unit, folded = network.body[1], fold(network, "float32").units[1]

    def affine(norm):
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double()
        return factor, norm.bias.detach().double() - norm.running_mean.double() * factor

    (factor, shift), (projection_factor, projection_shift) = affine(unit.batch_norm), affine(unit.projection_norm)
    magnitude = unit.convolution.weight.detach().abs().mean((1, 2, 3)).double()
    assert torch.allclose(folded.weight.scale.double(), magnitude * factor.abs(), rtol=1e-6)
    flipped = unit.convolution.weight.sign() * factor.sign().view(-1, 1, 1, 1)
    assert torch.equal(folded.weight.values().double(), flipped.double())
    expected = unit.rprelu.shift_in.detach().double() + shift + projection_shift
    assert torch.allclose(folded.rprelu[0].double(), expected, atol=1e-6)
    projected = unit.projection.weight.detach().double() * projection_factor.view(-1, 1, 1, 1)
    assert torch.allclose(folded.projection.expand().double(), projected, rtol=1e-6)


def test_packing_leaves_the_network_as_it_was():
    network = scatter(TwoUnits(norm="batch_norm"), density=0.5).train()
    before = copy.deepcopy(network.state_dict())
    pack(network)
    assert network.training
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_a_compiled_network_is_packed_like_the_one_inside():
    network = scatter(TwoUnits())
    x = images(0, 2, 2, 6, 6)
    packed = pack(torch.compile(network), "float32", engine="torch")
    assert torch.equal(packed(x), pack(network, "float32", engine="torch")(x))
    assert compare(torch.compile(network), packed, x).unexplained == 0


def test_step_1_is_refused_in_one_sentence():
    with pytest.raises(
        InputError, match=r"^model has real weights in body\.0\.0\.convolution.*step 1.*step 2\) can be"
    ):
        pack(ReActNet18(width=2, binary_weights=False))


class Doubled(ResidualUnit):
    def forward(self, x):
        return 2 * super().forward(x)


def damaged(change):
    network = scatter(TwoUnits())
    change(network)
    return network


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: nn.Linear(2, 2), "model is Linear"),
        (lambda: NFResNet18(width=2), "model is NFResNet18"),
        (lambda: damaged(lambda n: n.body.append(nn.ReLU())), "ReLU at body.2"),
        (lambda: damaged(lambda n: setattr(n.body[0], "__class__", Doubled)), "Doubled at body.0"),
        (lambda: damaged(lambda n: n.body[1].beta.fill_(-1)), r"body.1.beta=-1"),
        (lambda: damaged(lambda n: n.body[1].rsign.shift.data.fill_(torch.nan)), "body.1.rsign.shift"),
        (lambda: damaged(lambda n: n.stem.convolution.weight.data.fill_(torch.inf)), "stem.convolution.weight"),
        (lambda: damaged(lambda n: setattr(n.body[0].convolution, "padding", 0)), "body.0.convolution has"),
    ],
)
def test_what_cannot_be_packed_is_refused(network, message):
    with pytest.raises(InputError, match=message):
        pack(network())


def test_finite_parameters_whose_product_is_not_are_refused():
    network = scatter(TwoUnits())
    network.body[0].convolution.gain.data.fill_(3e38)
    network.body[0].alpha = 1e3
    with pytest.raises(InputError, match=r"not finite in units\.0\.weight\.scale"):
        pack(network)


def test_a_full_mask_costs_no_plane():
    network = random_network(0, width=2)
    convolution = network.body[0][0].convolution
    convolution.set_mask(torch.ones_like(convolution.weight))
    assert fold(network).units[0].weight.survivors is None

"""Alpha, beta and the variance of the trunk: the public rule, the normaliser-free rule, the published profile."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.backbones.residual import ResidualUnit
from bnfree.backbones.variance import normalizer_free_betas, public_betas_reactnet18, public_betas_reactnet_a


def small(kind: type[nn.Module], width: int, **options: object) -> nn.Module:
    return kind(**{"num_classes": 10, "width": width, "stem": "cifar", **options})


def units(network: nn.Module) -> list[ResidualUnit]:
    return [module for module in network.modules() if isinstance(module, ResidualUnit)]


# Tables read off the published code and the rule of normaliser-free networks, alpha 0.2.
STAGE = [1.0, 0.9806, 0.9623]
PUBLIC_18 = [1.0, *STAGE, *[0.9449, *STAGE] * 3]
RULE_18 = [1.0, 0.9806, 0.9623, 0.9449, *[0.9285, 0.9806, 0.9623, 0.9449] * 3]
PAIRS = [(1, 0.9806), (0.9623, 0.9449)]
PUBLIC_A = [*PAIRS * 4, (0.9285, 0.9129), (0.898, 0.8839), (0.8704, 0.8575), (0.8452, 0.8333), (1, 0.9806)]
RULE_A = {1: (1, 0.9806), 2: (0.9623, 0.9806), 3: (0.9623, 0.9449), 4: (0.9285, 0.9806), 12: (0.822, 0.9806)}
RULE_A[13] = (0.9623, 0.9449)


def betas(network: nn.Module) -> list[float]:
    return [unit.beta.item() for unit in units(network)]


def test_public_betas():
    assert betas(small(ReActNet18, 4, reference=True)) == pytest.approx(PUBLIC_18, abs=6e-5)
    flat = [beta for pair in PUBLIC_A for beta in pair]
    assert betas(small(ReActNetA, 4, reference=True)) == pytest.approx(flat, abs=6e-5)
    assert public_betas_reactnet18([4, 4, 4, 4], 0.2) == pytest.approx(PUBLIC_18, abs=6e-5)
    strides = [block in (2, 4, 6, 12) for block in range(1, 14)]
    assert public_betas_reactnet_a(strides, 0.2) == pytest.approx(flat, abs=6e-5)


def test_betas_of_the_rule():
    assert betas(small(ReActNet18, 4, alpha=0.2)) == pytest.approx(RULE_18, abs=6e-5)
    found = betas(small(ReActNetA, 4, alpha=0.2))
    for block, pair in RULE_A.items():
        assert found[2 * block - 2 : 2 * block] == pytest.approx(pair, abs=6e-5)


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0])
def test_the_rule_predicts_the_variance_of_independent_branches(alpha):
    """Gaussian branches of variance 1, added with alpha; the shortcut of a transition is fed the normalised input."""
    transitions = [index in (3, 4, 9) for index in range(12)]
    generator = torch.Generator().manual_seed(0)
    trunk = torch.randn(1_000_000, generator=generator, dtype=torch.float64)
    for beta, transition in zip(normalizer_free_betas(transitions, alpha), transitions, strict=True):
        assert trunk.std().item() * beta == pytest.approx(1, rel=0.01)
        branch = torch.randn(trunk.shape, generator=generator, dtype=torch.float64)
        trunk = (trunk * beta if transition else trunk) + alpha * branch


def test_alpha_by_default_and_on_request():
    alphas = {"ours": small(ReActNet18, 4), "public": small(ReActNet18, 4, reference=True)}
    assert {name: {u.alpha for u in units(n)} for name, n in alphas.items()} == {"ours": {0.5}, "public": {0.2}}
    assert {u.alpha for u in units(small(ReActNetA, 4, alpha=0.7))} == {0.7}
    for norm in ("batch_norm", "none"):
        assert {(u.alpha, u.beta) for u in units(small(ReActNet18, 4, norm=norm, alpha=0.7))} == {(1.0, None)}


# Measured on the published code after blocks 1, 4, 8, 12, 16 (both binary, CIFAR stem, random input).
PROFILES = {"bn_free": [0.44, 0.35, 0.052, 0.034, 0.030], "batch_norm": [0.86, 5.2, 7.4, 7.4, 7.4]}


@pytest.mark.parametrize("norm", list(PROFILES))
def test_the_variance_profile_of_the_published_initialisation(norm):
    torch.manual_seed(0)
    network = ReActNet18(norm=norm, reference=True)
    variances: list[float] = []
    for unit in units(network):
        unit.register_forward_hook(lambda _, __, y: variances.append(y.var((0, 2, 3)).mean().item()))
    with torch.no_grad():
        network(torch.randn(32, 3, 32, 32))
    assert [variances[block - 1] for block in (1, 4, 8, 12, 16)] == pytest.approx(PROFILES[norm], rel=0.2)

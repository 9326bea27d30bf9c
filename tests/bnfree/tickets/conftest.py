"""Small networks with everything that a real one has: stem, binary bodies of unequal width, projection, classifier."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnfree.backbones.residual import ReActNet, ResidualUnit, Stem, Variant


class SmallNet(ReActNet):
    """Three residual units of 3x3, 3x3 (stride 2, with projection) and 1x1, for images (N, 3, H, W)."""

    def __init__(self, norm="bn_free", binary_weights=True, width=4, binary_shortcut=False):
        variant = Variant(norm, binary_weights, binary_shortcut, alpha=0.5, reference=False, estimator="approx")
        stem = Stem(3, width, 3, 1, False, variant)
        body = nn.Sequential(
            ResidualUnit(width, width, 3, 1, False, beta=1.0, variant=variant),
            ResidualUnit(width, 2 * width, 3, 2, True, beta=0.8, variant=variant),
            ResidualUnit(2 * width, 2 * width, 1, 1, False, beta=1.0, variant=variant),
        )
        super().__init__(3, variant, stem, body)


BODY = [f"body.{i}.convolution" for i in range(3)]


@pytest.fixture
def small_net():
    """Builds a network, its weights drawn from a seed."""

    def build(seed=0, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return SmallNet(**kwargs)

    return build


@pytest.fixture
def train():
    """Trains a network on noise for some steps of a given optimizer; returns the optimizer."""

    def run(network, make_optimizer, steps):
        optimizer = make_optimizer(network.parameters())
        generator = torch.Generator().manual_seed(7)
        images, labels = torch.randn(6, 3, 5, 5, generator=generator), torch.arange(6) % 3
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
        return optimizer

    return run

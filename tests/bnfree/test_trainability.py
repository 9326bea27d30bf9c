"""Scores of untrained networks against a loop over single images, and for equal images."""

import math

import torch

from bnfree.backbones import ReActNet18
from bnfree.trainability import activation_patterns, gradient_condition


def test_the_condition_is_that_of_the_gram_matrix():
    torch.manual_seed(0)
    network, images = ReActNet18(num_classes=4, width=4).double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for image in images:
        found = torch.autograd.grad(network(image[None]).sum(), list(network.parameters()))
        gradients.append(torch.cat([g.flatten() for g in found]))
    values = torch.linalg.svdvals(torch.stack(gradients)) ** 2
    torch.testing.assert_close(gradient_condition(network, images, 3), float(values[0] / values[-1]), rtol=1e-6, atol=0)


def test_equal_images_cannot_be_told_apart():
    torch.manual_seed(0)
    network, images = ReActNet18(num_classes=4, width=4), torch.randn(5, 3, 8, 8)
    assert activation_patterns(network, images) == 5
    again = torch.cat([images, images[:3]])
    assert activation_patterns(network, again) == 5
    assert gradient_condition(network, again) == math.inf
    assert gradient_condition(network, images) < math.inf

"""Attacks against what they may do, and against the known solution of a linear network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnfree.attacks import Attack, adversarial_features, pgd
from bnfree.errors import InputError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def normalised(pixels):
    return (pixels - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)


def pixels_of(images):
    return images * torch.tensor(STD).view(-1, 1, 1) + torch.tensor(MEAN).view(-1, 1, 1)


def test_images_stay_near_and_are_images_and_the_loss_grows():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 3))
    pixels, labels = torch.rand(8, 3, 6, 6), torch.arange(8) % 3
    pixels[0], pixels[1] = 0, 1
    images = normalised(pixels)
    found = pgd(network, images, labels, Attack(steps=5), MEAN, STD)
    moved = pixels_of(found)
    assert (moved - pixels).abs().max() <= 8 / 255 + 1e-6
    assert moved.min() >= -1e-6
    assert moved.max() <= 1 + 1e-6
    assert F.cross_entropy(network(found), labels) > F.cross_entropy(network(images), labels) + 0.01
    assert all(p.grad is None for p in network.parameters())


def test_one_long_step_of_a_linear_network_is_the_worst_there_is():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, 2, bias=False))
    pixels, labels = 0.2 + 0.6 * torch.rand(5, 3, 2, 2), torch.zeros(5).long()
    found = pgd(network, normalised(pixels), labels, Attack(0.1, 0.1, 1, random_start=False), MEAN, STD)
    against = (network[1].weight[1] - network[1].weight[0]).sign().view(3, 2, 2)
    torch.testing.assert_close(pixels_of(found), pixels + 0.1 * against)


def test_no_distance_is_no_change_and_starts_are_those_of_their_generator():
    images, labels = normalised(torch.rand(4, 3, 2, 2)), torch.zeros(4).long()
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    torch.testing.assert_close(pgd(network, images, labels, Attack(epsilon=0.0), MEAN, STD), images)
    starts = [
        pgd(network, images, labels, Attack(steps=0), MEAN, STD, torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    with pytest.raises(InputError, match="epsilon=8 must be"):
        Attack(epsilon=8)


def test_features_move_so_that_the_loss_of_the_tail_grows():
    torch.manual_seed(0)
    tail, features, labels = nn.Sequential(nn.Tanh(), nn.Linear(6, 3)), torch.randn(9, 6), torch.arange(9) % 3
    losses = []
    for steps in range(5):
        change = adversarial_features(tail, features, labels, F.cross_entropy, steps, 0.05)
        assert not change.requires_grad
        assert change.abs().max() <= 0.05 * steps + 1e-6
        losses.append(F.cross_entropy(tail(features + change), labels).item())
    assert losses == sorted(losses)
    assert losses[4] > losses[0] + 0.05
    assert all(p.grad is None for p in tail.parameters())

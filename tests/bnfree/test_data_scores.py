"""Scores of training images against loops over single images, and what they must find."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.data_scores import ForgettingCounts, el2n, grand
from bnfree.errors import InputError


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return ReActNet18(num_classes=4, width=4).double().eval()


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 3, 8, 8, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 3, 1])


def test_el2n_is_the_length_of_the_error():
    logits, labels = torch.tensor([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0]], dtype=torch.float64), torch.zeros(3).long()
    torch.testing.assert_close(el2n(logits, labels), torch.tensor([0.5**0.5, 0.0, 2**0.5], dtype=torch.float64))
    assert el2n(torch.randn(50, 7) * 9, torch.arange(50) % 7).max() <= 2**0.5 + 1e-6


def test_grand_is_the_gradient_of_one_image_alone(network, batch):
    scores = grand(network, *batch, chunk_size=2)
    for score, image, label in zip(scores, *batch, strict=True):
        alone = copy.deepcopy(network)
        F.cross_entropy(alone(image[None]), label[None]).backward()
        expected = sum(p.grad.square().sum() for p in alone.parameters()).sqrt()
        torch.testing.assert_close(score, expected, rtol=1e-9, atol=0)
    assert all(p.grad is None for p in network.parameters())
    assert all(module.lean for module in network.modules() if hasattr(module, "lean"))


def test_of_the_last_layer_grand_is_el2n_times_the_features(network, batch):
    frozen = copy.deepcopy(network).requires_grad_(False)
    frozen.classifier.weight.requires_grad_()
    images, labels = batch
    with torch.no_grad():
        lengths = frozen.features(images).mean((2, 3)).norm(dim=1)
        expected = el2n(frozen(images), labels) * lengths
    torch.testing.assert_close(grand(frozen, images, labels), expected)


def test_batch_norm_in_training_mode_has_no_such_gradients(batch):
    twin = ReActNet18(num_classes=4, width=4, norm="batch_norm").double()
    with pytest.raises(InputError, match="network has batch norm .* in training mode"):
        grand(twin.train(), *batch)
    assert grand(twin.eval(), *batch).shape == (5,)


def test_wrong_labels_rank_first():
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    labels = (x[:, 0] > 0).long()
    wrong = torch.randperm(200)[:10]
    labels[wrong] = 1 - labels[wrong]
    model = nn.Linear(8, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    for scores in (el2n(model(x).detach(), labels), grand(model, x, labels)):
        hardest = set(scores.argsort(descending=True)[:20].tolist())
        assert len(hardest & set(wrong.tolist())) >= 9


def test_forgetting_counts_what_was_known():
    counts = ForgettingCounts(4)
    answers = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 1, 0]]).bool()
    for right in answers:
        order = torch.randperm(4)
        counts.update(order[:2], right[order[:2]])
        counts.update(order[2:], right[order[2:]])
    assert counts.counts.tolist() == [2, 0, 0, 1]
    assert counts.scores().tolist() == [2, 3, 0, 1]
    other = ForgettingCounts(4)
    other.load_state_dict(counts.state_dict())
    other.update(torch.tensor([2]), torch.tensor([False]))
    assert other.scores().tolist() == [2, 3, 1, 1]

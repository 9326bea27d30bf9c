"""Classes as subspaces: orthonormal bases, and what the logits do not depend on."""

import pytest
import torch
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.heads.grassmann import Grassmann
from bnfree.packing import pack


def test_bases_are_orthonormal_after_a_step_of_any_optimizer():
    torch.manual_seed(0)
    head, features, labels = Grassmann(16, 3, 4), torch.randn(8, 16), torch.arange(8) % 3
    for optimizer in (torch.optim.SGD(head.parameters(), lr=1.0), torch.optim.Adam(head.parameters(), lr=0.1)):
        before = head.weight.detach().clone()
        F.cross_entropy(head(features), labels).backward()
        optimizer.step()
        assert not torch.equal(head.weight, before)
        bases = head.bases()
        assert (bases.transpose(1, 2) @ bases - torch.eye(4)).abs().max() < 1e-6


def test_the_basis_of_a_class_does_not_matter():
    torch.manual_seed(0)
    head, features = Grassmann(16, 3, 4).double(), torch.randn(8, 16, dtype=torch.float64)
    before = head(features)
    with torch.no_grad():
        head.weight.copy_(head.weight @ torch.randn(3, 4, 4, dtype=torch.float64))
    torch.testing.assert_close(head(features), before)
    torch.testing.assert_close(head(0.01 * features), before)
    assert before.max() <= 25


def test_one_dimension_is_the_size_of_the_cosine():
    torch.manual_seed(0)
    head, features = Grassmann(6, 3, 1, gamma=10).double(), torch.randn(4, 6, dtype=torch.float64)
    cosines = F.cosine_similarity(features[:, None], head.weight[None, :, :, 0], dim=2)
    torch.testing.assert_close(head(features), 10 * cosines.abs())


def test_as_the_head_of_a_network():
    network = ReActNet18(num_classes=5, width=2, head="grassmann")
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 3, 16, 16)).sum().backward()
    assert network.classifier.weight.grad.isfinite().all()
    with pytest.raises(InputError, match="model has the head Grassmann, which is no linear layer"):
        pack(network)
    with pytest.raises(InputError, match="dimensions=20 must be at least 1 and at most 16, the features"):
        Grassmann(16, 3, 20)

"""From pooled features to logits: by name, dotted path or as a callable, apart from the body."""

import pytest
import torch
from packable_networks import scatter
from torch import nn
from torch.nn import functional as F

from bnfree.backbones import NFResNet18, ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.heads import Cosine
from bnfree.packing import pack


class Scaled(nn.Module):
    """A linear layer without a bias, times two."""

    def __init__(self, features, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, features))

    def forward(self, features):
        return 2 * features @ self.weight.T

    def folded(self):
        return 2 * self.weight, None


def test_cosine_is_that_of_its_formula():
    torch.manual_seed(0)
    head, features = Cosine(6, 3).double(), torch.randn(4, 6, dtype=torch.float64)
    expected = 10 * F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(1000 * features), expected)


@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA, NFResNet18])
@pytest.mark.parametrize("head", ["cosine", "bnfree.heads.Cosine", Cosine])
def test_the_head_is_the_classifier(kind, head):
    network = kind(num_classes=5, width=2, head=head)
    assert isinstance(network.classifier, Cosine)
    x = torch.randn(2, 3, 32, 32)
    assert network(x).shape == (2, 5)
    torch.testing.assert_close(network(x), network.classifier(network.features(x).mean((2, 3))))
    assert {name for name in network.state_dict() if name.startswith("classifier")} == {
        "classifier.weight",
        "classifier.scale",
    }


def test_the_linear_head_has_its_names():
    assert set(ReActNet18(width=2).classifier.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("head", [lambda features, classes: nn.Linear(features, classes, bias=False), Scaled])
def test_a_linear_head_of_ones_own_is_packed(head):
    torch.manual_seed(0)
    network = scatter(ReActNet18(num_classes=4, width=4, head=head))
    x = torch.randn(3, 3, 16, 16)
    packed = pack(network, "float32", engine="torch")
    torch.testing.assert_close(packed(x), network(x), rtol=1e-4, atol=1e-4)


def test_another_head_is_not_packed():
    with pytest.raises(InputError, match=r"^model has the head Cosine, which is no linear layer; pack .*'linear'"):
        pack(ReActNet18(width=2, head="cosine"))


def test_what_is_no_head_is_refused():
    with pytest.raises(InputError, match="head='bnfree.heads.Head' is no head"):
        ReActNet18(width=2, head="bnfree.heads.Head")
    with pytest.raises(InputError, match="is no head"):
        ReActNet18(width=2, head=lambda features, classes: features)
    with pytest.raises(InputError, match=r"^head=.* cannot be called as head\(features, num_classes\) \(too many"):
        ReActNet18(width=2, head=lambda features: nn.Linear(features, 10))

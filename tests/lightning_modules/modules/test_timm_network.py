"""timm is an optional package: what needs it runs where it is there, the rest with a stand-in."""

import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from bnfree.callbacks.adaptive_gradient_clipping import find_excluded
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier, TimmNetwork

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")


class StandIn(nn.Module):
    def __init__(self, num_classes, in_chans, drop_rate=0.0):
        super().__init__()
        self.stem, self.top = nn.Conv2d(in_chans, 3, 3), nn.Linear(3, num_classes)
        self.drop_rate = drop_rate

    def get_classifier(self):
        return self.top

    def forward(self, images):
        return self.top(self.stem(images).mean((2, 3)))


@pytest.fixture
def stand_in(monkeypatch):
    made = []

    def create_model(name, pretrained=False, **options):
        made.append((name, pretrained))
        return StandIn(**options)

    module = types.ModuleType("timm")
    module.create_model, module.list_models = create_model, lambda: ["tiny", "small"]
    module.is_model = lambda name: name in module.list_models()
    monkeypatch.setitem(sys.modules, "timm", module)
    return made


def test_without_timm_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match="TimmNetwork needs timm, which is missing: pip install timm"):
        TimmNetwork("resnet18", num_classes=3)


def test_it_is_a_backbone_whose_classifier_is_not_clipped(stand_in):
    network = TimmNetwork("tiny.a1", num_classes=7, in_channels=1, pretrained=True, options={"drop_rate": 0.5})
    assert stand_in == [("tiny.a1", True)]
    assert (network.num_classes, network.in_channels, network.network.drop_rate) == (7, 1, 0.5)
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 7)
    assert find_excluded(ImageClassifier(network), None) == [(network.network.top, None)]


def test_mistakes_are_named(stand_in):
    for options, sentence in (
        ({"architecture": "tini"}, "architecture='tini' is no model of timm; the nearest name is 'tiny'"),
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"options": {"depth": 3}}, "architecture='tiny' cannot be made by timm .*unexpected keyword argument 'depth'"),
    ):
        with pytest.raises(InputError, match=sentence):
            TimmNetwork(**{"architecture": "tiny", "num_classes": 2, **options})


@needs_timm
def test_it_computes_what_timm_computes():
    import timm

    network = TimmNetwork("resnet18", num_classes=5).eval()
    other = timm.create_model("resnet18", num_classes=5).eval()
    other.load_state_dict(network.network.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(network(images), other(images))
    assert find_excluded(ImageClassifier(other), None) == [(other.fc, None)]

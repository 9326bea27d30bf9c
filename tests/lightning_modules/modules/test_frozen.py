"""Heads of one's own, and training a part of a network."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from bnfree.backbones import ReActNet18
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier
from bnfree.lightning_modules.modules.initial_weights import load_initial_weights
from bnfree.packing import pretrained_path
from bnfree.packing.file_format import read
from bnfree.packing.unpacked_network import UnpackedNetwork


def network(seed=0, **options):
    torch.manual_seed(seed)
    return ReActNet18(**{"num_classes": 4, "width": 4, **options})


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm"])
@pytest.mark.parametrize("freeze", ["weights", "body"])
def test_what_is_frozen_stays_and_the_rest_has_the_gradient_that_it_always_has(corners, make_trainer, norm, freeze):
    backbone = network(norm=norm)
    whole = copy.deepcopy(backbone)
    module = ImageClassifier(backbone, lambda p: SGD(p, lr=0.1), freeze=freeze, calibration="none")
    images, labels = (tensor[:16] for tensor in corners.dataset.tensors)
    if freeze == "body":
        whole.eval()
    module.train()
    for each in (backbone, whole):
        nn.functional.cross_entropy(each(images), labels).backward()
    trained = {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    head = {"classifier.weight", "classifier.bias"}
    weights = {f"{n}.weight" for n, m in backbone.named_modules() if isinstance(m, BinaryConv2d)}
    assert trained == (head if freeze == "body" else set(dict(backbone.named_parameters())) - weights)
    for name, parameter in whole.named_parameters():
        if name in trained:
            torch.testing.assert_close(dict(backbone.named_parameters())[name].grad, parameter.grad)
    before = copy.deepcopy(backbone.state_dict())
    make_trainer(max_epochs=2).fit(module, datamodule=corners)
    changed = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in before if "running_" in name or "num_batches" in name}
    assert head <= changed <= trained | (statistics if freeze == "weights" else set())
    assert len(changed) > 10 or freeze == "body"


def test_a_head_of_its_own_and_everything_else_strict(corners, make_trainer, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("bnfree.lightning_modules.modules.image_classifier.rank_zero_info", said.append)
    ten = network(1, num_classes=10)
    torch.save(ten.state_dict(), tmp_path / "ten.pt")
    path = str(tmp_path / "ten.pt")
    backbone = network()
    head = copy.deepcopy(backbone.classifier.state_dict())
    module = ImageClassifier(backbone, lambda p: SGD(p, lr=0.0), init_from=path, replace_head=True)
    make_trainer().fit(module, datamodule=corners)
    assert "The head is a new one, of 4 classes, where init_from has 10." in said
    for name, value in backbone.state_dict().items():
        expected = head[name.removeprefix("classifier.")] if name.startswith("classifier.") else ten.state_dict()[name]
        assert torch.equal(value, expected), name
    with pytest.raises(InputError, match=r"another shape 'classifier.bias' and 1 more.*add --model.replace_head=true"):
        load_initial_weights(network(), path)
    state = ten.state_dict()
    del state["body.0.0.rprelu.slope"]
    torch.save({**state, "body.0.0.other": torch.zeros(1)}, path)
    before = copy.deepcopy(backbone.state_dict())
    with pytest.raises(InputError, match=r"lacks 'body.0.0.rprelu.slope'; .* width and stem\."):
        load_initial_weights(backbone, path, replace_head=True)
    torch.save({**ten.state_dict(), "body.0.0.other": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="has in addition 'body.0.0.other'"):
        load_initial_weights(backbone, path, replace_head=True)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


class Headless(nn.Module):
    num_classes = 4

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 4)


def test_a_network_without_a_head_by_that_name(tmp_path):
    with pytest.raises(InputError, match="freeze='body' finds no module classifier in Headless"):
        ImageClassifier(Headless(), freeze="body")
    torch.save(Headless().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(InputError, match="replace_head=True finds no module classifier in Headless"):
        load_initial_weights(Headless(), tmp_path / "weights.pt", replace_head=True)


@pytest.mark.parametrize("source", ["cifar10_reactnet18_w16", "file"])
def test_a_pretrained_network_is_known_by_its_name(source):
    path = pretrained_path("cifar10_reactnet18_w16")
    backbone = network(num_classes=10, width=16, binary_shortcut=True)
    load_initial_weights(backbone, str(path) if source == "file" else source)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = UnpackedNetwork(read(path)[0])(images)
        assert (backbone(images) - expected).abs().mean() < 0.02 * expected.std()
    with pytest.raises(InputError, match="'cifar10_react' has in another shape|has in another shape"):
        load_initial_weights(
            network(num_classes=10, width=8, binary_shortcut=True), source if source != "file" else path
        )

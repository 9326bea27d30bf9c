"""Evaluation with a share of the statistics of the batch that is evaluated."""

import pytest
import torch
from lightning.pytorch import LightningModule

from bnfree.backbones import ReActNet18
from bnfree.callbacks import AlphaBatchNorm
from bnfree.errors import InputError


def small(**options):
    """A network of four units."""
    return ReActNet18(width=4, blocks_per_stage=[1, 1, 1, 1], **options)


class Outputs(LightningModule):
    """Keeps what the network gives in evaluation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = small(norm="batch_norm")
        for _ in range(3):
            self.backbone(torch.randn(8, 3, 16, 16))
        self.found = []

    def test_step(self, batch, batch_idx):
        self.found.append(self.backbone(batch[0]))


def evaluated(make_trainer, make_loader, *callbacks):
    module = Outputs()
    make_trainer(*callbacks).test(module, make_loader(), verbose=False)
    return module


def by_hand(alpha, images):
    """The same network with moving statistics that a hook mixes in front of each batch norm."""
    network = Outputs().backbone.eval()

    def mix(layer, inputs):
        (x,) = inputs
        if not hasattr(layer, "stored"):
            layer.stored = layer.running_mean.clone(), layer.running_var.clone()
        layer.running_mean.copy_((1 - alpha) * layer.stored[0] + alpha * x.mean((0, 2, 3)))
        layer.running_var.copy_((1 - alpha) * layer.stored[1] + alpha * x.var((0, 2, 3), correction=0))

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_pre_hook(mix)
    with torch.no_grad():
        return network(images)


def test_nothing_of_the_batch_is_ordinary_evaluation(make_trainer, make_loader):
    plain = evaluated(make_trainer, make_loader).found
    mixed = evaluated(make_trainer, make_loader, AlphaBatchNorm(0.0)).found
    assert all(torch.equal(*pair) for pair in zip(plain, mixed, strict=True))


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_statistics_are_mixed(alpha, make_trainer, make_loader):
    module = evaluated(make_trainer, make_loader, AlphaBatchNorm(alpha))
    for (images, _), found in zip(make_loader(), module.found, strict=True):
        torch.testing.assert_close(found, by_hand(alpha, images))
    after = Outputs().backbone.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in module.backbone.state_dict().items())
    assert not any("forward" in m.__dict__ for m in module.modules())


def test_refuses_a_share_out_of_range_and_a_network_without_batch_norm(classifier, make_trainer, make_loader):
    with pytest.raises(InputError, match=r"alpha=1\.5"):
        AlphaBatchNorm(1.5)
    with pytest.raises(InputError, match="no batch norm"):
        make_trainer(AlphaBatchNorm()).fit(classifier(), make_loader())

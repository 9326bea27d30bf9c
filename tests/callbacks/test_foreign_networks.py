"""Callbacks beside somebody else's LightningModule: the network in another attribute, no forward, no calibration."""

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.calibration import calibrate, is_calibrated
from bnfree.callbacks import (
    Calibration,
    ChannelsLast,
    EarlyBird,
    LotteryTicket,
    SignalPropagation,
    WeightDynamics,
)
from bnfree.errors import InputError
from bnfree.state_dicts import backbone_of, network_name, weights_of
from bnfree.tickets import Ticket, apply, prune, save_ticket


class Own(LightningModule):
    """A module that is its own network, with or without a way to call it."""

    def __init__(self):
        super().__init__()
        self.body, self.top = ReActNet18(width=4, num_classes=8), nn.Linear(8, 10)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.top(self.body(batch[0])), batch[1])

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Callable(Own):
    def forward(self, images):
        return self.top(self.body(images))


def test_the_network_is_what_holds_all_that_is_trained(foreign, classifier):
    module = foreign()
    assert (network_name(module), backbone_of(module)) == ("net", module.net)
    assert (network_name(Own()), network_name(classifier())) == ("", "backbone")
    assert network_name(module.net) == ""


def test_weights_are_found_under_any_prefix(foreign):
    module = foreign()
    for holder in (module, module.net, nn.ModuleDict({"a": module})):
        found = weights_of(module.net, holder.state_dict())
        assert found.keys() == module.net.state_dict().keys()
    assert weights_of(nn.Linear(1, 1), {"x": torch.ones(1)}) == {"x": torch.ones(1)}


def test_a_ticket_of_the_network_is_trained(foreign, make_trainer, make_loader, tmp_path):
    network = ReActNet18(width=4)
    apply(network, prune(network, density=0.3))
    save_ticket(Ticket.of(network, score="standardized", scope="global", density=0.3), tmp_path / "ticket.pt")
    module = foreign()
    make_trainer(LotteryTicket(str(tmp_path / "ticket.pt"), score="snip"), SignalPropagation(), WeightDynamics(),
                 EarlyBird(density=0.2), ChannelsLast()).fit(module, make_loader(), make_loader())  # fmt: skip
    for name, layer in module.net.named_modules():
        mask = getattr(network.get_submodule(name), "mask", None)
        if mask is not None:
            assert torch.equal(layer.mask, mask)
            assert not layer.weight[~mask].any()
    assert (tmp_path / "signal_propagation.csv").read_text().count("\n") == 1 + 16
    assert "body.0.0.convolution," in (tmp_path / "weight_dynamics.csv").read_text()
    assert "body.0.0.convolution.weight" not in torch.load(tmp_path / "gradients.pt")
    assert "body.0.0.convolution" in torch.load(tmp_path / "gradients.pt")


def test_a_module_that_cannot_be_called_is_told_how_to_be(make_trainer, make_loader, tmp_path):
    for callback in (SignalPropagation(), Calibration(), LotteryTicket(score="snip")):
        with pytest.raises(InputError, match="Own has no module backbone, .* keep the network in one attribute"):
            make_trainer(callback).fit(Own(), make_loader(), make_loader())
    make_trainer(SignalPropagation()).fit(Callable(), make_loader(), make_loader())
    assert "body.body.0.0" in (tmp_path / "signal_propagation.csv").read_text()


@pytest.mark.parametrize("full", [True, False])
def test_calibration_is_that_of_the_first_training_images(foreign, make_trainer, make_loader, full):
    module, expected = foreign(), ReActNet18(width=4)
    expected.load_state_dict(module.net.state_dict())
    loader = make_loader(images=12)
    calibrate(expected, torch.cat([images for images, _ in loader])[:10], full=full)
    make_trainer(Calibration(images=10, full=full), limit_train_batches=1).fit(module, loader)
    beta = {n: b for n, b in expected.named_buffers() if n.endswith("beta")}
    assert len(beta) == 16
    assert all(torch.equal(module.net.get_buffer(name), value) for name, value in beta.items())


def test_what_is_calibrated_stays_so_unless_one_asks(foreign, make_trainer, make_loader):
    module = foreign()
    calibrate(module.net, torch.randn(8, 3, 8, 8) * 9)
    before = module.net.body[0][0].beta.clone()
    make_trainer(Calibration()).fit(module, make_loader())
    assert torch.equal(module.net.body[0][0].beta, before)
    make_trainer(Calibration(recalibrate=True)).fit(module, make_loader())
    assert not torch.equal(module.net.body[0][0].beta, before)


def test_calibration_says_what_it_lacks(foreign, make_trainer, make_loader):
    with pytest.raises(InputError, match="images=0 must be at least 1"):
        Calibration(images=0)
    with pytest.raises(InputError, match="no residual unit with a beta"):
        make_trainer(Calibration()).fit(foreign(nn.Sequential(nn.Flatten(), nn.Linear(192, 10))), make_loader())
    assert not is_calibrated(foreign().net)

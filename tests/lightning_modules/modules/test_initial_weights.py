"""Ticket files as initial weights; checkpoints and state dicts are tested where a fit reads them."""

import copy

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules import ImageClassifier
from bnfree.lightning_modules.modules.initial_weights import load_initial_weights
from bnfree.tickets import Ticket, apply, checksum, current_masks, prune, save_ticket, take_snapshot


def network(width=2):
    return ReActNet18(num_classes=4, width=width)


@pytest.fixture
def ticket(tmp_path):
    """A ticket file, the network at its start, and the trained one."""
    start = network()
    trained = copy.deepcopy(start)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    apply(trained, prune(trained, 0.3))
    found = Ticket.of(trained, rewind=take_snapshot(start), score="standardized", scope="global", density=0.3)
    save_ticket(found, tmp_path / "ticket.pt")
    return tmp_path / "ticket.pt", start, trained


@pytest.mark.parametrize("trained_ticket", [False, True])
def test_a_ticket_gives_its_masks_and_the_weights_to_start_from_or_the_trained_ones(ticket, trained_ticket):
    path, start, trained = ticket
    fresh = network()
    load_initial_weights(fresh, path, trained_ticket=trained_ticket)
    assert checksum(current_masks(fresh)) == checksum(current_masks(trained))
    for name, value in take_snapshot(trained if trained_ticket else start).items():
        mask = trained.state_dict().get(f"{name.removesuffix('.weight')}.mask", torch.ones(()))
        assert torch.equal(fresh.state_dict()[name], value * mask)


def test_a_fit_starts_from_a_ticket_and_keeps_its_masks(ticket, corners, make_trainer):
    path, start, trained = ticket
    module = ImageClassifier(network(), init_from=str(path))
    make_trainer(limit_train_batches=2).fit(module, datamodule=corners)
    assert checksum(current_masks(module.backbone)) == checksum(current_masks(trained))
    assert not torch.equal(module.backbone.classifier.weight, start.classifier.weight)
    # Not calibrated anew: beta belongs to the weights.
    assert torch.equal(module.backbone.body[0][0].beta, start.body[0][0].beta)
    assert (module.backbone.body[0][0].convolution.effective_weight() != 0).equal(trained.body[0][0].convolution.mask)


def test_a_damaged_ticket_is_refused_in_one_sentence_and_changes_nothing(ticket):
    path, *_ = ticket
    content = torch.load(path, weights_only=True)
    content["state_dict"]["body.0.0.convolution.mask"][0, 0, 0, 0] ^= True
    torch.save(content, path)
    fresh = network()
    before = copy.deepcopy(fresh.state_dict())
    with pytest.raises(InputError) as caught:
        load_initial_weights(fresh, path)
    message = str(caught.value)
    assert message.startswith(f"init_from={str(path)!r} is damaged or was edited: its masks do not give the checksum")
    assert "\n" not in message
    assert fresh.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in fresh.state_dict().items())


def test_a_ticket_of_another_network_is_refused(ticket):
    path, *_ = ticket
    with pytest.raises(InputError, match="does not fit ReActNet18: it has in another shape"):
        load_initial_weights(network(width=4), path)

"""`bnfree test`, `validate`, `predict` and `fit` on ticket files."""

import dataclasses
import shutil

import pytest
import torch
from printed import shown_accuracy
from ticket_files import make_ticket, network

from bnfree.datamodules import DigitsDataModule
from bnfree.tickets import save_ticket

QUIET = ("--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.enable_progress_bar=false")


@pytest.fixture
def ticket(project):
    made = make_ticket(density=0.3)
    save_ticket(made, project / "ticket.pt")
    return made


def accuracy(state):
    # In double precision, as the command is told to run: in single precision rounding, which differs between batch
    # sizes and processors, turns some activations of an untrained network over.
    net = network().double().eval()
    net.load_state_dict(state)
    data = DigitsDataModule(image_size=8)
    data.setup("test")
    right = total = 0
    for batch in data.test_dataloader():
        images, labels = data.on_after_batch_transfer(batch, 0)
        right, total = right + int((net(images.double()).argmax(1) == labels).sum()), total + len(labels)
    return right / total


def test_a_ticket_is_evaluated_with_the_weights_it_was_found_with(ticket, bnfree):
    code, out, err = bnfree("test", "--ckpt_path=ticket.pt", "--trainer.precision=64-true", *QUIET)
    assert code == 0, err
    assert "ticket.pt is a ticket: evaluated with the weights that its masks were found with, pruned and not" in out
    assert shown_accuracy(out) == pytest.approx(accuracy(ticket.state_dict), abs=5.1e-5)


def test_it_says_when_these_are_the_rewind_weights(ticket, bnfree, project):
    save_ticket(dataclasses.replace(ticket, state_dict=ticket.start()), project / "start.pt")
    code, out, err = bnfree("test", "--ckpt_path=start.pt", *QUIET)
    assert code == 0, err
    assert (
        "start.pt is a ticket: evaluated with its rewind weights, which have not been trained under its masks." in out
    )


@pytest.mark.slow
def test_a_ticket_in_the_directory_of_another_run_is_built_as_it_says_itself(ticket, trained, bnfree, project):
    shutil.copytree(trained, project / "run")
    save_ticket(ticket, project / "run" / "ticket.pt")
    code, out, err = bnfree("test", "--ckpt_path=run/ticket.pt", "--trainer.precision=64-true", *QUIET)
    assert code == 0, err
    assert shown_accuracy(out) == pytest.approx(accuracy(ticket.state_dict), abs=5.1e-5)


@pytest.mark.slow
def test_what_a_ticket_cannot_do(ticket, complaint, project):
    assert "start from its weights with --model.init_from" in complaint("fit", "--ckpt_path=ticket.pt", *QUIET)
    model = {"hyper_parameters": ticket.config["hyper_parameters"]}
    save_ticket(dataclasses.replace(ticket, config=model), project / "no_data.pt")
    said = complaint("test", "--ckpt_path=no_data.pt", *QUIET)
    assert said == "ckpt_path='no_data.pt' is a ticket that does not say on which data; add --data or a --config."
    said = complaint("test", "--ckpt_path=ticket.pt", "--model.backbone.width=16", *QUIET)
    assert "ckpt_path='ticket.pt', written by ImageClassifier with ReActNet18, does not fit ReActNet18" in said
    broken = torch.load("ticket.pt", weights_only=True)
    broken["state_dict"]["classifier.bias"] += 1
    torch.save(broken, "broken.pt")
    assert "ckpt_path='broken.pt' is damaged or was edited" in complaint("test", "--ckpt_path=broken.pt", *QUIET)

"""Muon for convolutions: torch's on a matrix, Adam for all else."""

import copy
import sys

import pytest
import torch
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.optimizers.muon import Muon, orthogonalized
from bnfree.optimizers.schedule_free import AdamWScheduleFree


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_on_a_matrix_it_is_that_of_torch(shape):
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(3, *shape)
    theirs = nn.Parameter(start.clone())
    ours = nn.Parameter(start.clone().view(*shape, 1, 1))
    options = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}
    reference, muon = torch.optim.Muon([theirs], ns_steps=4, **options), Muon([ours], steps=4, **options)
    for gradient in gradients:
        theirs.grad, ours.grad = gradient.clone(), gradient.view(*shape, 1, 1).clone()
        reference.step()
        muon.step()
    torch.testing.assert_close(ours.detach().view(shape), theirs.detach(), rtol=1e-5, atol=1e-6)


def test_directions_are_equally_large():
    matrix = torch.randn(6, 30) * torch.logspace(-1, 0, 6).unsqueeze(1)
    values = torch.linalg.svdvals(orthogonalized(matrix, 6).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_all_but_convolutions_are_those_of_adam():
    torch.manual_seed(0)
    network = ReActNet18(num_classes=3, width=4)
    other = copy.deepcopy(network)
    muon = Muon(network.parameters(), lr=0.0, adam_lr=0.01)
    adam = torch.optim.Adam([p for p in other.parameters() if not (p.dim() == 4 and p[0].numel() > 1)], lr=0.01)
    x = torch.randn(4, 3, 16, 16)
    for _ in range(3):
        for net, optimizer in ((network, muon), (other, adam)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
            for p in net.parameters():
                p.grad = None
    for (name, ours), theirs in zip(network.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5, msg=name)


def test_groups_keep_what_they_say_and_a_schedule_moves_both():
    network = ReActNet18(num_classes=3, width=4)
    weights = [p for name, p in network.named_parameters() if name.endswith("convolution.weight")]
    rest = [p for name, p in network.named_parameters() if not name.endswith("convolution.weight")]
    groups = [{"params": weights, "name": "decayed"}, {"params": rest, "name": "undecayed", "weight_decay": 0.0}]
    optimizer = Muon(groups, lr=0.1, adam_lr=0.01, weight_decay=0.5)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert by_name["decayed_muon"]["weight_decay"] == 0.5
    # Real shortcuts are convolutions, too.
    assert by_name["undecayed_muon"]["weight_decay"] == by_name["undecayed_adam"]["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(network.parameters()))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05, 0.005]


@pytest.mark.parametrize("options", [{"steps": 0}, {"momentum": 1.0}, {"adam_lr": -1.0}])
def test_refuses_values_out_of_range(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Muon([nn.Parameter(torch.zeros(2))], **options)


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(InputError, match=r"^AdamWScheduleFree needs schedulefree, which is missing: pip install sched"):
        AdamWScheduleFree([nn.Parameter(torch.zeros(2))], lr=0.1)

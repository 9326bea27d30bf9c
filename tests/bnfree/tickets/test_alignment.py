"""Channels in another order: the network is the same, and the mark is found all the same."""

import pytest
import torch

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.tickets import apply, current_masks, prunable_layers, prune, sign, verify
from bnfree.tickets.alignment import align

KEY = "a key of the owner's own"


def shuffled(network, seed):
    """Another order of the channels of every stage, in place; what it computes stays."""
    generator = torch.Generator().manual_seed(seed)
    state = network.state_dict()
    before = order = torch.randperm(state["stem.convolution.weight"].shape[0], generator=generator)
    new = {name: value[order] for name, value in state.items() if name.startswith("stem.")}
    for stage, units in enumerate(network.body):
        width = units[0].convolution.weight.shape[0]
        if stage:
            before, order = order, torch.randperm(width, generator=generator)
        for index in range(len(units)):
            source = before if index == 0 else order
            prefix = f"body.{stage}.{index}."
            for name, value in state.items():
                if not name.startswith(prefix) or not value.dim():
                    continue
                part = name.removeprefix(prefix)
                if part.startswith("rsign"):
                    new[name] = value[:, source] if value.dim() > 1 and value.shape[0] == 1 else value[source]
                elif part.endswith((".weight", ".mask")) and value.dim() == 4:
                    new[name] = value[order][:, source]
                else:
                    new[name] = value[:, order] if value.dim() == 4 and value.shape[0] == 1 else value[order]
    new["classifier.weight"] = state["classifier.weight"][:, order]
    network.load_state_dict({**state, **new})
    return network


def signed_network(width, density, seed=0):
    torch.manual_seed(seed)
    network = ReActNet18(width=width)
    for layer in network.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            if "shift" in name or "slope" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    masks, signature = sign(prune(network, density), KEY, "card")
    apply(network, masks)
    return network, masks, signature


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
def test_a_free_change_of_channels_does_not_hide_the_mark(density):
    network, signed, signature = signed_network(16, density)
    images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    network.double().eval()
    before = network(images)
    for seed in range(3):
        stolen = shuffled(network, seed)
        assert (stolen(images) - before).abs().max() < 1e-12
        masks = current_masks(stolen)
        # The attack, as it was: nothing is found in the places of the mark.
        assert verify(masks, KEY, signature).p_value > 1e-4
        found = verify(masks, KEY, signature, signed)
        assert found.aligned
        assert found.agreement == 1
        assert found.p_value < 1e-60


def test_the_mark_survives_a_change_of_channels_with_pruning_and_regrowth():
    network, signed, signature = signed_network(16, 0.1)
    apply(network, {name: mask & (torch.rand(mask.shape) > 0.1) | (torch.rand(mask.shape) < 0.002)
                    for name, mask in current_masks(network).items()})  # fmt: skip
    found = verify(current_masks(shuffled(network, 5)), KEY, signature, signed)
    assert found.aligned
    assert found.p_value < 1e-20


def test_an_untouched_order_is_kept():
    _, signed, signature = signed_network(8, 0.2)
    plain, both = verify(signed, KEY, signature), verify(signed, KEY, signature, signed)
    assert both.agreement == 1
    assert not both.aligned
    assert both.p_value == pytest.approx(2 * plain.p_value)
    none = {name: torch.zeros(mask.shape[:2], dtype=torch.bool) for name, mask in signed.items()}
    again = align(signed, signed, none)
    assert all(torch.equal(again[name], signed[name]) for name in signed)


def test_alignment_finds_no_mark_where_there_is_none():
    """P-values of networks without the mark and of foreign keys are as they should be: none is too small."""
    small = []
    for seed in range(60):
        torch.manual_seed(1000 + seed)
        key = f"another key, number {seed}"
        mine, other = ({name: torch.rand(32, 32, 3, 3) < 0.07 * torch.rand(32, 1, 1, 1) * 2 for name in "abc"}
                       for _ in range(2))  # fmt: skip
        signed, signature = sign(mine, key, bits=128)
        # Somebody else's network, and one's own unsigned one with a foreign key.
        small.append(verify(other, key, signature, signed).p_value)
        small.append(verify(mine, f"a foreign key, number {seed}", signature, signed).p_value)
    found = torch.tensor(small)
    for level in (0.01, 0.05, 0.2, 0.5):
        # Two standard deviations of chance above the level.
        assert (found <= level).double().mean() <= level + 2 * (level * (1 - level) / len(small)) ** 0.5
    assert found.min() > 1e-4


def test_layers_that_are_no_chain():
    torch.manual_seed(0)
    network = ReActNetA(width=8)
    masks = prune(network, 0.2)
    signed, signature = sign(masks, KEY, bits=64)
    assert verify(signed, KEY, signature, signed).agreement == 1
    part = {name: signed[name] for name in list(signed)[::3]}
    assert verify(part, KEY, signature, signed).agreement == 1
    assert len(prunable_layers(network)) == len(masks)

import pytest
from torch import nn

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.lightning_modules.modules.parameter_groups import parameter_groups


def decayed_names(network, weight_decay_on):
    names = {id(p): name for name, p in network.named_parameters()}
    groups = parameter_groups(network, weight_decay_on)
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(names)
    assert all(group.get("weight_decay", None) == (0.0 if group["name"] == "undecayed" else None) for group in groups)
    return {names[id(p)] for group in groups if group["name"] == "decayed" for p in group["params"]}


@pytest.mark.parametrize("norm", ["bn_free", "batch_norm", "none"])
def test_convolutions_means_latent_weights_alone(norm):
    network = ReActNet18(width=4, norm=norm)
    expected = {
        name for name, _ in network.named_parameters() if name.endswith(("convolution.weight", "projection.weight"))
    }
    assert len(expected) == 20
    assert decayed_names(network, "convolutions") == expected


def test_public_code_adds_gains_and_shifts():
    network = ReActNet18(width=4)
    extra = decayed_names(network, "public_code") - decayed_names(network, "convolutions")
    assert {name.rsplit(".", 1)[1] for name in extra} == {"gain", "shift", "shift_in", "shift_out"}
    assert len(extra) == 20 + 3 * 16


def test_all_leaves_nothing_out():
    network = ReActNet18(width=4)
    assert decayed_names(network, "all") == {name for name, _ in network.named_parameters()}


def test_frozen_parameters_are_not_given_to_the_optimizer():
    network = ReActNet18(width=4)
    network.classifier.requires_grad_(False)
    grouped = {id(p) for group in parameter_groups(network, "convolutions") for p in group["params"]}
    assert grouped.isdisjoint(map(id, network.classifier.parameters()))
    with pytest.raises(InputError, match="nothing to train"):
        parameter_groups(network.requires_grad_(False), "convolutions")


def test_convolutions_of_another_library_count():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    assert decayed_names(network, "convolutions") == {"0.weight"}


def test_unknown_choice_is_named():
    with pytest.raises(InputError, match="weight_decay_on='conv'"):
        parameter_groups(nn.Linear(1, 1), "conv")

"""Feature maps of the stages: a binary backbone under a detector."""

from collections import OrderedDict

import pytest
import torch
from torchvision.ops import FeaturePyramidNetwork

from bnfree.backbones import NFResNet18, ReActNet18, ReActNetA
from bnfree.errors import InputError
from bnfree.packing import pack

EXPECTED = {
    ReActNet18: ([4, 8, 16, 32], {"cifar": [1, 2, 4, 8], "imagenet": [4, 8, 16, 32]}),
    ReActNetA: ([8, 16, 32, 64, 128], {"cifar": [1, 2, 4, 8, 16], "imagenet": [2, 4, 8, 16, 32]}),
    NFResNet18: ([4, 8, 16, 32], {"cifar": [1, 2, 4, 8], "imagenet": [4, 8, 16, 32]}),
}


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_feature_info_tells_channels_and_reduction(kind, stem):
    network = kind(width=4, stem=stem)
    channels, reductions = EXPECTED[kind]
    assert network.feature_info.channels() == channels
    assert network.feature_info.reduction() == reductions[stem]
    last = network.features(torch.randn(2, 3, 64, 64))
    assert last.shape == (2, channels[-1], 64 // reductions[stem][-1], 64 // reductions[stem][-1])
    assert dict(network.named_modules()).keys() >= set(network.feature_info.module_name())


@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
@pytest.mark.parametrize("lean", [True, False])
def test_features_only_gives_the_maps_that_hooks_see(kind, lean):
    torch.manual_seed(0)
    whole = kind(width=4, stem="cifar", lean=lean)
    maps = kind(width=4, stem="cifar", lean=lean, features_only=True)
    assert not any("classifier" in name for name in maps.state_dict())
    maps.load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 33, 32)
    seen = []
    for name in whole.feature_info.module_name():
        whole.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    whole(x)
    found = maps(x)
    assert [f.shape[1] for f in found] == maps.feature_info.channels()
    assert [f.shape[2] for f in found] == [-(-33 // n) for n in maps.feature_info.reduction()]
    for ours, expected in zip(found, seen, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.features(x), found[-1], rtol=1e-4, atol=1e-4)


def test_other_surplus_names_are_still_refused():
    with pytest.raises(RuntimeError, match="surplus"):
        ReActNet18(width=2, features_only=True).load_state_dict({"surplus": torch.zeros(1)})


def test_it_trains_under_a_feature_pyramid():
    torch.manual_seed(0)
    backbone = ReActNet18(width=4, stem="imagenet", features_only=True)
    info = backbone.feature_info
    pyramid = FeaturePyramidNetwork(info.channels(), out_channels=8)
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    optimizer = torch.optim.Adam([*backbone.parameters(), *pyramid.parameters()], lr=1e-2)
    maps = pyramid(OrderedDict(zip(info.module_name(), backbone(torch.randn(2, 3, 64, 64)), strict=True)))
    assert [m.shape for m in maps.values()] == [(2, 8, 64 // n, 64 // n) for n in info.reduction()]
    sum(m.square().mean() for m in maps.values()).backward()
    optimizer.step()
    # Every parameter has a part in some map: nothing for DDP to miss.
    assert all(not torch.equal(before[name], p) for name, p in backbone.named_parameters())


def test_it_has_nothing_to_pack():
    with pytest.raises(InputError, match="features_only=True; packing needs a network with a head"):
        pack(ReActNet18(width=2, features_only=True))

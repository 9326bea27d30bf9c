import copy

import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import apply, current_masks, prune, rewind, signs_of, take_snapshot

BODY = [f"body.{i}.convolution" for i in range(3)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.2, momentum=0.9)


def test_a_snapshot_is_everything_but_the_masks(small_net):
    network = small_net(norm="batch_norm")
    names = set(network.state_dict())
    apply(network, prune(network, 0.5))
    snapshot = take_snapshot(network)
    assert set(snapshot) == names
    assert set(take_snapshot(torch.nn.ModuleDict({"_orig_mod": network}))) == names
    assert "body.0.batch_norm.running_var" in names
    assert "body.0.beta" in take_snapshot(small_net())


@pytest.mark.parametrize("options", [{}, {"norm": "batch_norm"}, {"binary_weights": False}], ids=str)
def test_survivors_are_bit_equal_level_after_level(small_net, train, options):
    network = small_net(**options)
    train(network, sgd, 2)
    snapshot = take_snapshot(network)
    kept = copy.deepcopy(snapshot)
    parameters = list(network.parameters())
    for density in (0.7, 0.5, 0.3):
        train(network, sgd, 3)
        assert not torch.equal(network.state_dict()["stem.convolution.weight"], snapshot["stem.convolution.weight"])
        masks = prune(network, density)
        rewind(network, snapshot, masks)
        for name, tensor in network.state_dict().items():
            if name.endswith(".mask"):
                assert torch.equal(tensor, masks[name.removesuffix(".mask")])
                continue
            mask = masks.get(name.removesuffix(".weight"), torch.ones(()).bool())
            assert torch.equal(tensor, torch.where(mask, kept[name], torch.zeros(()).to(tensor.dtype))), name
    assert all(torch.equal(snapshot[name], kept[name]) for name in kept), "training has changed the snapshot"
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))


def test_latents_alone_can_be_rewound(small_net, train):
    network = small_net()
    snapshot = take_snapshot(network)
    train(network, sgd, 3)
    trained = take_snapshot(network)
    rewind(network, snapshot, prune(network, 0.5), parameters="latents")
    for name, tensor in take_snapshot(network).items():
        layer = name.removesuffix(".weight")
        if layer in BODY:
            mask = network.get_submodule(layer).mask
            assert torch.equal(tensor, snapshot[name] * mask)
        else:
            assert torch.equal(tensor, trained[name])
    train(network, sgd, 2)
    rewind(network, snapshot, parameters="latents")
    assert torch.equal(
        network.body[0].convolution.weight, snapshot[f"{BODY[0]}.weight"] * current_masks(network)[BODY[0]]
    )


def test_what_does_not_fit_changes_nothing(small_net):
    network = small_net()
    masks = prune(network, 0.5)
    good = take_snapshot(small_net(seed=1))
    lacking = {name: value for name, value in good.items() if name != "body.0.beta"}
    for snapshot, options, said in (
        (lacking, {}, "the snapshot does not fit SmallNet: it lacks 'body.0.beta'"),
        ({**good, "x": torch.ones(1)}, {}, "it has in addition 'x'"),
        (take_snapshot(small_net(width=6)), {}, "it has in another shape 'body.0.convolution.gain'"),
        (good, {"masks": {"x": torch.ones(1)}}, "masks holds 'x'"),
        (good, {"parameters": "weights"}, "parameters='weights' is not known"),
    ):
        before = take_snapshot(network)
        with pytest.raises(InputError) as caught:
            rewind(network, snapshot, **{"masks": masks, **options})
        assert said in str(caught.value)
        assert all(torch.equal(value, before[name]) for name, value in take_snapshot(network).items())
    assert all(mask.all() for mask in current_masks(network).values())


@pytest.mark.parametrize("options", [{}, {"norm": "batch_norm"}, {"binary_weights": False}], ids=str)
def test_signs_are_those_that_the_layer_sees_and_nothing_else_is_left(small_net, options):
    network = small_net(**options)
    for name in BODY:
        # Uneven signs, and a filter whose latents have one sign only.
        network.get_submodule(name).weight.data.add_(0.1)
        network.get_submodule(name).weight.data[0].abs_()
    snapshot = take_snapshot(network)
    masks = prune(network, 0.4)
    apply(network, masks)
    expected = {name: network.get_submodule(name).effective_weight().sign() for name in BODY}
    sizes = {}
    for name in BODY:
        layer = network.get_submodule(name)
        kept = [row[keep] for row, keep in zip(layer.weight.detach().double(), layer.mask, strict=True)]
        kept = [row - row.mean() if layer.standardize and len(row) > 1 else row for row in kept]
        sizes[name] = torch.cat(kept).abs().mean().item()
    rewind(network, signs_of(network, snapshot, masks), masks)
    for name in BODY:
        layer = network.get_submodule(name)
        assert torch.equal(layer.effective_weight().sign(), expected[name])
        assert layer.weight[layer.mask].abs().tolist() == pytest.approx([sizes[name]] * int(layer.mask.sum()))
    others = {n: v for n, v in take_snapshot(network).items() if n.removesuffix(".weight") not in BODY}
    assert all(torch.equal(value, snapshot[name]) for name, value in others.items())


def test_a_filter_of_equal_signs_keeps_them(small_net):
    network = small_net()
    masks = prune(network, 0.5)
    apply(network, masks)
    snapshot = take_snapshot(network)
    # What is left after latents at +-1 have lost all of one sign.
    snapshot[f"{BODY[0]}.weight"] = torch.where(torch.arange(4).view(4, 1, 1, 1) % 2 == 0, 0.1, -0.1).expand(4, 4, 3, 3)
    rewind(network, signs_of(network, snapshot, masks), masks)
    layer = network.body[0].convolution
    for row, (weight, keep) in enumerate(zip(layer.effective_weight(), layer.mask, strict=True)):
        assert (weight[keep].sign() == (-1) ** row).all()

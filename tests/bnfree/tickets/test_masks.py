import hashlib

import numpy as np
import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import (
    apply,
    checksum,
    current_masks,
    pack_masks,
    prunable_layers,
    prune,
    unpack_masks,
    zero_pruned,
)

BODY = [f"body.{i}.convolution" for i in range(3)]


def drawn(density=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"b": (5, 3, 3, 3), "a": (1, 1, 1, 1), "c": (2, 4, 1, 1)}
    return {name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()}


def test_packed_masks_are_numpys_bits_and_come_back():
    masks = drawn()
    packed = pack_masks(masks)
    for name, mask in masks.items():
        assert packed[name]["shape"] == list(mask.shape)
        assert packed[name]["bits"].dtype == torch.uint8
        expected = np.packbits(mask.numpy().ravel(), bitorder="little")
        assert packed[name]["bits"].tolist() == expected.tolist()
    back = unpack_masks(packed)
    assert list(back) == list(masks)
    assert all(back[name].dtype == torch.bool and torch.equal(back[name], mask) for name, mask in masks.items())


def test_packed_masks_are_plain_values(tmp_path):
    torch.save(pack_masks(drawn()), tmp_path / "masks.pt")
    back = unpack_masks(torch.load(tmp_path / "masks.pt", weights_only=True))
    assert checksum(back) == checksum(drawn())


def test_packed_masks_of_another_size_are_refused():
    packed = pack_masks(drawn())
    packed["b"]["bits"] = packed["b"]["bits"][:-1]
    with pytest.raises(InputError, match="the packed mask of 'b' has 16 bytes, which does not fit its shape"):
        unpack_masks(packed)


def test_the_checksum_is_sha256_of_names_shapes_and_bits():
    masks = drawn()
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(f"{len(name)}:{name}{list(masks[name].shape)}".encode())
        digest.update(np.packbits(masks[name].numpy().ravel(), bitorder="little").tobytes())
    assert checksum(masks) == digest.hexdigest()
    assert checksum(dict(reversed(masks.items()))) == checksum(masks)
    strided = {name: mask.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1) for name, mask in masks.items()}
    assert checksum(strided) == checksum(masks)


def test_the_checksum_sees_every_bit_name_and_shape():
    sums = {checksum(drawn())}
    for change in (
        lambda m: m["b"][4, 2, 2, 2].logical_not_(),
        lambda m: m.update({"d": m.pop("a")}),
        lambda m: m.update({"c": m["c"].view(4, 2, 1, 1)}),
        lambda m: m.pop("a"),
    ):
        masks = drawn()
        change(masks)
        sums.add(checksum(masks))
    assert len(sums) == 5


def test_a_dense_network_has_masks_of_ones(small_net):
    network = small_net()
    masks = current_masks(network)
    assert list(masks) == BODY
    assert all(mask.all() and mask.shape == network.get_submodule(name).weight.shape for name, mask in masks.items())
    network.stem.convolution.set_mask(torch.ones(4, 3, 3, 3))
    assert list(current_masks(network)) == ["stem.convolution", *BODY]


def test_applied_masks_are_the_current_ones_and_nobody_shares_them(small_net):
    network = small_net()
    masks = prune(network, 0.3)
    apply(network, masks)
    found = current_masks(network)
    assert checksum(found) == checksum(masks)
    found[BODY[0]].fill_(False)
    masks[BODY[1]].fill_(False)
    assert network.body[0].convolution.mask.any()
    assert network.body[1].convolution.mask.any()


def test_applying_changes_masks_in_place_and_zeroes_what_they_prune(small_net):
    network = small_net()
    apply(network, prune(network, 0.5))
    layer = network.body[0].convolution
    mask, weight = layer.mask, layer.weight
    with torch.no_grad():
        weight.fill_(float("nan")).masked_fill_(layer.mask, 1.5)
    other = network.body[1].convolution.mask.clone()
    given = torch.zeros(layer.weight.shape)
    given[:, 0] = 1
    apply(network, {BODY[0]: given})
    assert layer.mask is mask
    assert layer.weight is weight
    assert torch.equal(mask, given.bool())
    assert (weight[~mask] == 0).all()
    assert torch.equal(network.body[1].convolution.mask, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(other=torch.ones(1)), "masks holds 'other', which is no convolution of SmallNet"),
        (lambda m: m.update({BODY[2]: torch.ones(4, 4, 1, 1)}), f"masks['{BODY[2]}'] has shape (4, 4, 1, 1), but the"),
        (lambda m: m.update({BODY[2]: torch.full((8, 8, 1, 1), 0.5)}), "holds values other than 0 and 1"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(small_net, change, said):
    network = small_net()
    masks = prune(network, 0.3)
    change(masks)
    with pytest.raises(InputError) as caught:
        apply(network, masks)
    assert said in str(caught.value)
    assert all(mask.all() for mask in current_masks(network).values())


OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_nothing_of_a_pruned_weight_is_left_and_nothing_comes_back(small_net, train, make_optimizer):
    network = small_net()
    optimizer = train(network, make_optimizer, steps=3)
    apply(network, prune(network, 0.3))
    zero_pruned(network, optimizer)

    def pruned_values():
        for name in BODY:
            layer = network.get_submodule(name)
            tensors = [layer.weight, layer.weight.grad]
            tensors += [v for v in optimizer.state[layer.weight].values() if v.shape == layer.weight.shape]
            assert len(tensors) > 2
            for tensor in tensors:
                assert (tensor[layer.mask] != 0).any()
                yield tensor[~layer.mask]

    assert all((values == 0).all() for values in pruned_values())
    train(network, lambda _: optimizer, steps=10)
    assert all((values == 0).all() for values in pruned_values())


def test_masks_of_numpy_are_refused_in_a_sentence(small_net):
    network = small_net()
    masks = {name: mask.numpy() for name, mask in prune(network, 0.5).items()}
    with pytest.raises(InputError, match=r"masks\['body.0.convolution'\] is a ndarray and no tensor; torch.from_numpy"):
        apply(network, masks)
    assert all(layer.mask is None for layer in prunable_layers(network).values())

import dataclasses
import itertools
import math

import pytest
import torch

from bnfree.backbones import ReActNet18
from bnfree.errors import InputError
from bnfree.tickets import (
    Ticket,
    apply,
    checksum,
    commitment,
    current_masks,
    load_ticket,
    new_key,
    occupancy,
    prunable_layers,
    prune,
    save_ticket,
    score_weights,
    sign,
    stretch,
    verify,
)
from bnfree.tickets.keyed import mark_of
from bnfree.tickets.ownership import Signature

KEY = "the owner's long secret"
SHAPES = {"early": (24, 24, 3, 3), "pointwise": (32, 32, 1, 1), "late": (48, 24, 3, 3)}


def latents(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def strongest(weights, kept):
    """Masks of the weights of largest magnitude, as many in each layer as given."""
    masks = {}
    for name, weight in weights.items():
        masks[name] = torch.zeros(weight.shape, dtype=torch.bool)
        masks[name].view(-1)[weight.abs().flatten().argsort(descending=True)[: kept[name]]] = True
    return masks


def ticket(density, seed=0):
    weights = latents(seed)
    return weights, strongest(weights, {name: int(density * weight.numel()) for name, weight in weights.items()})


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def regrow(masks, share, seed):
    """Brings random pruned weights to life, as many as a share of the survivors."""
    result = {}
    for name, mask in masks.items():
        result[name] = mask.clone()
        pruned = (~mask).flatten().nonzero().flatten()
        chosen = torch.randperm(len(pruned), generator=torch.Generator().manual_seed(seed))
        result[name].view(-1)[pruned[chosen[: math.ceil(share * int(mask.sum()))]]] = True
    return result


def attacked(weights, masks, seed=0):
    """Fine-tuned (every surviving latent moves), a tenth of the survivors pruned by magnitude, a hundredth regrown.

    The worst case: no training between signing and the attack, so that the weights that the mark brought to life are
    the first to be pruned.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    moved = {n: (w + 0.3 * torch.randn(w.shape, generator=generator)) * masks[n] for n, w in weights.items()}
    return regrow(strongest(moved, {name: int(0.9 * kept) for name, kept in counts(masks).items()}), 0.01, seed)


@pytest.mark.parametrize(("density", "bits"), [(0.03, 192), (0.1, 256), (0.3, 256)])
def test_a_mark_is_read_back_exactly_and_costs_no_density(density, bits):
    weights, masks = ticket(density)
    before = checksum(masks)
    signed, signature = sign(masks, KEY, "model card", bits=bits, magnitudes=weights)
    assert checksum(masks) == before
    assert counts(signed) == counts(masks)
    assert all((signed[name].flatten(1).any(1) >= masks[name].flatten(1).any(1)).all() for name in masks)
    found = verify(signed, KEY, signature)
    assert (found.agreeing, found.bits, found.missing) == (bits, bits, ())
    assert found.p_value < 1e-30
    assert sum(count for *_, count in signature.layers.values()) == bits
    kept = {name: occupancy(mask).float().mean().item() for name, mask in signed.items()}
    weights_of = {name: SHAPES[name][0] * SHAPES[name][1] for name in SHAPES}
    share = sum(kept[name] * weights_of[name] for name in SHAPES) / sum(weights_of.values())
    assert found.occupied == pytest.approx(share)
    again, _ = sign(masks, KEY, "model card", bits=bits, magnitudes=weights)
    assert checksum(again) == checksum(signed)


@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
def test_the_owner_is_recognised_after_fine_tuning_pruning_and_regrowth(density):
    weights, masks = ticket(density)
    signed, signature = sign(masks, KEY, magnitudes=weights)
    for seed in range(5):
        found = verify(attacked(weights, signed, seed), KEY, signature)
        assert found.agreement < 1
        assert found.p_value < 1e-6


def foreign_p_values(masks, signature, count):
    return [verify(masks, f"a foreign key, number {i}", signature).p_value for i in range(count)]


def test_foreign_keys_are_not():
    weights, masks = ticket(0.1)
    signed, signature = sign(masks, KEY, magnitudes=weights)
    found = foreign_p_values(signed, signature, 150) + foreign_p_values(attacked(weights, signed), signature, 50)
    assert min(found) > 1e-4
    # A p-value that never were small would be no test: they are spread as they should be.
    assert sum(p < 0.5 for p in found) / 200 == pytest.approx(0.5, abs=0.15)
    assert verify(masks, KEY, signature).p_value > 1e-4
    assert verify(signed, KEY, dataclasses.replace(signature, message="other")).p_value > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("density", [0.05, 0.1, 0.3])
def test_a_network_keeps_its_mark_and_a_thousand_foreign_keys_find_none(density):
    torch.manual_seed(0)
    network = ReActNet18(width=16)
    layers = prunable_layers(network)
    # The weights as scores before pruning, in units that compare within a layer.
    scores = score_weights(layers)
    signed, signature = sign(prune(network, density), KEY, "card", magnitudes=scores)
    latents = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    apply(network, signed)
    with torch.no_grad():
        for name, layer in layers.items():
            # Training again: where the mark brought weights to life, they start from the latents they had.
            layer.weight.copy_(latents[name] + 0.3 * latents[name].std() * torch.randn_like(layer.weight))
    apply(network, signed)
    apply(network, prune(network, rate=0.1))
    stolen = regrow(current_masks(network), 0.01, seed=1)
    assert verify(stolen, KEY, signature).p_value < 1e-6
    assert min(foreign_p_values(stolen, signature, 1000)) > 1e-4
    assert min(foreign_p_values(signed, signature, 1000)) > 1e-4


def test_the_p_value_is_the_tail_over_all_outcomes():
    """Against the sum over every outcome of ten independent bits."""
    _, masks = ticket(0.1)
    for key in (KEY, "another secret key", "a third secret key"):
        signature = Signature("m", {"early": [24, 24, 6], "pointwise": [32, 32, 4]}, "", "", "")
        found = verify(masks, key, signature)
        chances, agreeing = [], 0
        for name, (filters, channels, count) in signature.layers.items():
            there = occupancy(masks[name]).double()
            kernels, wanted = mark_of(key, "m", name, filters, channels, count)
            for kernel, bit in zip(kernels, wanted, strict=True):
                chances.append(there.mean().item() if bit else 1 - there.mean().item())
                agreeing += bool(there[kernel // channels, kernel % channels]) == bit
        tail = sum(
            math.prod(p if hit else 1 - p for p, hit in zip(chances, hits, strict=True))
            for hits in itertools.product((False, True), repeat=10)
            if sum(hits) >= agreeing
        )
        assert found.agreeing == agreeing
        assert found.expected == pytest.approx(sum(chances))
        assert found.p_value == pytest.approx(tail, rel=1e-10)


def test_the_p_value_of_an_untouched_mark_is_the_chance_of_all_its_bits():
    weights, masks = ticket(0.1)
    signed, signature = sign(masks, KEY, magnitudes=weights)
    chance = 1.0
    for name, (filters, channels, count) in signature.layers.items():
        share = occupancy(signed[name]).double().mean().item()
        for bit in mark_of(KEY, "", name, filters, channels, count)[1]:
            chance *= share if bit else 1 - share
    assert 0 < chance < 1e-60
    assert verify(signed, KEY, signature).p_value == pytest.approx(chance, rel=1e-9)


def test_masks_without_information_prove_nothing():
    weights, masks = ticket(0.1)
    _, signature = sign(masks, KEY, magnitudes=weights)
    for fill in (torch.ones_like, torch.zeros_like):
        assert verify({name: fill(mask) for name, mask in masks.items()}, KEY, signature).p_value == 1


def test_a_mark_lies_in_distinct_random_kernels_that_depend_on_everything():
    arguments = {"key": KEY, "message": "m", "name": "early", "filters": 24, "channels": 24, "count": 144}
    kernels, bits = mark_of(**arguments)
    assert len(set(kernels)) == len(bits) == 144
    assert min(kernels) >= 0
    assert max(kernels) < 576
    assert mark_of(**arguments) == (kernels, bits)
    for change in ({"key": KEY + "."}, {"message": "n"}, {"name": "late"}, {"filters": 48}):
        others, other_bits = mark_of(**(arguments | change))
        assert others != kernels
        assert other_bits != bits
    # A longer message cannot be taken for a part of the name.
    assert mark_of(**(arguments | {"message": "m:e", "name": "arly"}))[0] != kernels
    drawn = [mark_of(f"a key, number {i:10}", "", "x", 8, 8, 16) for i in range(300)]
    hits = torch.bincount(torch.tensor([kernel for each, _ in drawn for kernel in each]), minlength=64).double()
    assert (hits - 75).square().sum() / 75 < 63 + 5 * (2 * 63) ** 0.5
    assert sum(sum(said) for _, said in drawn) == pytest.approx(2400, abs=5 * 4800**0.5 / 2)


def test_strong_weights_come_and_weak_ones_go():
    weights, masks = ticket(0.1)
    signed, _ = sign(masks, KEY, magnitudes=weights)
    random, _ = sign(masks, KEY)

    def kept(of):
        return sum(weights[name].abs()[mask].sum().item() for name, mask in of.items())

    assert kept(random) < kept(signed) <= kept(masks)
    assert counts(random) == counts(masks)


def test_a_signature_belongs_to_its_ticket_file(small_net, tmp_path):
    network = small_net(width=32)
    masks = prune(network, 0.3)
    signed, signature = sign(masks, KEY, "card", bits=64, created="2026-05-04")
    apply(network, signed)
    found = Ticket.of(network, score="standardized", scope="global", density=0.3,
                      details={"ownership": signature.plain()})  # fmt: skip
    save_ticket(found, tmp_path / "ticket.pt")
    back = load_ticket(tmp_path / "ticket.pt")
    read = Signature(**back.details["ownership"])
    assert read == signature
    assert verify(back.masks, KEY, read).agreement == 1
    assert KEY not in str(back.details)
    # Opened later by whoever knows masks, key, message and time; by nobody who is wrong in one of them.
    assert commitment(back.masks, KEY, "card", "2026-05-04") == read.commitment
    for other in ((masks, KEY, "card", "2026-05-04"), (signed, KEY + "x", "card", "2026-05-04"),
                  (signed, KEY, "cards", "2026-05-04"), (signed, KEY, "card", "2026-05-05")):  # fmt: skip
        assert commitment(*other) != read.commitment


def test_a_mark_outlives_stretching_where_blocks_keep_their_place():
    torch.manual_seed(0)
    shallow, deep = (ReActNet18(width=8, blocks_per_stage=[depth] * 4) for depth in (2, 3))
    signed, signature = sign(prune(shallow, 0.1), KEY, bits=128)
    apply(shallow, signed)
    stretched = stretch(Ticket.of(shallow, score="standardized", scope="global", density=0.1), deep)
    assert verify(stretched.masks, KEY, signature).agreement == 1
    # A layer that is gone, or has another width, is left out of the account.
    part = {name: mask for name, mask in signed.items() if name != "body.3.1.convolution"}
    part["body.3.0.convolution"] = signed["body.3.0.convolution"][:, :4]
    found = verify(part, KEY, signature)
    assert found.agreement == 1
    assert found.missing == ("body.3.0.convolution", "body.3.1.convolution")


def test_mistakes():
    weights, masks = ticket(0.1)
    _, signature = sign(masks, KEY)
    # A quarter of the kernels of two layers; of the third half of the survivors that are not the last of their filter.
    room = 144 + 288 + (102 - int(masks["pointwise"].flatten(1).any(1).sum())) // 2
    huge = dataclasses.replace(signature, layers={"early": [24, 24, 10**9]})
    nan = weights | {"late": weights["late"] * math.nan}
    for call, said in (
        (lambda: sign(masks, "short secret"), "key has 12 characters, so that it could be guessed; give at least 16"),
        (lambda: verify(masks, "", signature), "key has 0 characters"),
        (lambda: commitment(masks, "short secret"), "key has 12 characters"),
        (lambda: sign(masks, KEY, bits=0), f"bits=0 must be between 1 and {room}, which is what"),
        (lambda: sign(masks, KEY, bits=room + 1), f"must be between 1 and {room}"),
        (lambda: sign(masks, KEY, layers=["stem"]), "layers holds 'stem', which has no mask; choose among early, "),
        (lambda: sign(masks, KEY, magnitudes={}), "magnitudes holds nothing of the shape (24, 24, 3, 3) for 'early'"),
        (lambda: sign(masks, KEY, magnitudes=nan), "magnitudes['late'] holds values that are not finite"),
        (lambda: verify({"other": masks["late"]}, KEY, signature), "masks has none of the signed layers (early, "),
        (lambda: verify(masks, KEY, huge), "signature speaks of 1000000000 marked kernels among the 576 of 'early'"),
        (lambda: sign(ticket(1.0)[1], KEY), "bits=256 are more than 'early' can hold at a density of 1; give fewer"),
        (lambda: sign(ticket(0.002)[1], KEY), "which is what these layers can hold"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert said in str(caught.value)
        assert "secret" not in str(caught.value)
    assert len(new_key()) == 64
    assert new_key() != new_key()

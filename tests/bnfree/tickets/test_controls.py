import pytest
import torch

from bnfree.errors import InputError
from bnfree.plugins import BUILT_IN, resolve
from bnfree.tickets import (
    ControlledTicket,
    apply,
    checksum,
    effective_zeros,
    overlap,
    prune,
    random_masks,
    reinitialize,
    rewind,
    shuffle_signs,
    take_snapshot,
)

BODY = [f"body.{i}.convolution" for i in range(3)]


@pytest.fixture
def ticket(small_net):
    """A network, its snapshot and masks of unequal densities."""
    network = small_net(width=8)
    network.body[1].convolution.gain.data.mul_(0.5)
    snapshot = take_snapshot(network)
    return network, snapshot, prune(network, 0.3, score="effective")


def test_random_masks_keep_the_counts_and_share_with_the_ticket_what_chance_gives(ticket):
    _, _, masks = ticket
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    shared = {"layer": [], "global": []}
    for seed in range(40):
        within, anywhere = random_masks(masks, seed), random_masks(masks, seed, keep="global")
        assert {name: int(mask.sum()) for name, mask in within.items()} == kept
        assert sum(int(mask.sum()) for mask in anywhere.values()) == sum(kept.values())
        assert all(mask.shape == masks[name].shape for name, mask in anywhere.items())
        shared["layer"].append(overlap(masks, within))
        shared["global"].append(overlap(masks, anywhere))
    for keep, chance in (("layer", "chance_both"), ("global", "chance_both_global")):
        found = torch.tensor([float(each.both) for each in shared[keep]])
        expected = getattr(shared[keep][0], chance)
        assert abs(found.mean() - expected) < 4 * found.std() / 40**0.5
    assert shared["layer"][0].chance_both > 1.02 * shared["layer"][0].chance_both_global
    global_counts = {int(random_masks(masks, seed, keep="global")[BODY[1]].sum()) for seed in range(5)}
    assert len(global_counts) > 1


def test_controls_depend_on_their_seed_alone(ticket):
    network, snapshot, masks = ticket

    def all_of_them(seed):
        return [
            checksum(random_masks(masks, seed)),
            checksum(random_masks(masks, seed, keep="global")),
            reinitialize(network, snapshot, masks, seed)[f"{BODY[0]}.weight"].tolist(),
            shuffle_signs(network, snapshot, masks, seed)[f"{BODY[0]}.weight"].tolist(),
        ]

    first = all_of_them(1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert all_of_them(1) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(a == b for a, b in zip(all_of_them(2), first, strict=True))


def test_the_arguments_are_left_alone(ticket):
    network, snapshot, masks = ticket
    sums = checksum(masks), {name: value.clone() for name, value in snapshot.items()}
    random_masks(masks, 0, keep="global")[BODY[0]].fill_(True)
    for changed in (reinitialize(network, snapshot, masks, 0), shuffle_signs(network, snapshot, masks, 0)):
        changed[f"{BODY[0]}.weight"].fill_(7)
    assert checksum(masks) == sums[0]
    assert all(torch.equal(value, snapshot[name]) for name, value in sums[1].items())


def test_fresh_weights_are_as_large_as_the_old_ones(ticket):
    network, snapshot, masks = ticket
    snapshot[f"{BODY[1]}.weight"] = snapshot[f"{BODY[1]}.weight"] * 30 + 1
    fresh = reinitialize(network, snapshot, masks, 0)
    for name, value in fresh.items():
        if name.removesuffix(".weight") in BODY:
            assert value.std().item() == pytest.approx(snapshot[name].std().item(), rel=0.1)
            assert abs(value.mean()) < 4 * value.std() / value.numel() ** 0.5
            correlation = torch.corrcoef(torch.stack([value.flatten(), snapshot[name].flatten()]))[0, 1]
            assert abs(correlation) < 4 / value.numel() ** 0.5
        else:
            assert torch.equal(value, snapshot[name])


@pytest.mark.parametrize("options", [{}, {"norm": "batch_norm"}, {"binary_weights": False}], ids=str)
def test_signs_change_places_within_their_filter(small_net, options):
    network = small_net(width=8, **options)
    for name in BODY:
        network.get_submodule(name).weight.data.add_(0.02)
    snapshot = take_snapshot(network)
    masks = prune(network, 0.4, score="random")
    apply(network, masks)
    before = {name: network.get_submodule(name).effective_weight().detach() for name in BODY}
    rewind(network, shuffle_signs(network, snapshot, masks, seed=3), masks)
    agreeing, by_chance, kept = 0, 0.0, 0
    for name in BODY:
        after = network.get_submodule(name).effective_weight().detach()
        assert torch.equal(after != 0, masks[name])
        for old, new in zip(before[name], after, strict=True):
            positive, count = int((old > 0).sum()), int((old != 0).sum())
            assert int((new > 0).sum()) == positive
            agreeing += int((old * new > 0).sum())
            by_chance += (positive**2 + (count - positive) ** 2) / count
            kept += count
    assert agreeing == pytest.approx(by_chance, abs=4 * kept**0.5 / 2)
    others = {n: v for n, v in take_snapshot(network).items() if n.removesuffix(".weight") not in BODY}
    assert all(torch.equal(value, snapshot[name]) for name, value in others.items())


def test_magnitudes_keep_their_order_within_a_sign(small_net):
    network = small_net(width=8)
    snapshot = take_snapshot(network)
    masks = prune(network, 0.5)
    name = f"{BODY[1]}.weight"
    shuffled = shuffle_signs(network, snapshot, masks, seed=0)[name]
    for old, new, keep in zip(snapshot[name].double(), shuffled.double(), masks[BODY[1]], strict=True):
        size, value = (old[keep] - old[keep].mean()).abs(), new[keep]
        assert value.mean().abs() < 1e-6 * value.abs().mean()
        assert value.abs().sum().item() == pytest.approx(size.sum().item(), rel=1e-3)
        for same in (value > 0, value < 0):
            assert torch.equal(size[same].argsort(), value[same].abs().argsort())


def test_a_control_is_as_sparse_as_its_ticket(ticket):
    network, snapshot, masks = ticket
    apply(network, masks)
    expected = sum(effective_zeros(network).values())
    for control in (reinitialize, shuffle_signs):
        rewind(network, control(network, snapshot, masks, 1), masks)
        assert sum(effective_zeros(network).values()) == expected
    rewind(network, snapshot, random_masks(masks, 1))
    assert sum(effective_zeros(network).values()) == expected


@pytest.mark.parametrize("name", BUILT_IN["control"])
def test_a_control_by_name_takes_one_thing_away(ticket, name):
    network, complete, masks = ticket
    start = {n: 3 * value * masks[n.removesuffix(".weight")] if n.removesuffix(".weight") in masks else value
             for n, value in complete.items()}  # fmt: skip
    drawn, weights = resolve("control", name).draw(ControlledTicket(network, masks, start, complete, 7))
    scope = {"random_layerwise": "layer", "random_global": "global"}.get(name)
    assert resolve("control", name).scope == scope
    assert all(torch.equal(drawn[n], masks[n]) for n in masks) is (scope is None)
    if scope is not None:
        expected = random_masks(masks, 7, scope)
        assert all(torch.equal(drawn[n], expected[n]) for n in masks)
    for n, value in weights.items():
        layer = n.removesuffix(".weight")
        if layer not in masks:
            assert torch.equal(value, complete[n])
        elif scope is not None:
            # What the ticket has pruned is there again, for a mask that keeps it.
            assert torch.equal(value, complete[n])
        elif name == "reinit":
            # As large as all weights of the layer, where those of the ticket are three times as large.
            spread = [w.double().std(correction=0).item() for w in (value, complete[n])]
            assert spread[0] == pytest.approx(spread[1], rel=0.15)
        else:
            assert not torch.equal(value, start[n])
            assert torch.equal((value > 0).sum((1, 2, 3)), ((value > 0) & masks[layer]).sum((1, 2, 3)))


def test_mistakes(ticket):
    network, snapshot, masks = ticket
    with pytest.raises(InputError, match="keep='filter' is not known; choose 'layer' or 'global'"):
        random_masks(masks, 0, keep="filter")
    del snapshot[f"{BODY[0]}.weight"]
    with pytest.raises(InputError, match="the snapshot holds no weight of 'body.0.convolution' with the shape"):
        reinitialize(network, snapshot, masks, 0)

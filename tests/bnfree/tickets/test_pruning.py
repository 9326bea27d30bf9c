"""Exact counts, measured on the weight that the convolution uses."""

import numpy as np
import pytest
import torch

from bnfree.errors import InputError
from bnfree.tickets import (
    Score,
    apply,
    checksum,
    current_masks,
    effective_zeros,
    kept_count,
    least_density,
    level_densities,
    mask_statistics,
    prunable_layers,
    prune,
    score_weights,
)

BODY = [f"body.{i}.convolution" for i in range(3)]
WEIGHTS = {BODY[0]: 4 * 4 * 9, BODY[1]: 8 * 4 * 9, BODY[2]: 8 * 8}
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
}


def evidence(network):
    """Gradients and flip rates with many ties."""
    layers, generator = prunable_layers(network), torch.Generator().manual_seed(5)
    return {
        argument: {n: torch.randint(0, 3, m.weight.shape, generator=generator) / 2 for n, m in layers.items()}
        for argument in ("gradients", "flip_rates")
    }


def tie(network, kind):
    """Latent weights of few values."""
    for layer in prunable_layers(network).values():
        if kind == "clipped":
            layer.weight.data = torch.where(layer.weight.data > -0.1, 1.0, -1.0)
        elif kind == "equal":
            layer.weight.data.fill_(0.3)


def kept(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def zeros(network):
    return {name: effective_zeros(network)[name] for name in BODY}


@pytest.mark.parametrize("score", ["standardized", "effective", "latent", "flip", "snip", "random"])
@pytest.mark.parametrize("scope", ["global", "layer", "filter", "block32", "block64"])
@pytest.mark.parametrize(
    ("options", "ties"),
    [
        ({}, None), ({}, "clipped"), ({}, "equal"), ({"binary_weights": False}, None), ({"norm": "batch_norm"}, None),
        ({"binary_weights": False, "norm": "batch_norm"}, "clipped"),
    ],
    ids=str,
)  # fmt: skip
def test_effective_zeros_are_what_the_density_says(small_net, score, scope, options, ties):
    network = small_net(**options)
    tie(network, ties)
    given = evidence(network)
    for density in (0.61, 0.37):
        masks = prune(network, density, score=score, scope=scope, seed=1, **given)
        apply(network, masks)
        assert zeros(network) == {name: WEIGHTS[name] - n for name, n in kept(masks).items()}
        if scope in ("layer", "filter"):
            assert kept(masks) == {name: int(n * density + 0.5) for name, n in WEIGHTS.items()}
        elif scope == "global":
            assert sum(kept(masks).values()) == int(496 * density + 0.5)
        else:
            # Blocks of 4 and of 8 weights: at most the density, and not a smallest block below it.
            assert 0 <= int(496 * density + 0.5) - sum(kept(masks).values()) < 4


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("options", [{}, {"binary_weights": False}], ids=str)
def test_nothing_comes_back_in_fifty_steps(small_net, train, make_optimizer, options):
    network = small_net(**options)
    masks = prune(network, 0.2)
    apply(network, masks)
    before = network.body[0].convolution.weight.detach().clone()
    train(network, make_optimizer, 50)
    assert not torch.equal(network.body[0].convolution.weight, before)
    assert zeros(network) == {name: WEIGHTS[name] - n for name, n in kept(masks).items()}
    assert checksum(current_masks(network)) == checksum(masks)


@pytest.mark.parametrize("scope", ["global", "layer", "filter"])
def test_the_highest_scores_stay(small_net, scope):
    network = small_net()
    masks = prune(network, 0.4, scope=scope, min_per_filter=0)
    scores = {name: s.numpy() for name, s in score_weights(prunable_layers(network)).items()}
    if scope == "global":
        ranked = np.sort(np.concatenate([s.ravel() for s in scores.values()]))[::-1]
        threshold = dict.fromkeys(BODY, ranked[kept_count(496, 0.4) - 1])
    else:
        threshold = {n: np.sort(s.ravel())[::-1][kept_count(s.size, 0.4) - 1] for n, s in scores.items()}
    for name, mask in masks.items():
        if scope != "filter":
            assert np.array_equal(mask.numpy(), scores[name] >= threshold[name])
            continue
        for row, keep in zip(scores[name], mask.numpy(), strict=True):
            assert row[keep].min() > row[~keep].max()
        counts = mask.flatten(1).sum(1).numpy()
        fewest = counts.min()
        assert set(counts) <= {fewest, fewest + 1}
        # The filters that keep one more are those whose next weight scores highest.
        nth = np.sort(scores[name].reshape(len(counts), -1), axis=1)[:, ::-1][:, fewest]
        assert set(np.argsort(nth)[::-1][: (counts > fewest).sum()]) == set(np.flatnonzero(counts > fewest))


@pytest.mark.parametrize("scope", ["global", "layer", "filter", "block32"])
def test_what_is_pruned_stays_pruned_level_after_level(small_net, scope):
    network = small_net(width=8)
    weights = sum(layer.weight.numel() for layer in prunable_layers(network).values())
    before = current_masks(network)
    for density in level_densities(0.3, target_density=0.12)[1:]:
        masks = prune(network, density, scope=scope, min_per_filter=0)
        assert all((masks[name] <= before[name]).all() for name in BODY)
        total = sum(kept(masks).values())
        if scope == "global":
            assert total == kept_count(weights, density)
        assert total == pytest.approx(weights * density, abs=8)
        apply(network, masks)
        with torch.no_grad():
            # As if the network had been trained between the levels.
            for name in BODY:
                network.get_submodule(name).weight.normal_()
        before = masks


def test_a_rate_is_a_share_of_the_survivors(small_net):
    network = small_net()
    apply(network, prune(network, rate=0.2))
    assert sum(kept(current_masks(network)).values()) == kept_count(496, 0.8)
    apply(network, prune(network, rate=0.5, scope="layer"))
    first = kept(current_masks(network))
    apply(network, prune(network, rate=0.25, scope="filter"))
    assert kept(current_masks(network)) == {name: kept_count(n, 0.75) for name, n in first.items()}


@pytest.fixture
def indifferent():
    """A score that is the same for every weight."""

    class Indifferent(Score):
        @staticmethod
        def score(layer):
            return torch.ones(layer.weight.shape)

    return Indifferent


def test_ties_are_spread_over_layers_and_filters(small_net, indifferent):
    network = small_net(width=8)
    masks = prune(network, 0.3, score=indifferent)
    for mask in masks.values():
        assert int(mask.sum()) == pytest.approx(0.3 * mask.numel(), abs=2)
        fan_in = mask[0].numel()
        assert mask.flatten(1).sum(1).float().sub(0.3 * fan_in).abs().max() < 3
        # A pattern would prune the same tap of every filter.
        assert mask.float().mean(0).max() < 1


def test_blocks_are_kept_or_pruned_as_a_whole(small_net):
    network = small_net(width=20)
    layers = prunable_layers(network)
    masks = prune(network, 0.35, scope="block32", min_per_filter=0)
    scores = score_weights(layers)
    sizes = set()
    means = {True: [], False: []}
    for name, mask in masks.items():
        for start in range(0, mask.shape[1], 32):
            block, score = mask[:, start : start + 32], scores[name][:, start : start + 32]
            assert torch.equal(block.any(1), block.all(1))
            sizes.add(block.shape[1])
            for keep in (True, False):
                means[keep] += score.double().mean(1)[block.any(1) == keep].tolist()
    assert sizes == {20, 32, 8}
    quota = kept_count(sum(mask.numel() for mask in masks.values()), 0.35)
    assert 0 <= quota - sum(kept(masks).values()) < 8
    # The highest means stay, but for the smaller blocks that fill up the rest.
    assert sum(mean < max(means[False]) for mean in means[True]) < 3
    whole = prune(network, 0.35, scope="block64")
    assert all(torch.equal(mask.any(1), mask.all(1)) for mask in whole.values())


def test_unstructured_masks_can_go_on_as_blocks(small_net):
    network = small_net(width=8)
    first = prune(network, 0.6)
    apply(network, first)
    masks = prune(network, 0.3, scope="block32")
    for name, mask in masks.items():
        survivors = first[name].sum(1)
        assert torch.equal(mask.sum(1), survivors * mask.any(1))
    assert 0 <= kept_count(sum(m.numel() for m in masks.values()), 0.3) - sum(kept(masks).values()) < 8


def test_no_filter_is_emptied_unless_it_is_wished(small_net):
    network = small_net()
    # Of `effective`, filters without a gain would go first, as a whole.
    network.body[0].convolution.gain.data[:2] = 1e-4
    for guard, empty, fewest in ((0, 2, 0), (1, 0, 1), (3, 0, 3)):
        masks = prune(network, 0.5, score="effective", min_per_filter=guard)
        assert mask_statistics(masks).layers[0].empty_filters == empty
        assert masks[BODY[0]].flatten(1).sum(1).min() == fewest
        assert sum(kept(masks).values()) == 248
        if guard:
            scores = score_weights(prunable_layers(network), "effective")[BODY[0]]
            best = scores[0].flatten().argsort(descending=True)[:guard]
            assert masks[BODY[0]][0].flatten()[best].all()


@pytest.mark.parametrize("scope", ["global", "block32"])
def test_no_layer_holds_up_the_signal(small_net, scope):
    network = small_net()
    network.body[2].convolution.gain.data.fill_(1e-4)
    options = {"score": "effective", "scope": scope, "min_per_filter": 0}
    assert prune(network, 0.5, **options)[BODY[2]].float().mean() < 0.2
    masks = prune(network, 0.5, min_layer_density=0.25, **options)
    assert masks[BODY[2]].float().mean() == 0.25
    assert sum(kept(masks).values()) == 248


@pytest.mark.parametrize("scope", ["global", "layer", "filter", "block32"])
@pytest.mark.parametrize("guards", [(1, 0.0), (2, 0.1), (0, 0.3), (5, 0.0)], ids=str)
def test_guards_can_be_met_down_to_the_density_that_is_said(small_net, scope, guards):
    network = small_net()
    layers = prunable_layers(network)
    least = least_density(layers, scope, *guards)
    for seed in range(3):
        masks = prune(network, least, score="random", seed=seed, scope=scope, min_per_filter=guards[0],
                      min_layer_density=guards[1])  # fmt: skip
        assert all(mask.flatten(1).sum(1).min() >= guards[0] for mask in masks.values())
        assert all(mask.float().mean() >= guards[1] - 1e-6 for mask in masks.values())
    if scope != "block32":
        with pytest.raises(InputError, match="keep [0-9]+; prune less, or lower these two"):
            prune(network, least - 1 / 64, scope=scope, min_per_filter=guards[0], min_layer_density=guards[1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "density=None and rate=None: give exactly one of the two"),
        ({"density": 0.5, "rate": 0.5}, "give exactly one"),
        ({"density": 0.0}, "density=0.0 must be above 0 and at most 1"),
        ({"density": 20}, "density=20 must be"),
        ({"rate": 1.0}, "rate=1.0 must be between 0 and 1"),
        ({"density": 0.5, "scope": "channel"}, "scope='channel' is not known; choose from global, layer, filter, bl"),
        ({"density": 0.5, "score": "l1"}, "score='l1' is not known"),
        ({"density": 0.5, "min_per_filter": -1}, "min_per_filter=-1 must be at least 0"),
        ({"density": 0.5, "min_layer_density": 2}, "min_layer_density=2 must be between 0 and 1"),
        ({"density": 0.01}, "leaves 5 weights of the network, but min_per_filter=1"),
        ({"density": 0.01, "scope": "filter"}, "leaves 1 weights of 'body.0.convolution'"),
    ],
)
def test_mistakes(small_net, options, said):
    with pytest.raises(InputError) as caught:
        prune(small_net(), **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pruned_weights_do_not_grow_back(small_net):
    network = small_net()
    apply(network, prune(network, 0.3))
    assert checksum(prune(network, 0.3)) == checksum(current_masks(network))
    with pytest.raises(InputError, match="density=0.4 is above 0.3.*, the present density of the network"):
        prune(network, 0.4)


def test_masks_depend_on_the_network_alone(small_net, indifferent):
    for score in ("standardized", "random", indifferent):
        network = small_net()
        first = checksum(prune(network, 0.3, score=score))
        torch.manual_seed(123)
        network.to(memory_format=torch.channels_last)
        assert checksum(prune(network, 0.3, score=score)) == first
        assert checksum(prune(small_net(), 0.3, score=score)) == first
    assert checksum(prune(small_net(), 0.3, score="random", seed=1)) != checksum(
        prune(small_net(), 0.3, score="random", seed=2)
    )

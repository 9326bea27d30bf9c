"""Masks from scores, and the gradient that moves the scores."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.tickets import (
    MultiPrize,
    Ticket,
    effective_zeros,
    load_ticket,
    masks_of_scores,
    prunable_layers,
    ramped_density,
    save_ticket,
)

BODY = [f"body.{i}.convolution" for i in range(3)]


def images(count=6, size=5):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def train(network, prize, steps, density=0.4, scope="layer", make_optimizer=None):
    make_optimizer = make_optimizer or (lambda parameters: torch.optim.Adam(parameters, lr=0.05))
    optimizer = make_optimizer([p for p in network.parameters() if p.requires_grad])
    prize.update(density, scope)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(images()), torch.arange(6) % 3).backward()
        optimizer.step()
        prize.update(density, scope)


def by_sorting(scores, density, shapes_together):
    """The survivors without ties: each filter's best, then the best of all, by Python's sort."""
    kept = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    for group in [list(scores)] if shapes_together else [[name] for name in scores]:
        quota = int(density * sum(scores[name].numel() for name in group) + 0.5)
        entries = []
        for name in group:
            rows = scores[name].abs().flatten(1).tolist()
            for row, values in enumerate(rows):
                best = max(values)
                entries += [(value != best, -value, name, row, i) for i, value in enumerate(values)]
        for *_, name, row, i in sorted(entries)[:quota]:
            kept[name][row].view(-1)[i] = True
    return kept


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("density", [1.0, 0.5, 0.2, 0.15])
def test_keeps_the_largest_scores_of_either_sign(scope, density):
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (4, 3, 3, 3), "b": (8, 10, 1, 1), "c": (2, 5, 3, 3)}
    scores = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found, expected = masks_of_scores(scores, density, scope), by_sorting(scores, density, scope == "global")
    assert all(torch.equal(found[name], mask) for name, mask in expected.items())
    assert all(mask.flatten(1).any(1).all() for mask in found.values())


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_counts_are_exact_with_heavy_ties(scope):
    scores = {"a": torch.ones(4, 3, 3, 3), "b": torch.full((8, 6, 3, 3), -1.0), "c": torch.zeros(4, 4, 3, 3)}
    scores["b"][::2] = 0.5
    weights = sum(score.numel() for score in scores.values())
    for density in (0.05, 0.3, 0.77):
        first, second = (masks_of_scores(scores, density, scope) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in scores)
        kept = {name: int(mask.sum()) for name, mask in first.items()}
        if scope == "global":
            assert sum(kept.values()) == int(density * weights + 0.5)
        else:
            assert kept == {name: int(density * score.numel() + 0.5) for name, score in scores.items()}


def test_what_cannot_be_kept_is_said():
    scores = {"a": torch.ones(4, 3, 3, 3), "b": torch.ones(8, 1, 1, 1)}
    with pytest.raises(InputError, match="density=0.5 leaves 4 weights of 'b' for 8 filters"):
        masks_of_scores(scores, 0.5)
    assert sum(int(mask.sum()) for mask in masks_of_scores(scores, 0.5, "global").values()) == 58
    with pytest.raises(InputError, match="density=0 must be above 0"):
        masks_of_scores(scores, 0)
    with pytest.raises(InputError, match="scope='filter' is not known"):
        masks_of_scores(scores, 0.5, "filter")
    scores["a"][0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="scores of 'a' are not finite"):
        masks_of_scores(scores, 0.9)


def test_density_ramp_is_cubic():
    assert [ramped_density(t, 0.5, 0.1) for t in (0, 1, 3)] == [0.5, 0.1, 0.1]
    for t in (0.1, 0.5, 0.9):
        zeros = 0.9 + (0.5 - 0.9) * (1 - t) ** 3
        assert ramped_density(t, 0.5, 0.1) == pytest.approx(1 - zeros)


def scored(standardize=True, binary_weights=True, density=0.4, in_channels=3):
    torch.manual_seed(0)
    layer = BinaryConv2d(
        in_channels, 4, 3, padding=1, standardize=standardize, binary_weights=binary_weights, gain=True
    ).double()
    nn.init.uniform_(layer.gain, 0.5, 2)
    network = nn.Sequential(layer)
    prize = MultiPrize(network, {"0": layer}, seed=3)
    prize.update(density)
    return layer, network, prize


@pytest.mark.parametrize("binary_weights", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_gradient_of_the_scores_is_that_of_the_rule(standardize, binary_weights):
    layer, network, _ = scored(standardize, binary_weights)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    (network(x) ** 3).sum().backward()

    # The rule by hand, filter by filter: dL/dS = dL/dB * gain * w_hat * sign(S).
    weight, mask = layer.weight.detach(), layer.mask
    stands_behind = torch.zeros_like(weight)
    effective = torch.zeros_like(weight)
    for i in range(4):
        kept = weight[i][mask[i]]
        w_hat = weight[i]
        if standardize:
            w_hat = (weight[i] - kept.mean()) / ((kept.std(correction=0) + 1e-5) * len(kept) ** 0.5)
        stands_behind[i] = layer.gain[i].detach() * w_hat
        size = torch.full_like(w_hat, w_hat[mask[i]].abs().mean()).copysign(w_hat) if binary_weights else w_hat
        effective[i] = layer.gain[i].detach() * size * mask[i]
    assert torch.allclose(layer.effective_weight(), effective, rtol=1e-12, atol=0)
    effective.requires_grad_()
    (F.conv2d(x, effective, padding=1) ** 3).sum().backward()
    expected = effective.grad * stands_behind * torch.where(layer.score >= 0, 1.0, -1.0)
    assert torch.allclose(layer.score.grad, expected, rtol=1e-9, atol=1e-12)
    assert (layer.score.grad[~mask] != 0).all()
    assert layer.weight.grad is None


def test_small_steps_of_the_scores_of_pruned_and_kept_weights_lower_the_loss_that_the_rule_sees():
    # L as a function of B = gain * w_hat * |S| / |S0|, the function that the rule takes the gradient of.
    layer, network, _ = scored(binary_weights=False)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    loss = (network(x) ** 2).sum()
    loss.backward()
    score, gradient = layer.score.detach(), layer.score.grad
    kept = weight_hat = layer.effective_weight().detach() / layer.gain.detach()
    eps = 1e-6 * gradient / gradient.norm()
    moved = kept + weight_hat * ((score + eps).abs() - score.abs()) * layer.mask
    change = (F.conv2d(x, layer.gain.detach() * moved, padding=1) ** 2).sum() - loss.detach()
    assert change.item() == pytest.approx((gradient * eps * layer.mask).sum().item(), rel=1e-4)


def test_a_filter_of_equal_weights_and_a_filter_of_one_survivor_keep_finite_gradients():
    layer, network, prize = scored(in_channels=2)
    with torch.no_grad():
        layer.weight[0] = 0.3
        layer.score[1] = 0
        layer.score[1, 0, 1, 1] = 5
        layer.score[2] = 0
    prize.update(0.3)
    assert layer.mask[1].sum() == 1
    network(torch.randn(2, 2, 5, 5, dtype=torch.float64)).square().sum().backward()
    assert layer.score.grad.isfinite().all()
    assert (layer.score.grad[1] != 0).any()
    assert (layer.effective_weight() == 0).sum() == (~layer.mask).sum()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_effective_zeros_are_those_of_the_density_after_training(small_net, scope):
    network = small_net()
    before = {name: layer.weight.detach().clone() for name, layer in prunable_layers(network).items()}
    prize = MultiPrize(network)
    train(network, prize, 3, 0.4, scope, lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.01))
    zeros = effective_zeros(network)
    weights = {name: weight.numel() for name, weight in before.items()}
    if scope == "global":
        assert sum(weights.values()) - sum(zeros[name] for name in BODY) == int(0.4 * sum(weights.values()) + 0.5)
    else:
        assert {n: weights[n] - zeros[n] for n in BODY} == {n: int(0.4 * weights[n] + 0.5) for n in BODY}
    assert all(torch.equal(layer.weight, before[name]) for name, layer in prize.layers.items())


def test_masks_change_in_place_and_weights_come_back(small_net):
    network = small_net()
    prize = MultiPrize(network)
    prize.update(0.4)
    masks = {name: layer.mask for name, layer in prize.layers.items()}
    first = {name: mask.clone() for name, mask in masks.items()}
    train(network, prize, 10)
    assert all(layer.mask is masks[name] for name, layer in prize.layers.items())
    assert any((masks[name] & ~first[name]).any() for name in masks)


@pytest.mark.parametrize("norm", ["bn_free", "none", "batch_norm"])
@pytest.mark.parametrize("binary_weights", [True, False])
def test_a_plain_network_with_the_ticket_gives_the_same_outputs(small_net, tmp_path, norm, binary_weights):
    network = small_net(norm=norm, binary_weights=binary_weights)
    # A layer with scores is never lean, and lean sums are rounded differently.
    network.lean = False
    prize = MultiPrize(network)
    train(network, prize, 3)
    network.eval()
    outputs = network(images())
    save_ticket(Ticket.of(network, score="multi_prize", scope="layer", density=0.4), tmp_path / "ticket.pt")
    prize.close()
    assert type(network.body[0].convolution) is BinaryConv2d
    assert torch.equal(network(images()), outputs)
    for state in (network.state_dict(), load_ticket(tmp_path / "ticket.pt").start()):
        plain = small_net(seed=1, norm=norm, binary_weights=binary_weights).eval()
        plain.lean = False
        plain.load_state_dict(state)
        assert torch.equal(plain(images()), outputs)
        assert not any("score" in name for name in plain.state_dict())


def test_scores_are_in_no_state_dict_and_loading_leaves_them(small_net):
    network = small_net()
    names = set(network.state_dict())
    prize = MultiPrize(network)
    prize.update(0.4)
    assert set(network.state_dict()) == names | {f"{name}.mask" for name in BODY}
    scores = prize.scores
    network.load_state_dict(network.state_dict())
    assert all(torch.equal(prize.scores[name], score) for name, score in scores.items())
    copied = copy.deepcopy(network)
    assert torch.equal(copied(images()), network(images()))


def test_goes_on_from_scores(small_net):
    network = small_net()
    prize = MultiPrize(network, seed=1)
    other = MultiPrize(small_net(), seed=2)
    other.load_scores(prize.scores)
    for each in (prize, other):
        each.update(0.3)
    assert all(torch.equal(prize.layers[name].mask, other.layers[name].mask) for name in BODY)
    with pytest.raises(InputError, match="scores are of other layers"):
        other.load_scores({BODY[0]: prize.scores[BODY[0]]})


def test_seeds_draw_scores_without_the_global_random_state(small_net):
    random = torch.get_rng_state()
    first, again, other = (MultiPrize(small_net(), seed=seed).scores for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(first[name], again[name]) for name in BODY)
    assert not torch.equal(first[BODY[0]], other[BODY[0]])
    bound = 36**-0.5
    assert 0.95 * bound < first[BODY[1]].abs().max() <= bound


def trainable(network):
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_what_is_learned_beside_the_scores(small_net):
    scores = {f"{name}.score" for name in BODY}
    everything = trainable(small_net())
    for learned, expected in {
        "everything": everything - {f"{name}.weight" for name in BODY},
        "gains_and_shifts": {
            name for name in everything if not name.endswith("convolution.weight") and "classifier" not in name
            and not name.endswith("projection.weight")
        },
        "scores": set(),
    }.items():  # fmt: skip
        network = small_net()
        prize = MultiPrize(network, learned=learned)
        assert trainable(network) == expected | scores, learned
        prize.close()
        assert trainable(network) == everything
    with pytest.raises(InputError, match="learned='gains' is not known"):
        MultiPrize(small_net(), learned="gains")


def test_signed_constant_weights_keep_their_signs_under_every_mask(small_net):
    network = small_net()
    drawn = {name: layer.weight.detach().clone() for name, layer in prunable_layers(network).items()}
    prize = MultiPrize(network)
    prize.make_signed_constant()
    for density in (0.3, 0.6, 0.9):
        prize.update(density)
        for name, layer in prize.layers.items():
            assert layer.weight.abs().unique().numel() == 1
            assert layer.weight.abs().max().item() == pytest.approx(drawn[name].double().std(correction=0).item())
            assert torch.equal(layer.effective_weight().sign(), layer.mask * torch.where(drawn[name] >= 0, 1.0, -1.0))


def test_training_scores_learns_what_random_masks_do_not():
    # With everything else frozen nothing but the masks can lower the loss.
    losses = []
    for learns in (True, False):
        torch.manual_seed(0)
        network = ReActNet18(3, width=8)
        prize = MultiPrize(network, learned="scores")
        x = torch.randn(12, 3, 16, 16)
        labels = torch.arange(12) % 3
        parameters = [layer.score for layer in prize.layers.values()]
        optimizer = torch.optim.Adam(parameters, lr=0.01 if learns else 0.0)
        prize.update(0.4)
        for _ in range(15):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), labels)
            loss.backward()
            optimizer.step()
            prize.update(0.4)
        losses.append(loss.item())
    assert losses[0] < 0.5 * losses[1]


def test_pruned_networks_and_other_layers_are_refused(small_net):
    network = small_net()
    network.body[0].convolution.set_mask(torch.arange(144).view(4, 4, 3, 3) % 2 == 0)
    with pytest.raises(InputError, match=r"'body.0.convolution' is pruned already"):
        MultiPrize(network)

    class Mine(BinaryConv2d):
        pass

    with pytest.raises(InputError, match="'0' is a Mine"):
        MultiPrize(nn.Sequential(Mine(2, 2, 3)))

import numpy as np
import pytest
import torch
from torch.nn.utils import prune as torch_prune

from bnfree.errors import InputError
from bnfree.tickets import Score, apply, prunable_layers, prune, score_weights

BODY = [f"body.{i}.convolution" for i in range(3)]


@pytest.fixture(params=[{}, {"binary_weights": False}, {"norm": "batch_norm"}], ids=["binary", "real", "twin"])
def layers(request, small_net):
    """Layers of a pruned network with gains and latent weights of no special size."""
    network = small_net(**request.param)
    generator = torch.Generator().manual_seed(1)
    for layer in prunable_layers(network).values():
        layer.weight.data.add_(0.1).mul_(torch.rand(len(layer.weight), 1, 1, 1, generator=generator) * 3)
        if layer.gain is not None:
            layer.gain.data.copy_(torch.randn(layer.gain.shape, generator=generator))
    apply(network, prune(network, 0.6, score="random"))
    return prunable_layers(network)


def rows(layer):
    """The survivors of each filter in float64, minus their mean where the layer standardises."""
    for o, (row, keep) in enumerate(zip(layer.weight.detach().double().numpy(), layer.mask.numpy(), strict=True)):
        kept = row[keep]
        yield o, keep, kept - kept.mean() if layer.standardize and len(kept) > 1 else kept


def check(layers, score, formula, **given):
    found = score_weights(layers, score, **given)
    assert list(found) == list(layers)
    for name, layer in layers.items():
        expected = np.full(layer.weight.shape, -np.inf)
        for o, keep, kept in rows(layer):
            expected[o][keep] = formula(layer, o, kept)
        assert found[name].dtype == torch.float32
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6, atol=1e-9)


def test_standardized_is_in_units_of_the_filters_deviation(layers):
    check(layers, "standardized", lambda layer, o, kept: abs(kept) / np.sqrt(np.mean(kept**2)))


def test_effective_is_the_magnitude_of_the_weight_without_its_fan_in(layers):
    def formula(layer, o, kept):
        gain = 1.0 if layer.gain is None else abs(layer.gain[o].item())
        return gain * abs(kept) / (kept.std() + layer.eps if layer.standardize else 1)

    check(layers, "effective", formula)


def test_latent_is_plain_magnitude(layers):
    found = score_weights(layers, "latent")
    for name, layer in layers.items():
        expected = layer.weight.detach().abs().masked_fill(~layer.mask, -torch.inf)
        assert torch.equal(found[name], expected)


def test_flip_lets_the_undecided_go(layers):
    rates = {name: torch.full(layer.weight.shape, 0.25) for name, layer in layers.items()}
    check(layers, "flip", lambda layer, o, kept: 0.75 * abs(kept) / np.sqrt(np.mean(kept**2)), flip_rates=rates)
    rates = {name: torch.ones(layer.weight.shape) for name, layer in layers.items()}
    check(layers, "flip", lambda layer, o, kept: 0 * kept, flip_rates=rates)


def test_snip_is_weight_times_gradient_where_the_convolution_has_them(layers):
    gradients = {name: torch.randn(layer.weight.shape) for name, layer in layers.items()}
    found = score_weights(layers, "snip", gradients=gradients)
    for name, layer in layers.items():
        expected = (layer.effective_weight() * gradients[name]).abs().masked_fill(~layer.mask, -torch.inf)
        torch.testing.assert_close(found[name], expected.detach())


def test_random_depends_on_seed_and_layer_and_on_nothing_else(layers):
    first = score_weights(layers, "random", seed=3)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    again = score_weights(dict(reversed(layers.items())), "random", seed=3)
    assert all(torch.equal(first[name], again[name]) for name in BODY)
    torch.set_rng_state(state)
    score_weights(layers, "random", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first[BODY[0]], score_weights(layers, "random", seed=4)[BODY[0]])
    survivors = torch.cat([first[name][layer.mask] for name, layer in layers.items()])
    assert survivors.min() >= 0
    assert survivors.max() <= 1
    assert abs(survivors.mean() - 0.5) < 4 * 12**-0.5 * len(survivors) ** -0.5


def test_standardised_scores_do_not_feel_scale_and_shift_of_a_filter(small_net):
    network = small_net()
    layers = prunable_layers(network)
    before = {score: score_weights(layers, score) for score in ("standardized", "effective", "latent")}
    for layer in layers.values():
        layer.weight.data = layer.weight.data * torch.logspace(0, 2, len(layer.weight)).view(-1, 1, 1, 1) + 0.7
    for name in BODY:
        found = score_weights(layers, "standardized")[name]
        torch.testing.assert_close(found, before["standardized"][name], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(score_weights(layers, "latent")[BODY[0]], before["latent"][BODY[0]], rtol=0.5)


@pytest.mark.parametrize("score", ["standardized", "effective", "latent"])
def test_a_global_ranking_does_not_prefer_the_layer_with_larger_latents(small_net, score):
    network = small_net(width=8)
    expected = prune(network, 0.3, score=score)
    for name, layer in prunable_layers(network).items():
        layer.weight.data *= {BODY[0]: 16, BODY[1]: 1, BODY[2]: 0.25}[name]
    found = prune(network, 0.3, score=score)
    # Powers of two change no rounding, except where eps is added to the standard deviation.
    differing = sum(int((found[name] != expected[name]).sum()) for name in BODY)
    assert differing <= (4 if score == "effective" else 0)


def test_a_filter_of_zeros_scores_zero(small_net):
    network = small_net()
    network.body[0].convolution.weight.data[1] = 0
    for score in ("standardized", "effective", "latent"):
        assert (score_weights(prunable_layers(network), score)[BODY[0]][1] == 0).all()


def test_a_new_score_is_a_subclass(small_net):
    class CentreFirst(Score):
        name = "centre_first"

        @staticmethod
        def score(layer):
            distance = torch.ones(layer.weight.shape[-2:])
            distance[distance.shape[0] // 2, distance.shape[1] // 2] = 2
            return distance.expand(layer.weight.shape)

    for score in ("centre_first", CentreFirst):
        network = small_net()
        masks = prune(network, 1 / 9, score=score, layers={BODY[0]: network.body[0].convolution})
        assert torch.equal(masks[BODY[0]], torch.eye(3)[1].outer(torch.eye(3)[1]).bool().expand(4, 4, 3, 3))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"score": "hessian"},
            "score='hessian' is not known; choose from standardized, effective, latent",
        ),
        ({"score": "standardised"}, "score='standardised' is not known; did you mean 'standardized'?"),
        (
            {"score": "bnfree.tickets.prune"},
            "score='bnfree.tickets.prune' is no score; give a subclass",
        ),
        ({"score": "snip"}, f"gradients holds nothing for '{BODY[0]}', which score='snip' needs"),
        ({"score": "flip", "flip_rates": {}}, "flip_rates holds nothing for"),
        ({"score": "snip", "gradients": {BODY[0]: torch.ones(2)}}, "has shape (2,), the weight (4, 4, 3, 3)"),
        ({"score": "snip", "gradients": {BODY[0]: torch.full((4, 4, 3, 3), float("nan"))}}, "not finite"),
    ],
)
def test_mistakes(small_net, options, said):
    with pytest.raises(InputError) as caught:
        score_weights(prunable_layers(small_net()), **options)
    assert said in str(caught.value)


def test_diverged_weights_are_refused_unless_they_are_pruned(small_net):
    network = small_net()
    layer = network.body[0].convolution
    layer.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="holds values that are not finite; prune a network that has not diverged"):
        score_weights(prunable_layers(network))
    mask = torch.ones(layer.weight.shape)
    mask[0, 0, 0, 0] = 0
    layer.set_mask(mask)
    assert score_weights(prunable_layers(network))[BODY[0]][0, 0, 0, 0] == -torch.inf


def plain_copies(layers):
    """Convolutions of torch with the same weights and masks."""
    copies = {}
    for name, layer in layers.items():
        out, inside, height, width = layer.weight.shape
        copies[name] = torch.nn.Conv2d(inside, out, (height, width), bias=False)
        copies[name].weight.data.copy_(layer.weight.detach())
        if layer.mask is not None:
            torch_prune.custom_from_mask(copies[name], "weight", layer.mask)
    return copies


@pytest.mark.parametrize("density", [0.45, 0.1])
def test_magnitude_and_global_are_global_unstructured_of_torch_and_open_lths_formula(layers, density):
    total = sum(layer.weight.numel() for layer in layers.values())
    left = sum(int(layer.mask.sum()) for layer in layers.values())
    network = _holder(layers)
    found = prune(network, density, score="magnitude", scope="global", layers=layers, min_per_filter=0)
    copies = plain_copies(layers)
    torch_prune.global_unstructured(
        [(copy, "weight") for copy in copies.values()], torch_prune.L1Unstructured, amount=left - round(density * total)
    )
    assert all(torch.equal(found[name], copy.weight_mask.bool()) for name, copy in copies.items())
    # open_lth, pruning/sparse_global.py: a weight stays if it is greater than the n-th of the sorted survivors.
    survivors = torch.cat([layer.weight.detach().abs()[layer.mask] for layer in layers.values()])
    fraction = 0.2
    number = int(np.ceil(fraction * left))
    threshold = survivors.sort().values[number]
    theirs = {name: (layer.weight.detach().abs() > threshold) & layer.mask for name, layer in layers.items()}
    kept = (left - number - 1) / total
    ours = prune(network, kept, score="magnitude", scope="global", layers=layers, min_per_filter=0)
    assert all(torch.equal(ours[name], theirs[name]) for name in layers)
    divided = prune(network, kept, score="latent", scope="global", layers=layers, min_per_filter=0)
    assert any(not torch.equal(divided[name], theirs[name]) for name in layers)


def test_latent_and_layer_are_l1_unstructured_of_torch(layers):
    found = prune(_holder(layers), 0.25, score="latent", scope="layer", layers=layers, min_per_filter=0)
    for name, copy in plain_copies(layers).items():
        left, total = int(layers[name].mask.sum()), layers[name].weight.numel()
        torch_prune.l1_unstructured(copy, "weight", amount=left - int(found[name].sum()))
        assert torch.equal(found[name], copy.weight_mask.bool())
        assert int(found[name].sum()) == round(0.25 * total)


def _holder(layers):
    return torch.nn.ModuleList(layers.values())

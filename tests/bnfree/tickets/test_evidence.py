import copy

import pytest
import torch
from torch.nn import functional as F

from bnfree.errors import InputError
from bnfree.tickets import FlipCounts, apply, effective_gradients, prunable_layers, prune

BODY = [f"body.{i}.convolution" for i in range(3)]


def test_gradients_are_those_of_the_effective_weights(small_net):
    network = small_net().double()
    apply(network, prune(network, 0.5))
    layers = prunable_layers(network)
    x, r = torch.randn(3, 4, 6, 6, dtype=torch.float64), torch.randn(3, 8, 3, 3, dtype=torch.float64)
    layer = network.body[1].convolution
    found = effective_gradients(network, [lambda: (layer(x) * r).sum(), lambda: (layer(2 * x) * r).sum()], layers)
    expected = 3 * torch.nn.grad.conv2d_weight(x, layer.weight.shape, r, stride=2, padding=1)
    torch.testing.assert_close(found[BODY[1]], expected)
    assert (found[BODY[0]] == 0).all()


def test_gradients_against_finite_differences_of_the_mask(small_net):
    network = small_net(norm="batch_norm", binary_weights=False).double().eval()
    layer = network.body[2].convolution
    images, labels = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])

    def loss():
        return F.cross_entropy(network(images), labels)

    found = effective_gradients(network, [loss])[BODY[2]] * layer.effective_weight().detach()
    base, step = layer.weight.detach().clone(), 1e-6
    for index in [(0, 0, 0, 0), (3, 5, 0, 0), (7, 7, 0, 0)]:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                layer.weight.copy_(base)[index] *= 1 + sign * step
                values.append(loss().item())
        assert found[index].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4, abs=1e-9)


def test_the_network_is_left_as_it_was(small_net):
    network = small_net()
    network(torch.randn(2, 3, 5, 5)).sum().backward()
    before, slopes = copy.deepcopy(network), [p.grad.clone() for p in network.parameters()]
    gradients = effective_gradients(network, [lambda: network(torch.ones(1, 3, 5, 5)).square().sum()])
    assert all((gradient != 0).any() for gradient in gradients.values())
    for old, slope, new in zip(before.parameters(), slopes, network.parameters(), strict=True):
        assert torch.equal(old, new)
        assert torch.equal(slope, new.grad)
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(before(x), network(x))
    with pytest.raises(RuntimeError, match="stop"):
        effective_gradients(network, [lambda: exec("raise RuntimeError('stop')")])
    assert not any(module._forward_hooks for module in network.modules())


def test_a_loss_is_needed(small_net):
    with pytest.raises(InputError, match="losses is empty"):
        effective_gradients(small_net(), [])


def test_flips_are_counted_between_observations(small_net):
    network = small_net()
    layers = prunable_layers(network)
    apply(network, prune(network, 0.5))
    layer = network.body[0].convolution
    counts = FlipCounts(layers)
    assert all((rate == 0).all() for rate in counts.rates().values())
    latent = layer.weight.detach().clone()
    expected = torch.zeros(latent.shape)
    for factor in (1, -1, -1, 1):
        with torch.no_grad():
            layer.weight.copy_(factor * latent)
        counts.observe()
    expected[layer.mask] = 2 / 4
    assert torch.equal(counts.rates()[BODY[0]], expected)
    assert (counts.rates()[BODY[1]] == 0).all()
    counts.reset()
    assert counts.intervals == 0
    assert (counts.rates()[BODY[0]] == 0).all()


def test_counts_go_on_from_a_checkpoint(small_net, tmp_path):
    network = small_net()
    layers = prunable_layers(network)
    counts = FlipCounts(layers)
    gain = network.body[0].convolution.gain
    gain.data.neg_()
    counts.observe()
    torch.save(counts.state_dict(), tmp_path / "flips.pt")
    gain.data.neg_()
    resumed = FlipCounts(layers)
    resumed.load_state_dict(torch.load(tmp_path / "flips.pt", weights_only=True))
    for each in (counts, resumed):
        each.observe()
        assert (each.rates()[BODY[0]] == 1).all()
        assert (each.rates()[BODY[2]] == 0).all()
    with pytest.raises(InputError, match="of other layers"):
        FlipCounts(prunable_layers(small_net(width=6))).load_state_dict(counts.state_dict())

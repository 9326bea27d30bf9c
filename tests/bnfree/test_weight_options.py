"""Estimators and transforms of weights: the lean path against the formulas, with and without a mask."""

import math

import pytest
import torch
from torch.nn import functional as F

from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.binarize import get_estimator
from bnfree.convolution import BinaryConv2d, standardize_weight
from bnfree.errors import InputError
from bnfree.weight_transforms import build_transform
from bnfree.weight_transforms.compander import Compander


def layer_of(lean, masked=False, **options):
    torch.manual_seed(0)
    layer = BinaryConv2d(5, 4, 3, padding=1, **options).double()
    with torch.no_grad():
        layer.weight.mul_(3)
        if layer.gain is not None:
            layer.gain.uniform_(0.5, 2)
    if masked:
        layer.set_mask(torch.rand(layer.weight.shape) < 0.6)
    layer.lean = lean
    return layer


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("name", ["wide_ste", "reste", "approx"])
def test_the_gradient_of_binary_weights_is_that_of_their_estimator(name, standardize, masked, lean):
    """The slope at sqrt(k) w_hat, between the gradient of the sign and the standardisation."""
    layer = layer_of(lean, masked, standardize=standardize, weight_estimator=name)
    progress = 0.6
    if layer.estimator_progress is not None:
        layer.estimator_progress.fill_(progress)
    incoming = torch.randn(layer.weight.shape, dtype=torch.float64)
    layer.effective_weight().backward(incoming)
    weight = layer.weight.detach().clone().requires_grad_()
    mask = torch.ones_like(weight) if layer.mask is None else layer.mask.double()
    hat = standardize_weight(weight, layer.mask, layer.eps) if standardize else weight * mask
    root = mask.sum((1, 2, 3), keepdim=True).sqrt()
    gain = 1 if layer.gain is None else layer.gain.detach()
    slope = get_estimator(name).derivative(progress).slope(root * hat.detach())
    hat.backward(incoming * gain * mask * slope)
    torch.testing.assert_close(layer.weight.grad, weight.grad, rtol=1e-6, atol=1e-10)
    assert (layer.weight.grad != 0).any()


@pytest.mark.parametrize("lean", [True, False])
def test_real_weights_know_no_estimator(lean):
    gradients = []
    for name in (None, "approx"):
        layer = layer_of(lean, binary_weights=False, weight_estimator=name)
        layer.effective_weight().square().sum().backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("transform", ["biper", "compander"])
@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
def test_networks_train_lean_and_plain_alike(kind, transform):
    found = []
    for lean in (True, False):
        torch.manual_seed(0)
        depth = {"blocks_per_stage": [1, 1, 1, 1]} if kind is ReActNet18 else {"repeated_blocks": 1}
        options = {"lean": lean, "weight_estimator": "reste", "weight_transform": transform, **depth}
        network = kind(num_classes=3, width=4, stem="cifar", **options).double()
        x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        network(x).square().sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
    for name, expected in found[1].items():
        assert (found[0][name] - expected).norm() <= 1e-6 * expected.norm() + 1e-10, name


def test_an_evaluation_sees_weights_that_have_changed():
    layer = BinaryConv2d(4, 4, 3, weight_estimator="reste", weight_transform="compander").eval()
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        layer(x)
        layer.weight.neg_()
        after = layer(x)
    torch.testing.assert_close(after, F.conv2d(x, layer.effective_weight()))


def test_biper_has_the_gradient_of_the_sine():
    weight = torch.randn(3, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(build_transform("biper")(weight).sum(), weight)
    torch.testing.assert_close(gradient, 20 * torch.cos(20 * weight.detach()))


def test_biper_gives_the_same_signs_a_period_further_on_and_others_half_a_period():
    layer = layer_of(True, weight_transform="biper")
    before = layer.effective_weight().detach()
    assert all(len(row.abs().unique()) == 1 for row in before.flatten(1))
    with torch.no_grad():
        layer.weight[0] += 2 * math.pi / 20
        layer.weight[1] += math.pi / 20
    after = layer.effective_weight().detach()
    torch.testing.assert_close(after[0], before[0])
    assert torch.equal(after[1].sign(), -before[1].sign())


def test_the_second_step_of_biper_loads_the_first_strictly():
    first = ReActNet18(width=4, binary_weights=False, weight_transform="biper")
    second = ReActNet18(width=4, binary_weights=True, weight_transform="biper")
    second.load_state_dict(first.state_dict(), strict=True)
    convolution = first.body[0][0].convolution
    hat = standardize_weight(torch.sin(20 * convolution.weight), None, convolution.eps)
    torch.testing.assert_close(convolution.effective_weight(), hat * convolution.gain)
    signs = second.body[0][0].convolution.effective_weight().sign()
    assert torch.equal(signs, torch.where(hat >= 0, 1.0, -1.0))


def test_the_compander_is_bounded_monotone_and_keeps_signs():
    compander = Compander().double()
    with torch.no_grad():
        compander.a.fill_(0.5)
        compander.b.fill_(2.0)
    v = torch.linspace(-50, 50, 1001, dtype=torch.float64, requires_grad=True)
    w = compander(v)
    assert w.abs().max() < 0.5 * math.pi / 2
    assert (w[1:] > w[:-1]).all()
    assert torch.equal(w.sign(), v.sign())
    (gradient,) = torch.autograd.grad(w.sum(), v, retain_graph=True)
    torch.testing.assert_close(gradient, 0.25 / (1 + (v.detach() / 2).square()))
    w.square().sum().backward()
    assert compander.a.grad != 0
    assert compander.b.grad != 0
    with torch.no_grad():
        compander.a.fill_(1e4)
        compander.b.fill_(1e4)
    torch.testing.assert_close(compander(v), v, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    ("progress", "tau"), [(0.0, 0.85), (0.5, 0.85 + 0.14 * (math.e**0.5 - 1) / (math.e - 1)), (1.0, 0.99)]
)
def test_recu_clamps_at_the_quantile_of_a_laplace_distribution(progress, tau):
    torch.manual_seed(0)
    recu = build_transform("recu").double()
    recu.estimator_progress.fill_(progress)
    laplace = torch.distributions.Laplace(0.3, 2.0).sample((2, 40, 50, 50)).double().requires_grad_()
    w = recu(laplace)
    for row, latent, gradient in zip(w, laplace, torch.autograd.grad(w.sum(), laplace)[0], strict=True):
        bound = row.max()
        assert (row == -row.min()).any() or torch.isclose(row.min(), -bound)
        assert (row == bound).double().mean().item() == pytest.approx(1 - tau, abs=0.004)
        centred = latent - latent.mean()
        inside = row.abs() < bound
        expected = centred / latent.std(correction=0) * 2 * math.sqrt(2)
        torch.testing.assert_close(row[inside], expected[inside])
        assert (row * centred >= 0).all()
        assert gradient.isfinite().all()


def test_recu_leaves_the_signs_alone_and_gives_nothing_to_what_lies_beyond():
    layer = BinaryConv2d(8, 4, 3, weight_transform="recu", standardize=False, gain=True).double()
    w = layer.latent_weight()
    assert torch.equal(layer.effective_weight().sign(), (layer.weight - layer.weight.mean((1, 2, 3), True)).sign())
    beyond = w.abs() == w.abs().amax((1, 2, 3), keepdim=True)
    assert 0.1 < beyond.double().mean() < 0.5
    probe = torch.zeros_like(w)
    probe[beyond] = torch.randn(int(beyond.sum()), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((w * probe).sum(), layer.weight)
    assert (gradient == 0).all()


def test_the_compander_is_trained_without_weight_decay():
    from bnfree.lightning_modules.modules.parameter_groups import parameter_groups

    network = ReActNet18(width=4, weight_transform="compander")
    decayed, undecayed = parameter_groups(network, "convolutions")
    own = [p for name, p in network.named_parameters() if "weight_transform" in name]
    assert len(own) == 2 * 16
    assert {id(p) for p in own} <= {id(p) for p in undecayed["params"]}
    assert not {id(p) for p in own} & {id(p) for p in decayed["params"]}


def test_a_plain_function_is_a_transform():
    layer = layer_of(False, weight_transform=torch.tanh)
    torch.testing.assert_close(layer.latent_weight(), layer.weight.tanh())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_transform": "bipre"}, "weight_transform='bipre' is not known; did you mean 'biper'"),
        ({"weight_transform": "torch.nn.Linear"}, "needs arguments"),
        ({"weight_transform": "builtins.int"}, "is no transform"),
        ({"weight_estimator": "rest"}, "did you mean 'reste'"),
    ],
)
def test_what_is_none_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        ReActNet18(width=2, **options)


def gradients(network, x):
    network.zero_grad()
    network(x).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


def scheduled_network(name, progress=0.6):
    torch.manual_seed(0)
    depth = {"blocks_per_stage": [1, 1, 1, 1]}
    network = ReActNet18(num_classes=3, width=4, estimator=name, weight_estimator=name, **depth)
    for module in network.modules():
        if getattr(module, "estimator_progress", None) is not None:
            module.estimator_progress.fill_(progress)
    return network


@pytest.mark.parametrize("name", ["reste", "ede"])
def test_the_fast_mode_of_half_saved_inputs_goes_with_a_schedule(name):
    x = torch.randn(4, 3, 16, 16)
    network = scheduled_network(name)
    exact = gradients(network, x)
    network.fast = ["half_saved"]
    rounded = gradients(network, x)
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.slow
def test_a_compiled_network_follows_a_schedule_in_one_graph():
    from torch._dynamo.backends.debugging import aot_eager

    torch._dynamo.reset()
    x, graphs = torch.randn(4, 3, 16, 16), []

    def backend(graph, inputs, **options):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    network = scheduled_network("reste")
    compiled = torch.compile(network, backend=backend)
    for progress in (0.0, 0.5, 1.0):
        for module in network.modules():
            if getattr(module, "estimator_progress", None) is not None:
                module.estimator_progress.fill_(progress)
        expected = gradients(network, x)
        network.zero_grad()
        compiled(x).square().sum().backward()
        found = torch.cat([p.grad.flatten() for p in network.parameters()])
        assert (found - expected).norm() < 1e-5 * expected.norm()
    assert len(graphs) == 1

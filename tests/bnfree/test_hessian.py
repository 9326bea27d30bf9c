"""Second derivatives of the loss against a whole Hessian, and what a factor on the weights changes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bnfree.backbones import ReActNet18
from bnfree.hessian import layer_sensitivities, layers_to_keep_real


def test_eigenvalue_and_trace_are_those_of_the_whole_hessian():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, labels = torch.randn(20, 3, dtype=torch.float64), torch.arange(20) % 3
    found = layer_sensitivities(network, x, labels, iterations=300, tolerance=1e-10, probes=2000)
    for name in ("0", "2"):
        weight = network.get_submodule(name).weight.detach()

        def loss(flat, name=name, weight=weight):
            return F.cross_entropy(
                torch.func.functional_call(network, {f"{name}.weight": flat.view_as(weight)}, x), labels
            )

        hessian = torch.autograd.functional.hessian(loss, weight.flatten())
        eigenvalues = torch.linalg.eigvalsh(hessian)
        largest = eigenvalues[eigenvalues.abs().argmax()]
        assert found[name].eigenvalue == pytest.approx(largest.item(), rel=1e-4)
        assert found[name].trace == pytest.approx(hessian.trace().item(), rel=0.1)
        assert found[name].parameters == weight.numel()


def test_a_factor_on_standardised_weights_changes_nothing_but_the_eigenvalue():
    torch.manual_seed(0)
    network = ReActNet18(num_classes=4, width=2, binary_weights=False).double()
    images, labels = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 4
    name = "body.0.0.convolution"
    before = layer_sensitivities(network, images, labels, [name], iterations=50)[name]
    with torch.no_grad():
        network.get_submodule(name).weight.mul_(3)
    after = layer_sensitivities(network, images, labels, [name], iterations=50)[name]
    assert after.eigenvalue == pytest.approx(before.eigenvalue / 9, rel=1e-3)
    assert after.scale_free == pytest.approx(before.scale_free, rel=1e-3)
    assert all(p.grad is None for p in network.parameters())


def test_the_most_sensitive_binary_layers_stay_real():
    torch.manual_seed(0)
    network = ReActNet18(num_classes=4, width=2)
    images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    found = layer_sensitivities(network, images, labels, iterations=2, probes=1)
    chosen = layers_to_keep_real(network, found, 3)
    assert len(chosen) == 3
    assert "stem.convolution" not in chosen
    others = [n for n, m in network.named_modules() if getattr(m, "binary_weights", False) and n not in chosen]
    assert min(found[n].scale_free for n in chosen) >= max(found[n].scale_free for n in others)

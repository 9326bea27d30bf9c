"""The weight path of the lean layers."""

from __future__ import annotations

import pytest
import torch

from bnfree.convolution import BinaryConv2d


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("options", [{}, {"binary_weights": False}, {"standardize": False}])
@pytest.mark.parametrize("size", [1, 3])
def test_a_mask_that_masks_nothing_changes_no_bit(dtype, options, size):
    torch.manual_seed(0)
    layer = BinaryConv2d(24, 8, size, **options).to(dtype)
    incoming = torch.randn(layer.weight.shape, dtype=dtype)

    def results():
        weight = layer.effective_weight()
        parameters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        return [weight, *torch.autograd.grad(weight, parameters, incoming)]

    dense = results()
    layer.set_mask(torch.ones_like(layer.weight, dtype=torch.bool))
    assert all(torch.equal(a, b) for a, b in zip(dense, results(), strict=True))

"""The convolution as a layer: initial weights, masks as state, copies, refusals, compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import prune

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError


def pruned_layer(density: float | None = 0.5) -> BinaryConv2d:
    torch.manual_seed(0)
    convolution = BinaryConv2d(6, 8, 3, padding=1)
    if density is not None:
        convolution.set_mask(torch.rand(convolution.weight.shape) < density)
    return convolution


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_output_has_the_dtype_of_the_input(dtype):
    convolution = BinaryConv2d(4, 4, 3, padding=1)
    assert convolution(torch.randn(1, 4, 5, 5).to(dtype)).dtype == dtype


def test_initial_weights():
    torch.manual_seed(0)
    public = BinaryConv2d(16, 16, 3, init="public_code").weight
    assert public.min() >= 0
    assert public.max() < 1e-3
    fresh = BinaryConv2d(64, 64, 3).weight
    assert fresh.std().item() == pytest.approx((64 * 9) ** -0.5, rel=0.05)
    assert abs((fresh > 0).float().mean().item() - 0.5) < 0.02
    real = BinaryConv2d(16, 16, 3, init="public_code", binary_weights=False).weight
    assert real.abs().max() <= (16 * 9) ** -0.5


def test_a_dense_state_dict_has_no_mask_and_a_pruned_one_loads_strictly_into_a_fresh_layer():
    dense = BinaryConv2d(4, 4, 3)
    assert set(dense.state_dict()) == {"weight", "gain"}
    assert set(BinaryConv2d(4, 4, 3, standardize=False).state_dict()) == {"weight"}
    pruned = BinaryConv2d(4, 4, 3)
    pruned.set_mask(torch.rand(4, 4, 3, 3) < 0.5)
    assert set(pruned.state_dict()) == {"weight", "gain", "mask"}
    dense.load_state_dict(pruned.state_dict(), strict=True)
    assert torch.equal(dense.mask, pruned.mask)
    assert dense.mask.dtype == torch.bool
    assert torch.equal(dense.effective_weight(), pruned.effective_weight())
    dense.mask.fill_(True)
    assert not pruned.mask.all(), "the two layers share their mask"


def test_a_mask_of_another_shape_does_not_load():
    state = {**BinaryConv2d(4, 4, 3).state_dict(), "mask": torch.ones(4, 4, 1, 1, dtype=torch.bool)}
    with pytest.raises(RuntimeError, match="mask"):
        BinaryConv2d(4, 4, 3).load_state_dict(state)


def test_deepcopy_is_independent():
    convolution = pruned_layer()
    twin = copy.deepcopy(convolution)
    assert torch.equal(twin.effective_weight(), convolution.effective_weight())
    twin.set_mask(None)
    with torch.no_grad():
        twin.weight.zero_()
    assert convolution.mask is not None
    assert convolution.weight.abs().sum() > 0


def test_set_mask_copies_accepts_numbers_and_none():
    convolution = BinaryConv2d(4, 4, 3)
    dense = convolution.effective_weight().detach()
    mask = torch.randint(0, 2, (4, 4, 3, 3)).float()
    convolution.set_mask(mask)
    assert torch.equal(convolution.mask, mask.bool())
    boolean = mask.bool()
    convolution.set_mask(boolean)
    boolean.fill_(False)
    assert torch.equal(convolution.mask, mask.bool())
    convolution.set_mask(torch.ones(4, 4, 3, 3))
    torch.testing.assert_close(convolution.effective_weight(), dense)
    convolution.set_mask(None)
    assert convolution.mask is None
    assert torch.equal(convolution.effective_weight(), dense)


def test_wrong_masks_are_refused_and_change_nothing():
    convolution = BinaryConv2d(4, 4, 3)
    with pytest.raises(InputError, match=r"\(4, 4, 1, 1\).*\(4, 4, 3, 3\)"):
        convolution.set_mask(torch.ones(4, 4, 1, 1))
    with pytest.raises(InputError, match="other than 0 and 1"):
        convolution.set_mask(torch.full((4, 4, 3, 3), 0.5))
    with pytest.raises(InputError, match="other than 0 and 1"):
        convolution.set_mask(torch.full((4, 4, 3, 3), float("nan")))
    assert convolution.mask is None


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"in_channels": 0}, "in_channels=0"),
        ({"out_channels": -1}, "out_channels=-1"),
        ({"kernel_size": 0}, "kernel_size=0"),
        ({"stride": 0}, "stride=0"),
        ({"groups": 3}, "groups=3"),
        ({"init": "zeros"}, "init='zeros'"),
    ],
)
def test_wrong_arguments(options, word):
    with pytest.raises(InputError, match=word):
        BinaryConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options})


@pytest.mark.parametrize("density", [None, 0.5])
def test_torch_compile_and_export(density):
    torch._dynamo.reset()
    convolution = pruned_layer(density)
    x = torch.randn(2, 6, 5, 5)
    compiled = torch.compile(convolution, fullgraph=True, backend="aot_eager")
    gradients = []
    for module in (convolution, compiled):
        convolution.zero_grad()
        y = module(x)
        y.square().sum().backward()
        gradients.append((y.detach(), convolution.weight.grad.clone(), convolution.gain.grad.clone()))
    for eager, traced in zip(*gradients, strict=True):
        torch.testing.assert_close(eager, traced)
    exported = torch.export.export(convolution.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), convolution(x))


@pytest.mark.parametrize(("binary", "standardize"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("lean", [True, False])
def test_pruning_of_latent_weights_is_warned_of_where_it_prunes_nothing(binary, standardize, lean):
    layer = BinaryConv2d(4, 8, 3, padding=1, binary_weights=binary, standardize=standardize)
    layer.lean = lean
    prune.l1_unstructured(layer, "weight", 0.5)
    with pytest.warns(UserWarning, match="nothing is pruned; prune with bnfree.callbacks.LotteryTicket"):
        layer(torch.randn(2, 4, 6, 6))
    assert (layer.effective_weight() == 0).float().mean() < 0.05


def test_pruning_of_real_weights_works():
    layer = BinaryConv2d(4, 8, 3, padding=1, binary_weights=False, standardize=False)
    prune.l1_unstructured(layer, "weight", 0.5)
    layer(torch.randn(2, 4, 6, 6))
    assert (layer.effective_weight() == 0).float().mean() == 0.5

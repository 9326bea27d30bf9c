import doctest

import pytest
import torch
from timm.utils.agc import adaptive_clip_grad as timm_adaptive_clip_grad
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import bnfree.clipping
from bnfree.backbones import ReActNet18
from bnfree.clipping import adaptive_clip_grad_, clip_units_, clipped_fraction
from bnfree.errors import InputError

SHAPES = {
    "convolution": (8, 4, 3, 3),
    "shortcut": (8, 4, 1, 1),
    "linear": (5, 7),
    "gain": (8, 1, 1, 1),
    "threshold": (1, 8, 1, 1),
    "column": (6, 1),
    "bias": (9,),
    "another_bias": (9,),
    "scalar": (),
    "volume": (3, 2, 2, 2, 2),
}


def parameter(shape, weight_scale=1.0, gradient_scale=1.0, dtype=torch.float32):
    p = nn.Parameter((torch.randn(shape) * weight_scale).to(dtype))
    p.grad = (torch.randn(shape) * gradient_scale).to(dtype)
    return p


def copies(parameters):
    result = []
    for p in parameters:
        q = nn.Parameter(p.detach().clone())
        q.grad = None if p.grad is None else p.grad.clone()
        result.append(q)
    return result


def by_the_definition(weight, gradient, clip_factor, eps):
    """AGC of one tensor in float64, one unit after the other, from the formula in the paper."""
    units = [(weight, gradient)] if weight.dim() < 2 else list(zip(weight, gradient, strict=True))
    clipped = []
    for w, g in units:
        w, g = w.double(), g.double()
        limit = clip_factor * max(w.square().sum().sqrt().item(), eps)
        norm = g.square().sum().sqrt().item()
        clipped.append(g * (limit / norm) if norm > limit else g)
    return clipped[0] if weight.dim() < 2 else torch.stack(clipped)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("gradient_scale", [1e-4, 1e-2, 10.0])
def test_equals_timm_and_the_definition(shape, gradient_scale):
    p = parameter(shape, gradient_scale=gradient_scale)
    (q,) = copies([p])
    before = p.grad.clone()
    adaptive_clip_grad_([p], 0.02, 1e-3)
    timm_adaptive_clip_grad([q], 0.02, 1e-3)
    torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=1e-6 * gradient_scale)
    torch.testing.assert_close(p.grad.double(), by_the_definition(p.detach(), before, 0.02, 1e-3), rtol=1e-5, atol=0)
    if gradient_scale == 10.0:
        assert not torch.equal(p.grad, before)


def mixed_parameters():
    parameters = [
        parameter(shape, weight, gradient)
        for shape in SHAPES.values()
        for weight, gradient in [(1, 1e-3), (1e-4, 1e-2), (0, 1), (1, 0), (1, 5)]
    ]
    parameters[3].grad = None
    return parameters


def test_all_at_once_is_identical_to_one_by_one():
    together, alone = mixed_parameters(), None
    alone = copies(together)
    originals = copies(together)
    adaptive_clip_grad_(iter(together), 0.04, 1e-3)
    for p in alone:
        adaptive_clip_grad_(p, 0.04, 1e-3)
    for p, q, original in zip(together, alone, originals, strict=True):
        assert torch.equal(p, original)
        if original.grad is None:
            assert p.grad is None
        else:
            assert torch.equal(p.grad, q.grad)
            expected = by_the_definition(original.detach(), original.grad, 0.04, 1e-3)
            torch.testing.assert_close(p.grad.double(), expected, rtol=1e-5, atol=1e-12)


def test_gradient_is_clipped_in_place_and_parallel_and_idempotent():
    p = parameter((8, 4, 3, 3), gradient_scale=3)
    gradient, before = p.grad, p.grad.clone()
    adaptive_clip_grad_([p], 0.01)
    assert p.grad is gradient
    ratio = gradient.flatten(1).norm(dim=1) / p.detach().flatten(1).norm(dim=1)
    torch.testing.assert_close(ratio, torch.full((8,), 0.01))
    cosine = torch.cosine_similarity(gradient.flatten(1), before.flatten(1), dim=1)
    torch.testing.assert_close(cosine, torch.ones(8))
    once = gradient.clone()
    adaptive_clip_grad_([p], 0.01)
    torch.testing.assert_close(gradient, once, rtol=1e-6, atol=0)


def test_weight_of_zero_still_gets_a_gradient():
    p = parameter((4, 3), weight_scale=0)
    adaptive_clip_grad_([p], 0.01, eps=1e-3)
    torch.testing.assert_close(p.grad.norm(dim=1), torch.full((4,), 1e-5))
    q = parameter((4, 3), weight_scale=0)
    adaptive_clip_grad_([q], 0.01, eps=0)
    assert torch.equal(q.grad, torch.zeros(4, 3))


def test_tensor_listed_twice_is_clipped_once():
    p = parameter((4, 3), gradient_scale=100)
    (q,) = copies([p])
    adaptive_clip_grad_([p, p])
    adaptive_clip_grad_([q])
    assert torch.equal(p.grad, q.grad)


def network_with_gradients():
    network = ReActNet18(width=4)
    network(torch.randn(4, 3, 32, 32)).logsumexp(1).sum().backward()
    return network


def test_whole_network_agrees_with_timm():
    network = network_with_gradients()
    ours = list(network.parameters())
    theirs = copies(ours)
    adaptive_clip_grad_(ours)
    timm_adaptive_clip_grad(theirs)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-7)


class CountOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def elsewhere(monkeypatch):
    """Takes the path of an accelerator."""
    monkeypatch.setattr(bnfree.clipping, "_is_at_hand", lambda tensor: False)


@pytest.mark.parametrize("count", [False, True])
def test_few_operations_and_none_waits_for_the_device(count, elsewhere):
    network = network_with_gradients()
    parameters = list(network.parameters())
    assert len(parameters) >= 104
    with CountOperations() as operations:
        adaptive_clip_grad_(parameters, return_clipped_fraction=count)
    assert 0 < len(operations.names) < 240
    waiting = {"aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal", "aten.masked_select"}
    assert not [n for n in operations.names if n.rsplit(".", 1)[0] in waiting]


def test_a_network_is_clipped_to_the_same_bits_as_by_a_loop_in_a_fifth_of_its_operations():
    network = network_with_gradients()
    together = list(network.parameters())
    originals, alone = copies(together), copies(together)
    with CountOperations() as grouped:
        adaptive_clip_grad_(together)
    with CountOperations() as loop:
        timm_adaptive_clip_grad(alone)
    assert len(loop.names) >= 5 * len(grouped.names)
    clipped = 0
    for p, q, original in zip(together, alone, originals, strict=True):
        assert torch.equal(p.grad, q.grad)
        clipped += not torch.equal(p.grad, original.grad)
    assert 0 < clipped < len(together)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(dtype):
    # In float16 the squares of these gradients overflow and those of the weights vanish.
    shapes = [(8, 4, 3, 3), (8, 1, 1, 1), (16,)]
    halves = [parameter(s, weight_scale=1e-3, gradient_scale=500, dtype=dtype) for s in shapes]
    expected = [by_the_definition(p.detach(), p.grad, 0.5, 1e-3) for p in halves]
    adaptive_clip_grad_(halves, 0.5)
    for p, reference in zip(halves, expected, strict=True):
        assert p.grad.dtype == dtype
        torch.testing.assert_close(p.grad.double(), reference, rtol=2e-2, atol=2e-7)


def test_mixed_dtypes_in_one_call():
    parameters = [parameter((4, 3), gradient_scale=9, dtype=d) for d in (torch.float64, torch.float32, torch.bfloat16)]
    expected = [by_the_definition(p.detach(), p.grad, 0.01, 1e-3) for p in parameters]
    adaptive_clip_grad_(parameters)
    for p, reference, rtol in zip(parameters, expected, (1e-14, 1e-6, 1e-2), strict=True):
        torch.testing.assert_close(p.grad.double(), reference, rtol=rtol, atol=0)


def test_channels_last_gradient():
    p = parameter((8, 4, 3, 3), gradient_scale=5)
    (q,) = copies([p])
    p.grad = p.grad.contiguous(memory_format=torch.channels_last)
    adaptive_clip_grad_([p])
    adaptive_clip_grad_([q])
    torch.testing.assert_close(p.grad, q.grad, rtol=1e-6, atol=0)


def test_clipped_fraction_counts_units():
    weight = nn.Parameter(torch.ones(4, 4))  # four units of norm 2, so the limit is 0.02
    weight.grad = torch.tensor([[1.0], [0.02], [0.001], [0.0]]).repeat(1, 4)  # norms 2, 0.04, 0.002, 0
    gain = nn.Parameter(torch.ones(3, 1, 1, 1))
    gain.grad = torch.tensor([0.5, 0.005, -0.5]).view(3, 1, 1, 1)
    bias = nn.Parameter(torch.ones(5))
    bias.grad = torch.ones(5)
    fraction = adaptive_clip_grad_([weight, gain, bias], return_clipped_fraction=True)
    assert fraction.shape == ()
    assert fraction.dtype == torch.float32
    assert fraction.item() == pytest.approx((2 + 2 + 1) / (4 + 3 + 1))


def test_fraction_is_none_unless_asked_for_and_zero_without_gradients():
    p = parameter((3, 3))
    assert adaptive_clip_grad_([p]) is None
    p.grad = None
    assert adaptive_clip_grad_([p], return_clipped_fraction=True).item() == 0
    assert adaptive_clip_grad_([], return_clipped_fraction=True).item() == 0


def test_gradients_that_are_not_finite_stay_visible_and_out_of_the_fraction():
    p = nn.Parameter(torch.ones(4, 2))
    p.grad = torch.tensor([[float("nan"), 1.0], [float("inf"), 1.0], [5.0, 5.0], [1e-5, 1e-5]])
    fraction = adaptive_clip_grad_([p], return_clipped_fraction=True)
    assert fraction.item() == pytest.approx(1 / 2)
    assert p.grad[0].isnan().all()
    assert p.grad[1].isnan().all()
    assert p.grad[2].norm().item() == pytest.approx(0.01 * 2**0.5)
    assert torch.equal(p.grad[3], torch.tensor([1e-5, 1e-5]))


LARGEST = torch.finfo(torch.float32).max


@pytest.mark.parametrize("place", ["here", "elsewhere"])
@pytest.mark.parametrize("size", [1e18, 1e19, 1e25, 1e38, LARGEST, 1e-30, 1e-38, 1e-44])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_finite_gradients_of_any_size_are_clipped_and_counted(place, size, dtype, request):
    if place == "elsewhere":
        request.getfixturevalue(place)
    if dtype == torch.float64:
        size = size**8 if 1e-40 < size < 1e38 else size
    shapes = [(6, 4, 3, 3), (3, 2), (5,), (4, 1, 1, 1), (1, 8, 1, 1)]
    parameters = [parameter(shape) for shape in shapes]
    for p in parameters:
        p.data, p.grad = (
            p.data.to(dtype),
            torch.randn(p.shape).clamp(-1, 1).to(dtype) * min(size, torch.finfo(dtype).max),
        )
        # Another unit of the same tensor with ordinary gradients.
        p.grad[-1] = 1e-6
    originals = copies(parameters)
    pairs = [(p.data, p.grad) for p in originals]
    fraction = adaptive_clip_grad_(parameters, 0.01, return_clipped_fraction=True)
    # A factor of 1e-40, as of a gain's gradient, has few digits.
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-3
    for p, (weight, gradient) in zip(parameters, pairs, strict=True):
        # In float64, after a scaling that no square overflows.
        factor = 2.0 ** -torch.frexp(gradient.double().abs().max()).exponent.item()
        scaled = by_the_definition(weight, gradient.double() * factor, 0.01 * factor, 1e-3)
        torch.testing.assert_close(p.grad.double() * factor, scaled, rtol=tolerance, atol=1e-45 * factor)
    assert 0 < fraction < 1 if size > 1 else fraction == 0
    assert torch.stack([p.grad.isfinite().all() for p in parameters]).all()


def test_counts_of_several_calls_add_up():
    first, second = parameter((3, 4), gradient_scale=100), parameter((5, 4), gradient_scale=1e-6)
    counts = clip_units_([first]) + clip_units_([second])
    assert clipped_fraction(counts).item() == pytest.approx(3 / 8)
    assert clip_units_([first], count=False) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"clip_factor": 0}, "clip_factor=0 "),
        ({"clip_factor": -0.1}, "clip_factor=-0.1"),
        ({"clip_factor": float("nan")}, "clip_factor=nan"),
        ({"eps": -1e-3}, "eps=-0.001"),
    ],
)
def test_arguments_out_of_range(arguments, words):
    p = parameter((3, 3))
    before = p.grad.clone()
    with pytest.raises(InputError, match=words):
        adaptive_clip_grad_([p], **arguments)
    assert torch.equal(p.grad, before)


def test_sparse_gradient_is_refused_by_name():
    table = nn.Embedding(4, 3, sparse=True)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match=r"\(4, 3\) with a sparse gradient"):
        adaptive_clip_grad_(table.parameters())


def test_docstring_example():
    results = doctest.testmod(bnfree.clipping)
    assert results.attempted > 0
    assert results.failed == 0

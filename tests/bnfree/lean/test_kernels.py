"""Compiled elementwise kernels against the torch code beside them, and both against autograd in float64."""

from __future__ import annotations

import copy
import multiprocessing
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from bnfree.activations import RPReLU
from bnfree.backbones import ReActNet18, ReActNetA
from bnfree.binarize import ClippedIdentity, RSign
from bnfree.errors import InputError
from bnfree.lean import kernels


@pytest.fixture(autouse=True)
def _small_tensors_too(monkeypatch):
    monkeypatch.setattr(kernels, "FEWEST_ELEMENTS", 1)


@pytest.fixture
def calls(monkeypatch):
    """Names of the kernels that ran."""
    names = []
    original = kernels._run
    monkeypatch.setattr(kernels, "_run", lambda kernel, *rest: (names.append(kernel.__name__), original(kernel, *rest)))
    return names


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(module: nn.Module, *inputs: Tensor, enabled: bool = True, lean: bool = True) -> dict[str, Tensor]:
    """Output and all gradients, with kernels or without."""
    module = copy.deepcopy(module)
    for part in module.modules():
        part.lean = lean
    x = inputs[0].clone().requires_grad_()
    kernels.enabled = enabled
    try:
        y = module(x, *inputs[1:])
        y.backward(torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape))
    finally:
        kernels.enabled = True
    return {"output": y.detach(), "x": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def spread(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "weight" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return module


def images(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kind", [ReActNet18, ReActNetA])
@pytest.mark.parametrize("options", [{}, {"estimator": "ste"}, {"norm": "batch_norm"}, {"norm": "none"}])
@pytest.mark.parametrize("size", [(16, 16), (9, 7), (4, 2)])
def test_networks_in_float64_against_the_plain_composition(kind, options, size, calls):
    network = spread(kind(num_classes=3, width=4, stem="cifar", **options)).double()
    x = images(6, 3, *size) if options.get("norm") != "batch_norm" else images(6, 3, 48, 33)
    ours, plain = everything(network, x), everything(network, x, lean=False)
    assert {"enter_planes", "leave_planes"} <= set(calls)
    assert ("combine_planes" in calls) == (options.get("norm") != "batch_norm")
    for name, expected in plain.items():
        assert (ours[name] - expected).norm() <= 1e-10 * expected.norm() + 1e-14, name


def test_an_estimator_says_what_the_kernels_need(calls, caplog):
    class Window(ClippedIdentity):
        """The same slope under another name: what is declared about it holds."""

    class Tent(ClippedIdentity):
        """Another slope: nothing is known about it, although its parent has a kernel."""

        @staticmethod
        def slope(x):
            return (1 - x.abs()).clamp(min=0)

    x = images(2, 3, 8, 8)
    for estimator, compiled in ((Window, True), (Tent, False)):
        calls.clear()
        module = spread(RSign(3, estimator)).double()
        ours, plain = everything(module, x), everything(module, x, lean=False)
        assert ("leave_planes" in calls) == compiled
        for name, expected in plain.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-10, atol=1e-14)
    everything(module, x)
    assert [record.message for record in caplog.records if "kernel_code" in record.message] == [
        "estimator 'Tent' has no kernel_code: its gradients run in plain torch, more slowly."
    ]


@pytest.mark.parametrize("shape", [(3, 5, 32, 32), (2, 3, 7, 5), (4, 2, 1, 1), (1, 1, 1, 19)])
@pytest.mark.parametrize("estimator", ["approx", "ste"])
@pytest.mark.parametrize("scale", [None, 0.83])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rsign_gives_the_bits_of_the_torch_code(shape, estimator, scale, dtype, calls):
    module = spread(RSign(shape[1], estimator)).to(dtype)
    x = 2 * images(*shape, dtype=dtype)
    # Values on the threshold, on the edges of the window, and what is no number.
    with torch.no_grad():
        module.shift[0] = 0.25
    x.view(-1)[: min(5, shape[2] * shape[3])] = torch.tensor([-0.25, 0.75, -1.25, -0.0, torch.inf])[
        : shape[3] * shape[2]
    ]
    factor = None if scale is None else torch.tensor(scale, dtype=dtype)
    ours, theirs = (everything(module, x, factor, enabled=enabled) for enabled in (True, False))
    assert calls == ["enter_planes", "leave_planes"]
    assert torch.equal(ours["output"], theirs["output"])
    torch.testing.assert_close(ours["x"], theirs["x"], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours["shift"], theirs["shift"])


@pytest.mark.parametrize("shape", [(3, 5, 32, 32), (2, 3, 7, 5), (4, 2, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rprelu_gives_the_bits_of_the_torch_code(shape, dtype, calls):
    module = spread(RPReLU(shape[1])).to(dtype)
    x = images(*shape, dtype=dtype)
    x[0, 0, 0, 0] = -module.shift_in[0].detach()
    ours, theirs = (everything(module, x, enabled=enabled) for enabled in (True, False))
    assert calls == ["rprelu_planes", "leave_planes"]
    assert torch.equal(ours["output"], theirs["output"])
    assert torch.equal(ours["x"], theirs["x"])
    for name in ("shift_in", "slope", "shift_out"):
        torch.testing.assert_close(ours[name], theirs[name])


def test_threads_change_no_bit(threads):
    network, x = spread(ReActNet18(num_classes=3, width=5)), images(3, 3, 17, 17, dtype=torch.float32)
    results = []
    for count in (1, 3):
        threads(count)
        module, y = RSign(5), images(3, 5, 17, 17, dtype=torch.float32)
        results.append(everything(module, y))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert torch.isfinite(everything(network, x)["x"]).all()


def _signs_of(queue, module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        queue.put(module(x).flatten().tolist())


def test_threads_survive_a_fork(threads, calls):
    module, x = RSign(5), images(3, 5, 7, 7, dtype=torch.float32)
    # Only the kernel: threads of PyTorch itself do not survive.
    threads(2)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    _signs_of(queue, module, x)
    assert calls == ["enter_planes"]
    expected = queue.get()
    process = context.Process(target=_signs_of, args=(queue, module, x))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert queue.get() == expected


def test_where_they_do_not_apply_torch_does_the_work(calls):
    x = images(2, 4, 6, 6, dtype=torch.float32)
    everything(RSign(4, "sigmoid"), x)
    assert calls == ["enter_planes"]
    calls.clear()
    everything(RSign(4), x.contiguous(memory_format=torch.channels_last))
    everything(RSign(4), x.double())
    everything(RSign(4), x.bfloat16())
    assert calls == []


def test_transformations_of_functions():
    module, x = RSign(4), images(2, 4, 6, 6, dtype=torch.float32)
    expected = everything(module, x, enabled=False)["x"]
    weight = torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape)
    assert torch.equal(torch.func.grad(lambda x: (module(x) * weight).sum())(x), expected)


@pytest.mark.parametrize("module", [RSign(4), RPReLU(4), ReActNet18(num_classes=3, width=4)])
def test_gradients_of_gradients_are_refused(module):
    x = images(2, 3 if isinstance(module, ReActNet18) else 4, 8, 8, dtype=torch.float32).requires_grad_()
    y = module(x)
    (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y).requires_grad_(), create_graph=True)
    with pytest.raises(InputError, match=r"create_graph=True"):
        gradient.square().sum().backward()


def test_without_numba_there_are_none(monkeypatch, calls):
    monkeypatch.setitem(sys.modules, "bnfree.lean.numba_planes", None)
    kernels._is_installed.cache_clear()
    try:
        everything(RSign(4), images(2, 4, 6, 6, dtype=torch.float32))
    finally:
        kernels._is_installed.cache_clear()
    assert calls == []


SMALL = """
import sys, torch
from bnfree.backbones import ReActNet18
ReActNet18(num_classes=3, width=4)(torch.randn(16, 3, 8, 8)).sum().backward()
print("numba" in sys.modules)
"""


@pytest.mark.slow
def test_small_networks_do_not_wait_for_numba():
    output = subprocess.run([sys.executable, "-c", SMALL], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"

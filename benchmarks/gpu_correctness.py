"""Part of `gpu_pack.py`: gradients, losses, clipping, optimizers and resume on a device against float64 on the CPU."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from gpu_report import Report
from gpu_step import Step, Variant, lacking, variant
from plain_reactnet import networks
from torch import Tensor, nn
from torch.nn import functional as F

from bnfree.clipping import adaptive_clip_grad_
from bnfree.convolution import BinaryConv2d

PART = "correctness"
# Largest median over the parameters of |gradient - reference| / |reference|.
EXACT, ROUNDED = 1e-3, 2e-2
VARIANTS = (
    (Variant("modules", "modules"), EXACT),
    (variant("lean"), EXACT),
    (variant("lean, channels last"), EXACT),
    (variant("lean, half_saved"), EXACT),
    (variant("lean, half_forward"), EXACT),
    (variant("lean, bf16_backward"), ROUNDED),
    (variant("lean, half_forward + bf16_backward"), ROUNDED),
    (variant("lean, compiled"), EXACT),
    (variant("modules, compiled"), EXACT),
)
# Signs flip where 8 bits of mantissa cannot tell: told, not judged.
AUTOCAST = (variant("lean, autocast"), variant("modules, autocast, channels last"))


def run(report: Report, device: torch.device, toy: bool) -> None:
    """All of it; in toy size with networks of width 4."""
    width, batch = (4, 4) if toy else (32, 32)
    with _full_float32():
        for backbone, size in (("ReActNet18", 32), ("ReActNetA", 64)):
            for density in (None, 0.2):
                gradients(report, device, backbone, size, width, batch, density, compiled=not toy)
        clipping(report, device)
        optimizer(report, device)
        resumed(report, device, width, batch)
        graph(report, device, width, batch)
    tensor_float(report, device, width, batch)


@contextmanager
def _full_float32() -> Iterator[None]:
    was = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = was


def gradients(
    report: Report, device: torch.device, backbone: str, size: int, width: int, batch: int, density: float | None,
    compiled: bool,
) -> None:  # fmt: skip
    """A line for each variant; the float32 CPU's own error stands beside it."""
    network, images, labels = _case(backbone, size, width, batch, density)
    reference = _gradients(_modules(copy.deepcopy(network)).double(), images.double(), labels)
    where = f"{backbone}, {size} pixels" + ("" if density is None else f", density {density}")
    on_cpu = _compare(reference, _gradients(_modules(copy.deepcopy(network)), images, labels))
    report.line(PART, f"{where}: float32 on the CPU", **on_cpu)
    chosen = [(v, limit) for v, limit in VARIANTS if compiled or not v.compiled]
    # Compiling takes minutes: of one network.
    chosen = [(v, limit) for v, limit in chosen if not v.compiled or (backbone, density) == ("ReActNet18", None)]
    for how, limit in [*chosen, *((v, None) for v in AUTOCAST)]:
        with report.item(PART, f"{where}: {how.name}", needs=40 if how.compiled else 2) as go:
            if not go or lacking(report, PART, f"{where}: {how.name}", how, device):
                continue
            there = how.prepare(copy.deepcopy(network)).to(device)
            call = torch.compile(there) if how.compiled else there
            with torch.autocast(device.type, torch.bfloat16, enabled=how.bf16):
                found = _gradients(there, images.to(device), labels.to(device), call)
            errors = _compare(reference, found)
            judged = {} if limit is None else {"limit": limit, "ok": errors["median"] <= limit}
            report.line(PART, f"{where}: {how.name}", **errors, **judged)


def tensor_float(report: Report, device: torch.device, width: int, batch: int) -> None:
    """What PyTorch's default, tf32 in convolutions, costs in exactness."""
    network, images, labels = _case("ReActNet18", 32, width, batch, None)
    reference = _gradients(_modules(copy.deepcopy(network)).double(), images.double(), labels)
    with report.item(PART, "ReActNet18, 32 pixels: lean with tf32"):
        there = copy.deepcopy(network).to(device)
        found = _gradients(there, images.to(device), labels.to(device))
        report.line(PART, "ReActNet18, 32 pixels: lean with tf32", **_compare(reference, found))


def clipping(report: Report, device: torch.device) -> None:
    """Adaptive clipping of gradients of many sizes."""
    with report.item(PART, "adaptive clipping"):
        network = networks("ReActNet18", width=16)[0]
        wide, there = copy.deepcopy(network).double(), network.to(device)
        generator = torch.Generator().manual_seed(0)
        for there_p, wide_p in zip(there.parameters(), wide.parameters(), strict=True):
            size = 10.0 ** torch.randint(-8, 4, (), generator=generator).item()
            gradient = size * torch.randn(wide_p.shape, generator=generator, dtype=torch.float32)
            there_p.grad, wide_p.grad = gradient.to(device), gradient.double()
        share = adaptive_clip_grad_(there.parameters(), 0.02, return_clipped_fraction=True)
        expected = adaptive_clip_grad_(wide.parameters(), 0.02, return_clipped_fraction=True)
        assert share is not None
        assert expected is not None
        worst = max(
            _relative(there_p.grad, wide_p.grad)
            for there_p, wide_p in zip(there.parameters(), wide.parameters(), strict=True)
        )
        shares = {"clipped": share.item(), "clipped_float64": expected.item()}
        report.line(PART, "adaptive clipping", worst=worst, **shares, limit=1e-5, ok=worst <= 1e-5)


def optimizer(report: Report, device: torch.device) -> None:
    """Five steps of fused Adam."""
    with report.item(PART, "fused Adam"):
        start = torch.randn(1000, generator=torch.Generator().manual_seed(0))
        moved = []
        for where, dtype, fused in ((device, torch.float32, True), (torch.device("cpu"), torch.float64, False)):
            parameter = nn.Parameter(start.to(where, dtype, copy=True))
            adam = torch.optim.Adam([parameter], lr=1e-2, weight_decay=1e-4, fused=fused)
            generator = torch.Generator().manual_seed(1)
            for _ in range(5):
                parameter.grad = torch.randn(1000, generator=generator).to(where, dtype)
                adam.step()
            moved.append(parameter.detach().cpu().double() - start.double())
        error = _relative(moved[0], moved[1])
        report.line(PART, "fused Adam", worst=error, limit=1e-4, ok=error <= 1e-4)


def resumed(report: Report, device: torch.device, width: int, batch: int) -> None:
    """Six steps at once against three and three from saved states, under deterministic algorithms."""
    for how in (variant("lean"), variant("modules"), variant("lean, half_forward + bf16_backward")):
        with report.item(PART, f"resume, {how.name}"):
            if lacking(report, PART, f"resume, {how.name}", how, device):
                continue
            _, images, labels = _case("ReActNet18", 32, width, batch, None)
            images, labels = images.to(device), labels.to(device)
            torch.use_deterministic_algorithms(True)
            try:
                whole = _steps(how, device, width, images, labels, 6)
                half = _steps(how, device, width, images, labels, 3)
                states = copy.deepcopy(half.network.state_dict()), copy.deepcopy(half.optimizer.state_dict())
                rest = _steps(how, device, width, images, labels, 3, states)
            finally:
                torch.use_deterministic_algorithms(False)
            pairs = zip(whole.network.state_dict().values(), rest.network.state_dict().values(), strict=True)
            differing = sum(not torch.equal(a, b) for a, b in pairs)
            report.line(PART, f"resume, {how.name}", differing_tensors=differing, ok=differing == 0)


def graph(report: Report, device: torch.device, width: int, batch: int) -> None:
    """Five steps in a CUDA graph against five without."""
    for name in ("lean, graph", "modules, autocast, channels last, graph"):
        with report.item(PART, name):
            if lacking(report, PART, name, variant(name), device):
                continue
            _, images, labels = _case("ReActNet18", 32, width, batch, None)
            images, labels = images.to(device), labels.to(device)
            graphed = _steps(variant(name), device, width, images, labels, 5)
            eager = _steps(variant(name.removesuffix(", graph")), device, width, images, labels, 5)
            pairs = zip(graphed.network.parameters(), eager.network.parameters(), strict=True)
            worst = max(_relative(a, b) for a, b in pairs)
            losses = {"loss": graphed.loss.item(), "loss_without": eager.loss.item()}
            report.line(PART, name, worst=worst, **losses, limit=1e-3, ok=worst <= 1e-3)


def _steps(
    how: Variant, device: torch.device, width: int, images: Tensor, labels: Tensor, count: int,
    states: tuple[dict[str, Tensor], dict[str, object]] | None = None,
) -> Step:  # fmt: skip
    step = Step(how.build("ReActNet18", width=width).to(device), how, learning_rate=1e-3)
    if states is not None:
        step.network.load_state_dict(states[0])
        step.optimizer.load_state_dict(states[1])
    for _ in range(count):
        step(images, labels)
    return step


def _case(backbone: str, size: int, width: int, batch: int, density: float | None) -> tuple[nn.Module, Tensor, Tensor]:
    network = networks(backbone, width=width)[0]
    generator = torch.Generator().manual_seed(0)
    if density is not None:
        for layer in network.modules():
            if isinstance(layer, BinaryConv2d) and layer.binary_weights:
                layer.set_mask(torch.rand(layer.weight.shape, generator=generator) < density)
    images = torch.randn(batch, 3, size, size, generator=generator)
    return network, images, torch.arange(batch) % 10


def _modules(network: nn.Module) -> nn.Module:
    network.lean = False
    return network


def _gradients(network: nn.Module, images: Tensor, labels: Tensor, call: object = None) -> dict[str, Tensor]:
    network.zero_grad()
    loss = F.cross_entropy((call or network)(images).to(torch.promote_types(images.dtype, torch.float32)), labels)
    loss.backward()
    found = {name: p.grad.detach().cpu().double() for name, p in network.named_parameters()}
    return {**found, "loss": loss.detach().cpu().double()}


def _compare(reference: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, object]:
    errors = {name: _relative(found[name], reference[name]) for name in reference if name != "loss"}
    worst = max(errors, key=errors.__getitem__)
    loss = abs(found["loss"] - reference["loss"]).item()
    return {"median": statistics.median(errors.values()), "worst": errors[worst], "worst_at": worst, "loss": loss}


def _relative(found: Tensor, reference: Tensor) -> float:
    found, reference = found.detach().cpu().double(), reference.detach().cpu().double()
    error = (found - reference).norm() / reference.norm().clamp(min=1e-30)
    return error.item() if torch.isfinite(found).all() else float("inf")

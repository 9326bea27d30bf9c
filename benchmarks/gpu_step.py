"""A training step on a device in its variants: composition, fast modes, precision, compilation, graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from gpu_report import Report
from plain_reactnet import networks
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bnfree.clipping import adaptive_clip_grad_
from bnfree.distillation import distillation_loss, mean_probabilities

CLIP_FACTOR = 0.02


@dataclass(frozen=True)
class Variant:
    """How a step is computed."""

    name: str
    composition: str = "lean"
    """`plain` (written from the papers' formulas), `modules` (ours without the lean path) or `lean`."""
    norm: str = "bn_free"
    fast: tuple[str, ...] = ()
    bf16: bool = False
    """Under autocast."""
    compiled: bool = False
    channels_last: bool = False
    graph: bool = False
    """The whole step, optimizer included, as one CUDA graph."""

    def prepare(self, network: nn.Module) -> nn.Module:
        """Sets what a network of ours has switches for."""
        if self.composition != "plain":
            network.lean, network.fast = self.composition == "lean", self.fast
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def build(self, backbone: str, **options: Any) -> nn.Module:
        """`ReActNet18` or `ReActNetA` with spread-out weights."""
        ours, plain = networks(backbone, self.norm, **options)
        return self.prepare(plain if self.composition == "plain" else ours)


VARIANTS = (
    Variant("plain composition", "plain"),
    Variant("plain batch-norm twin", "plain", norm="batch_norm"),
    Variant("batch-norm twin", norm="batch_norm"),
    Variant("modules", "modules"),
    Variant("lean"),
    Variant("lean, channels last", channels_last=True),
    Variant("lean, bf16_backward", fast=("bf16_backward",)),
    Variant("lean, half_saved", fast=("half_saved",)),
    Variant("lean, half_forward", fast=("half_forward",)),
    Variant("lean, half_forward + bf16_backward", fast=("half_forward", "bf16_backward")),
    Variant("lean, graph", graph=True),
    Variant("lean, half_forward + bf16_backward, graph", fast=("half_forward", "bf16_backward"), graph=True),
    Variant("lean, autocast", bf16=True),
    Variant("modules, autocast, channels last", "modules", bf16=True, channels_last=True),
    Variant("modules, autocast, channels last, graph", "modules", bf16=True, channels_last=True, graph=True),
    Variant("modules, autocast, channels last, compiled", "modules", bf16=True, channels_last=True, compiled=True),
    Variant(
        "modules, autocast, channels last, compiled, graph", "modules",
        bf16=True, channels_last=True, compiled=True, graph=True,
    ),
    Variant("modules, compiled", "modules", compiled=True),
    Variant("lean, compiled", compiled=True),
    Variant("plain composition, compiled", "plain", compiled=True),
)  # fmt: skip


def variant(name: str) -> Variant:
    """The variant of that name."""
    return next(v for v in VARIANTS if v.name == name)


def lacking(report: Report, part: str, name: str, how: Variant, device: torch.device) -> bool:
    """Whether a device is no GPU and the variant needs one, with a line that says so."""
    missing = device.type != "cuda" and (how.graph or "half_forward" in how.fast)
    if missing:
        report.line(part, name, left_out="it needs a CUDA device")
    return missing


@dataclass
class Step:
    """Forward, backward, adaptive clipping and Adam of a network on a device; nothing waits for the device.

    The learning rate is a tensor on the device, so that a graph follows it.
    """

    network: nn.Module
    how: Variant
    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    """On the latent weights of convolutions."""
    clip_factor: float | None = CLIP_FACTOR
    teacher: nn.Module | None = None
    """In evaluation mode; its probabilities are the target in place of labels."""
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.device = next(self.network.parameters()).device
        classifier = {id(p) for p in self.network.classifier.parameters()}
        latent = [p for p in self.network.parameters() if p.dim() == 4 and p[0].numel() > 1]
        others = [p for p in self.network.parameters() if not (p.dim() == 4 and p[0].numel() > 1)]
        self.clipped = [p for p in self.network.parameters() if id(p) not in classifier]
        on_cuda = self.device.type == "cuda"
        rate = torch.tensor(self.learning_rate, device=self.device) if on_cuda else self.learning_rate
        groups = [{"params": latent, "weight_decay": self.weight_decay}, {"params": others}]
        self.optimizer = torch.optim.Adam(groups, lr=rate, fused=True, capturable=on_cuda)
        self.call: Callable[[Tensor], Tensor] = torch.compile(self.network) if self.how.compiled else self.network
        self.loss = torch.zeros((), device=self.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images: Tensor | None = None
        self._labels: Tensor | None = None

    def set_learning_rate(self, rate: float) -> None:
        """For the steps that follow."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; the loss, shape (), stays on the device."""
        if not self.how.graph:
            return self._compute(images, labels)
        if self._graph is None:
            self._capture(images, labels)
        assert self._graph is not None
        assert self._images is not None
        assert self._labels is not None
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        return self.loss

    def _compute(self, images: Tensor, labels: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.how.bf16):
            if self.how.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            logits = self.call(images)
        if self.teacher is None:
            loss = F.cross_entropy(logits.float(), labels)
        else:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16):
                taught = self.teacher(images.contiguous(memory_format=torch.channels_last))
            loss = distillation_loss(logits, mean_probabilities([taught.float()]))
        loss.backward()
        if self.clip_factor is not None:
            adaptive_clip_grad_(self.clipped, self.clip_factor)
        self.optimizer.step()
        self.loss.copy_(loss.detach())
        return self.loss

    def _capture(self, images: Tensor, labels: Tensor) -> None:
        # What the warm-up moves is put back: the first step of a captured training is its first.
        parameters = [p.detach().clone() for p in self.network.parameters()]
        buffers = [b.detach().clone() for b in self.network.buffers()]
        self._images, self._labels = images.clone(), labels.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._compute(self._images, self._labels)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(graph):
            self._compute(self._images, self._labels)
        with torch.no_grad():
            for p, was in zip(self.network.parameters(), parameters, strict=True):
                p.copy_(was)
            for b, was in zip(self.network.buffers(), buffers, strict=True):
                b.copy_(was)
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()
        self._graph = graph

    def synchronize(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, images: Tensor, labels: Tensor, steps: int) -> float:
        """Of one step, the mean of some that follow each other without waiting."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self(images, labels)
        self.synchronize()
        return 1e3 * (time.perf_counter() - start) / steps

    def peak_mib(self, images: Tensor, labels: Tensor) -> float | None:
        """Largest memory that a step had allocated above what was held before it, where the device counts it."""
        if self.device.type != "cuda":
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        self(images, labels)
        self.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def launches(self, images: Tensor, labels: Tensor) -> int:
        """Kernels (on a CPU: operators) that the profiler saw in one step."""
        on_cuda = self.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as profiler:
            self(images, labels)
            self.synchronize()
        # On CUDA the calls that launch are events as well.
        events = (e for e in profiler.key_averages() if not on_cuda or e.device_type == DeviceType.CUDA)
        return sum(event.count for event in events)

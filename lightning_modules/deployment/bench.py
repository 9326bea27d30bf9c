"""Latency, throughput and memory of a packed network, against the same network in other forms."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.contestants import FORMS, contestants
from bnfree.lightning_modules.deployment.packed_files import open_packed, packed_path
from bnfree.lightning_modules.deployment.timing import LayerTime, Times, interleaved, profile
from bnfree.packing import PackedNetwork
from bnfree.packing.engines import UnitEngine, is_available
from bnfree.packing.layers import tensors_of
from bnfree.packing.unpacked_network import UnpackedNetwork

# Vector instructions that the packed kernels gain from, the best first; the first is a popcount of eight words at once.
INSTRUCTION_SETS = ("avx512_vpopcntdq", "avx512bw", "avx2", "asimd")


@dataclass(frozen=True)
class BenchSettings:
    """What is timed, and how."""

    model: str | Path
    """Packed file, or name of a pretrained network."""
    batch_sizes: Sequence[int] = (1, 32)
    """Images in a call."""
    threads: int | None = 1
    """Processor threads; None: as torch has chosen."""
    image_size: int | None = None
    """Height and width in pixels; None: as the file says."""
    seconds: float = 10.0
    """For each batch size and for the profile, about; ten rounds at least."""
    engines: Sequence[str] = tuple(FORMS)
    """The network on `numba`, `openvino` and `torch`, and in float32 (`eager`, `compile`) and 8 bits (`int8`)."""


@dataclass(frozen=True)
class Machine:
    """What the figures were measured on."""

    processor: str
    instructions: str
    """The best of `INSTRUCTION_SETS` that it has, or `unknown`."""
    popcount: bool
    """Whether it counts the bits of vectors (AVX-512 VPOPCNTDQ)."""
    processors: int
    threads: int
    load: float | None
    """Load average before the run; None: the system does not tell."""

    @property
    def busy(self) -> bool:
        """Whether others take part of the time."""
        return self.load is not None and self.load > self.processors


@dataclass(frozen=True)
class BatchTimes:
    """The forms of a network at one batch size."""

    batch: int
    """Images in a call."""
    times: dict[str, Times]
    """Of one call, by form."""
    notes: tuple[str, ...]
    """What was left out or gives other classes, in sentences."""


@dataclass(frozen=True)
class BenchResult:
    """What has been measured."""

    machine: Machine
    packed: PackedNetwork
    image_shape: tuple[int, int, int]
    """(C, H, W)."""
    file_bytes: int
    bits_bytes: int
    """Weights and constants in memory, as bits."""
    float32_bytes: int
    """The same in float32."""
    batches: tuple[BatchTimes, ...]
    """One for each batch size."""
    profile: tuple[LayerTime, ...]
    """What each layer adds, at the first batch size."""
    profile_engine: UnitEngine
    """What computed the profile."""


def bench(settings: BenchSettings) -> BenchResult:
    """Times a packed network against the same network in other forms, in one interleaved run, and its layers.

    Images are noise of 8 bits, as the packed network on numba takes them; the others are given them normalised.

    Raises:
        InputError: no such network, an unknown form, or sizes and times that are not positive.
    """
    packed = open_packed(settings.model, "torch", settings.threads)
    if not settings.batch_sizes or min(settings.batch_sizes) < 1:
        raise InputError(f"batch_sizes={list(settings.batch_sizes)} must be positive integers, such as 1,32.")
    shape = _image_shape(packed, settings.image_size)
    if not settings.seconds > 0:
        raise InputError(f"seconds={settings.seconds} must be positive.")
    machine = describe_machine()
    batches = []
    for batch in settings.batch_sizes:
        runs, notes = contestants(packed, settings.engines, _noise(packed, batch, shape))
        batches.append(BatchTimes(batch, interleaved(runs, settings.seconds), tuple(notes)))
    engine: UnitEngine = "numba" if is_available("numba") else "torch"
    layers = profile(packed, engine, _noise(packed, settings.batch_sizes[0], shape), settings.seconds)
    return BenchResult(
        machine=machine,
        packed=packed,
        image_shape=shape,
        file_bytes=packed_path(settings.model).stat().st_size,
        bits_bytes=_bytes([tensor for _, tensor in tensors_of(packed.layers)]),
        float32_bytes=_bytes(list(UnpackedNetwork(packed.layers).buffers())),
        batches=tuple(batches),
        profile=tuple(layers),
        profile_engine=engine,
    )


def describe_machine() -> Machine:
    """The processor, what of it is used, and how busy it is."""
    name, flags = _processor()
    best = next((flag for flag in INSTRUCTION_SETS if flag in flags), "unknown")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return Machine(name, best, INSTRUCTION_SETS[0] in flags, os.cpu_count() or 1, torch.get_num_threads(), load)


def _processor() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in fields.items()}
    flags = (values.get("flags") or values.get("Features") or "").split()
    return values.get("model name") or platform.machine(), set(flags)


def _noise(packed: PackedNetwork, batch: int, shape: Sequence[int]) -> Tensor:
    """8-bit images, or normalised ones for a network that does not know how they are normalised."""
    generator = torch.Generator().manual_seed(0)
    if packed.info.normalization is None:
        return torch.randn(batch, *shape, generator=generator)
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _image_shape(packed: PackedNetwork, size: int | None) -> tuple[int, int, int]:
    if size is not None:
        if size < 1:
            raise InputError(f"image_size={size} must be at least 1.")
        return packed.in_channels, size, size
    if packed.info.image_shape is None:
        raise InputError("image_size is not given, and the file does not say it; add --image_size N.")
    return packed.info.image_shape

"""`bnfree bench`: latency, throughput and memory of a packed file, against the same network in other forms."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bnfree.errors import InputError
from bnfree.lightning_modules.deployment.bench.contestants import BASELINE, NAMES, contestants
from bnfree.lightning_modules.deployment.bench.machine import describe
from bnfree.lightning_modules.deployment.bench.profile import profile
from bnfree.lightning_modules.deployment.bench.timing import Times, interleaved
from bnfree.lightning_modules.deployment.packed.model import OptionsParser, load_model, model_file
from bnfree.packing import PackedNetwork
from bnfree.packing.engines import UnitEngine, is_available
from bnfree.packing.layers import tensors_of
from bnfree.packing.unpacked_network import UnpackedNetwork

DESCRIPTION = """Times a packed network against the same network in float32 (eager, and compiled with frozen weights)
and with int8 convolutions, in one interleaved run, and prints a profile of its layers.

Images are noise of 8 bits, as the packed network on numba takes them; the others are given them normalised.

  bnfree bench network.safetensors
  bnfree bench network.safetensors --batch_sizes 1,64 --threads 2 --engines numba,openvino,eager"""


def run(arguments: Sequence[str]) -> None:
    """Prints the tables.

    Args:
        arguments: `bench` and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    given = _parser().parse_args(arguments[1:])
    packed = load_model(given.model, "torch", given.threads)
    batches = _sizes(given.batch_sizes)
    shape = _image_shape(packed, given.image_size)
    if not given.seconds > 0:
        raise InputError(f"seconds={given.seconds} must be positive.")
    print("\n".join(describe()))
    print(f"Network     {packed.layers.architecture}, images {'x'.join(map(str, shape))}")
    print(_memory(packed, model_file(given.model)))
    for batch in batches:
        runs, notes = contestants(packed, given.engines.split(","), _noise(packed, batch, shape))
        times = interleaved(runs, given.seconds)
        print(f"\n{table(times, batch)}")
        print("".join(f"{note}\n" for note in notes), end="")
    images = _noise(packed, batches[0], shape)
    engine: UnitEngine = "numba" if is_available("numba") else "torch"
    print(f"\n{_profile(packed, engine, images, given.seconds)}")


def table(times: dict[str, Times], batch: int) -> str:
    """One line for each form, the fastest first.

    Args:
        times: of one call, by key of `NAMES`.
        batch: images in a call.
    """
    rows = [[f"batch {batch}", "median ms", "p95 ms", "images/s", f"x {NAMES[BASELINE]}", "calls"]]
    for name, time in sorted(times.items(), key=lambda item: item[1].median):
        ratio = f"{times[BASELINE].median / time.median:.2f}" if BASELINE in times else "-"
        rate = f"{batch / time.median:.1f}"
        rows.append([NAMES[name], f"{1e3 * time.median:.3f}", f"{1e3 * time.p95:.3f}", rate, ratio, str(time.calls)])
    return _aligned(rows)


def _profile(packed: PackedNetwork, engine: UnitEngine, images: Tensor, seconds: float) -> str:
    layers = profile(packed, engine, images, seconds)
    total = sum(layer.seconds for layer in layers)
    rows = [[f"{NAMES[engine]}, batch {len(images)}", "input -> output", "us", "share", "GMAC/s"]]
    for layer in layers:
        speed = f"{layer.operations / layer.seconds / 1e9:.1f}" if layer.seconds > 0 else "-"
        share = f"{layer.seconds / total:.1%}"
        rows.append([layer.name, layer.shapes, f"{1e6 * layer.seconds:.0f}", share, speed])
    rows.append(["sum", "", f"{1e6 * total:.0f}", "", ""])
    return _aligned(rows, left=2)


def _noise(packed: PackedNetwork, batch: int, shape: Sequence[int]) -> Tensor:
    """8-bit images, or normalised ones for a network that does not know how they are normalised."""
    generator = torch.Generator().manual_seed(0)
    if packed.info.normalization is None:
        return torch.randn(batch, *shape, generator=generator)
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)


def _memory(packed: PackedNetwork, path: Path) -> str:
    def size(tensors: list[Tensor]) -> float:
        return sum(t.numel() * t.element_size() for t in tensors) / 1e6

    bits = size([tensor for _, tensor in tensors_of(packed.layers)])
    real = size(list(UnpackedNetwork(packed.layers).buffers()))
    return (
        f"Memory      file {path.stat().st_size / 1e6:.3f} MB; weights and constants {bits:.3f} MB as bits, {real:.3f} "
        f"MB in float32: {real / bits:.1f} times as much"
    )


def _aligned(rows: list[list[str]], left: int = 1) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join([lines[0].rstrip(), "-" * max(map(len, lines)), *(line.rstrip() for line in lines[1:])])


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise InputError(f"batch_sizes={text!r} must be positive integers, such as 1,32.")
    return sizes


def _image_shape(packed: PackedNetwork, size: int | None) -> tuple[int, int, int]:
    if size is not None:
        if size < 1:
            raise InputError(f"image_size={size} must be at least 1.")
        return packed.in_channels, size, size
    if packed.info.image_shape is None:
        raise InputError("image_size is not given, and the file does not say it; add --image_size N.")
    return packed.info.image_shape


def _parser() -> OptionsParser:
    parser = OptionsParser(
        "bnfree bench",
        usage="bnfree bench FILE|NAME [options]",
        description=DESCRIPTION,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="FILE|NAME", help="packed file, or name of a pretrained network")
    parser.add_argument("--batch_sizes", default="1,32", help="images in a call (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    parser.add_argument("--image_size", type=int, help="height and width in pixels (default: as the file says)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each table, about; ten rounds at least (default: %(default)s)"
    )
    parser.add_argument("--engines", default=",".join(NAMES), help="what to time (default: %(default)s)")
    return parser

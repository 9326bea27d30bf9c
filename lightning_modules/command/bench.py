"""`bnfree bench`: its manual, its options, and the tables that it prints."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import torch

from bnfree.errors import InputError
from bnfree.lightning_modules.command.parsing import ActionParser
from bnfree.lightning_modules.deployment.bench import BenchResult, BenchSettings, Machine, bench
from bnfree.lightning_modules.deployment.contestants import BASELINE, FORMS, title_of
from bnfree.lightning_modules.deployment.timing import Times
from bnfree.text_tables import fields, table

DESCRIPTION = """\
Times a packed network against the same network in float32 (eager, and compiled with frozen weights) and with int8
convolutions, in one interleaved run, and prints a profile of its layers.

Images are noise of 8 bits, as the packed network on numba takes them; the others are given them normalised."""
EXAMPLES = """\
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
    settings = BenchSettings(
        model=given.model,
        batch_sizes=_sizes(given.batch_sizes),
        threads=given.threads,
        image_size=given.image_size,
        seconds=given.seconds,
        engines=given.engines.split(","),
    )
    found = bench(settings)
    print(fields([*_machine(found.machine), *_network(found)], width=12))
    for one in found.batches:
        print(f"\n{times_table(one.times, one.batch)}")
        print("".join(f"{note}\n" for note in one.notes), end="")
    print(f"\n{_profile(found)}")


def times_table(times: Mapping[str, Times], batch: int) -> str:
    """One line for each form, the fastest first.

    Args:
        times: of one call, by key of `FORMS`.
        batch: images in a call.
    """
    titles = [f"batch {batch}", "median ms", "p95 ms", "images/s", f"x {FORMS[BASELINE]}", "calls"]
    rows = []
    for name, time in sorted(times.items(), key=lambda item: item[1].median):
        ratio = f"{times[BASELINE].median / time.median:.2f}" if BASELINE in times else "-"
        rate = f"{batch / time.median:.1f}"
        rows.append([title_of(name), f"{1e3 * time.median:.3f}", f"{1e3 * time.p95:.3f}", rate, ratio, str(time.calls)])
    return table(titles, rows)


def _profile(found: BenchResult) -> str:
    total = sum(layer.seconds for layer in found.profile)
    first = f"{FORMS[found.profile_engine]}, batch {found.batches[0].batch}"
    rows = []
    for layer in found.profile:
        speed = f"{layer.operations / layer.seconds / 1e9:.1f}" if layer.seconds > 0 else "-"
        rows.append([layer.name, layer.shapes, f"{1e6 * layer.seconds:.0f}", f"{layer.seconds / total:.1%}", speed])
    titles = [first, "input -> output", "us", "share", "GMAC/s"]
    return table(titles, rows, ["sum", "", f"{1e6 * total:.0f}", "", ""], left=2)


def _machine(machine: Machine) -> list[tuple[str, str]]:
    popcount = "yes" if machine.popcount else "no"
    load = "unknown" if machine.load is None else f"{machine.load:.2f}"
    rows = [
        ("Processor", f"{machine.processor}; vector instructions {machine.instructions}, popcount of vectors "
                      f"(vpopcntdq): {popcount}"),
        ("Machine", f"{machine.processors} processors, {machine.threads} of them used, load average {load} before the "
                    "run"),
    ]  # fmt: skip
    if machine.busy:
        rows.append(("", "(busy: others take part of the time; measure again when it is idle)"))
    return [*rows, ("Software", f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}")]


def _network(found: BenchResult) -> list[tuple[str, str]]:
    shape = "x".join(map(str, found.image_shape))
    ratio = found.float32_bytes / found.bits_bytes
    return [
        ("Network", f"{found.packed.layers.architecture}, images {shape}"),
        ("Memory", f"file {found.file_bytes / 1e6:.3f} MB; weights and constants {found.bits_bytes / 1e6:.3f} MB as "
                   f"bits, {found.float32_bytes / 1e6:.3f} MB in float32: {ratio:.1f} times as much"),
    ]  # fmt: skip


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise InputError(f"batch_sizes={text!r} must be positive integers, such as 1,32.")
    return sizes


def _parser() -> ActionParser:
    parser = ActionParser("bnfree bench", DESCRIPTION, EXAMPLES, usage="bnfree bench FILE|NAME [options]")
    parser.add_argument("model", metavar="FILE|NAME", help="packed file, or name of a pretrained network")
    parser.add_argument("--batch_sizes", default="1,32", help="images in a call (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="processor threads (default: %(default)s)")
    parser.add_argument("--image_size", type=int, help="height and width in pixels (default: as the file says)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each table, about; ten rounds at least (default: %(default)s)"
    )
    parser.add_argument(
        "--engines",
        default=",".join(FORMS),
        help="what to time, engines of your own by their dotted paths (default: %(default)s)",
    )
    return parser

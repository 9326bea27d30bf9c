"""Times: of several functions in one interleaved run, so that all see the same machine, and of a network's layers."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from bnfree.packing import PackedNetwork
from bnfree.packing.engines import UnitEngine, prepare_trunk
from bnfree.packing.layers import PackedLayers

LEAST_ROUNDS = 10
MOST_ROUNDS = 2000
# Untimed calls in front of each time of the profile, whose differences are a thousandth of a millisecond.
WARM = 4


@dataclass(frozen=True)
class Times:
    """Of one call, in seconds."""

    median: float
    p95: float
    """95 % of the calls took no longer."""
    calls: int


def interleaved(functions: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, Times]:
    """Calls every function in turn, round after round, once untimed in front of each time.

    The untimed call brings back what the others have driven out of the caches: without it a network of a tenth of a
    millisecond takes several times as long behind one of 16, which is not what calls one behind the other take.

    Args:
        functions: by name; they have run before.
        seconds: how long all of them together may take, as far as ten rounds fit into it.
    """
    for function in functions.values():
        function()
    start = time.perf_counter()
    for function in functions.values():
        function()
        function()
    rounds = int(seconds / max(time.perf_counter() - start, 1e-9))
    measured: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(min(max(rounds, LEAST_ROUNDS), MOST_ROUNDS)):
        for name, function in functions.items():
            function()
            start = time.perf_counter()
            function()
            measured[name].append(time.perf_counter() - start)
    return {name: summarize_times(values) for name, values in measured.items()}


def summarize_times(values: list[float]) -> Times:
    """Median and 95th percentile (nearest rank) of at least one time."""
    ordered = sorted(values)
    return Times(statistics.median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1], len(ordered))


@dataclass(frozen=True)
class LayerTime:
    """What a layer adds to the time of the network."""

    name: str
    shapes: str
    """Channels, height and width of input and output."""
    operations: int
    """Multiply-accumulates of its convolutions or of its matrix, padding included, for the whole batch."""
    seconds: float
    """Median over rounds. Of a short layer on a busy machine it can come out below zero."""


@torch.no_grad()
def profile(packed: PackedNetwork, engine: UnitEngine, images: Tensor, seconds: float) -> list[LayerTime]:
    """Times the network cut behind each of its layers, in turn, and takes the differences round by round.

    An engine computes many layers in one call, without intermediate results that a clock could be read at. What a call
    takes whatever it computes is that of a call on no images, and stands in a row of its own.

    Args:
        packed: the network.
        engine: of the packed layers.
        images: (N, C, H, W), normalised or, if it knows how that is done, 8-bit ones.
        seconds: how long all of it may take, as far as ten rounds fit into it.
    """
    layers, normalization = packed.layers, packed.info.normalization
    cuts = range(1, len(layers.units) + 1)
    functions: list[Callable[[Tensor], Tensor]] = [
        prepare_trunk(replace(layers, units=layers.units[:count]), engine, normalization) for count in cuts
    ]
    whole = PackedNetwork(layers, packed.info, engine)
    functions.append(whole)
    shapes = [images.shape[1:], *(function(images).shape[1:] for function in functions)]
    # The call alone, and of it what the cut networks have, too: the first row of every pair is on no images.
    calls = [partial(whole, images[:0]), partial(functions[-2], images[:0])]
    runs = [*calls, *(partial(function, images) for function in functions)]
    for run in runs:
        run()
    rounds = min(max(int(seconds / sum(_round(runs)) / (1 + WARM)), LEAST_ROUNDS), MOST_ROUNDS)
    measured = [_round(runs) for _ in range(rounds)]
    differences = []
    for call, cut_call, *row in measured:
        layers_alone = [now - before for before, now in zip([cut_call, *row[:-2]], row[:-1], strict=True)]
        differences.append([call, *layers_alone, row[-1] - row[-2] - (call - cut_call)])
    rows = [LayerTime("call", "", 0, statistics.median(row[0] for row in differences))]
    for index, (name, operations) in enumerate(_operations(layers, shapes)):
        median = statistics.median(row[index + 1] for row in differences)
        text = " -> ".join("x".join(map(str, shape)) for shape in shapes[index : index + 2])
        rows.append(LayerTime(name, text, operations * len(images), median))
    return rows


def _round(functions: Sequence[Callable[[], object]]) -> list[float]:
    times = []
    for function in functions:
        for _ in range(WARM):
            function()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return times


def _operations(layers: PackedLayers, shapes: list[torch.Size]) -> list[tuple[str, int]]:
    """Name and operations of every layer, for one image."""
    rows = []
    for index, (unit, shape) in enumerate(zip(layers.units, shapes[1:], strict=False)):
        out_channels, in_channels, size, _ = unit.weight.shape
        positions = math.prod(shape[1:])
        operations = math.prod(unit.weight.shape) * positions
        name = f"unit {index}, {size}x{size}"
        if unit.projection is not None:
            operations += out_channels * in_channels * positions
            name += " and 1x1"
        if index == 0:
            height, width = (-(-side // layers.stem.stride) for side in shapes[0][1:])
            operations += math.prod(layers.stem.weight.values.shape) * height * width
            name = f"stem and {name}"
        rows.append((name, operations))
    return [*rows, ("classifier", layers.classifier.weight.values.numel())]

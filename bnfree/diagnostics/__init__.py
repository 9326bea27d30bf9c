"""What the checks measure: standardised weights, their signs, and the signal in front of every binary convolution."""

from bnfree.diagnostics.figures import plot_signals, render
from bnfree.diagnostics.finiteness import NonFinite, any_non_finite, first_non_finite
from bnfree.diagnostics.signals import UnitSignal, measure_signals
from bnfree.diagnostics.signs import (
    binary_layers,
    count_flips,
    flipped_share,
    pack_signs,
    unpack_signs,
    weight_signs,
)
from bnfree.diagnostics.weights import WeightStatistics, standardized_layers, weight_statistics

__all__ = [
    "NonFinite",
    "UnitSignal",
    "WeightStatistics",
    "any_non_finite",
    "binary_layers",
    "count_flips",
    "first_non_finite",
    "flipped_share",
    "measure_signals",
    "pack_signs",
    "plot_signals",
    "render",
    "standardized_layers",
    "unpack_signs",
    "weight_signs",
    "weight_statistics",
]

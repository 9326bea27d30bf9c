"""What the checks measure: standardised weights, and the signal in front of every binary convolution."""

from bnfree.diagnostics.figures import plot_signals, render
from bnfree.diagnostics.signals import UnitSignal, measure_signals
from bnfree.diagnostics.weights import WeightStatistics, standardized_layers, weight_statistics

__all__ = [
    "UnitSignal",
    "WeightStatistics",
    "measure_signals",
    "plot_signals",
    "render",
    "standardized_layers",
    "weight_statistics",
]

"""Figures of the diagnostics, drawn without pyplot and its global state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bnfree.diagnostics.signals import UnitSignal

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


def plot_signals(signals: list[UnitSignal], title: str = "Signal in front of each sign") -> Figure:
    """Variance, drift, balance of signs and gradient window of every residual unit, from the first to the last.

    Args:
        signals: what `measure_signals` gave.
        title: title of the figure.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    names = [signal.name.removeprefix("body.") for signal in signals]
    positions = range(len(signals))
    figure = Figure(figsize=(max(7.0, 0.42 * len(signals) + 2), 8.5), layout="constrained")
    figure.suptitle(title)
    variance, drift, balance, window = figure.subplots(4, 1, sharex=True)

    variance.plot(positions, [s.variance for s in signals], "o-", label="measured")
    if any(s.expected_variance is not None for s in signals):
        expected = [float("nan") if s.expected_variance is None else s.expected_variance for s in signals]
        variance.plot(positions, expected, "x--", color="black", label="for which β is right: 1/β²")
    variance.set_yscale("log")
    variance.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    variance.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    variance.yaxis.set_minor_formatter(NullFormatter())
    variance.set_ylabel("variance of x\n(mean over channels)")

    drift.plot(positions, [s.drift for s in signals], "o-")
    drift.set_ylabel("|mean| / std of x\n(mean over channels)")
    drift.set_ylim(bottom=0)

    balance.plot(positions, [s.imbalance for s in signals], "o-", label="mean over channels")
    balance.plot(positions, [s.worst_imbalance for s in signals], "v:", color="tab:red", label="worst channel")
    balance.set_ylabel("|E sign(βx + shift)|\n(1: all of one sign)")
    balance.set_ylim(-0.03, 1.03)

    window.plot(positions, [s.window for s in signals], "o-")
    window.set_ylabel("share of values with\n|βx + shift| < 1")
    window.set_ylim(-0.03, 1.03)

    for axes in (variance, drift, balance, window):
        axes.grid(alpha=0.3)
    for axes in (variance, balance):
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small", frameon=False)
    figure.align_ylabels()
    window.set_xticks(list(positions), names, rotation=90)
    window.set_xlabel("residual unit (stage or block . unit)")
    return figure


def render(figure: Figure) -> np.ndarray:
    """The figure as pixels, uint8 (H, W, 3)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]

"""Thin Lightning shells around `bnfree`: some change training, some only observe; the first line of each says which."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bnfree.import_names import one_module
from bnfree.plugins import BUILT_IN

if TYPE_CHECKING:
    from bnfree.callbacks.adaptive_gradient_clipping import AdaptiveGradientClipping
    from bnfree.callbacks.calibration import Calibration
    from bnfree.callbacks.channels_last import ChannelsLast
    from bnfree.callbacks.collapse_check import CollapseCheck
    from bnfree.callbacks.compiled_backbone import CompiledBackbone
    from bnfree.callbacks.confusion_matrix import ConfusionMatrix
    from bnfree.callbacks.early_bird import EarlyBird
    from bnfree.callbacks.gradient_windows import GradientWindows
    from bnfree.callbacks.keep_freed_memory import KeepFreedMemory
    from bnfree.callbacks.lottery_ticket import LotteryTicket
    from bnfree.callbacks.multi_prize_ticket import MultiPrizeTicket
    from bnfree.callbacks.non_finite_stop import NonFiniteStop
    from bnfree.callbacks.prediction_writer import PredictionWriter
    from bnfree.callbacks.signal_propagation import SignalPropagation
    from bnfree.callbacks.throughput import Throughput
    from bnfree.callbacks.training_bar import TrainingBar
    from bnfree.callbacks.weight_dynamics import WeightDynamics
    from bnfree.callbacks.weight_standardization_check import WeightStandardizationCheck

one_module(__name__)

__all__ = [
    "AdaptiveGradientClipping",
    "Calibration",
    "ChannelsLast",
    "CollapseCheck",
    "CompiledBackbone",
    "ConfusionMatrix",
    "EarlyBird",
    "GradientWindows",
    "KeepFreedMemory",
    "LotteryTicket",
    "MultiPrizeTicket",
    "NonFiniteStop",
    "PredictionWriter",
    "SignalPropagation",
    "Throughput",
    "TrainingBar",
    "WeightDynamics",
    "WeightStandardizationCheck",
]

_MODULES = {
    "AdaptiveGradientClipping": "bnfree.callbacks.adaptive_gradient_clipping",
    "Calibration": "bnfree.callbacks.calibration",
    "ChannelsLast": "bnfree.callbacks.channels_last",
    "CollapseCheck": "bnfree.callbacks.collapse_check",
    "CompiledBackbone": "bnfree.callbacks.compiled_backbone",
    "ConfusionMatrix": "bnfree.callbacks.confusion_matrix",
    "GradientWindows": "bnfree.callbacks.gradient_windows",
    "KeepFreedMemory": "bnfree.callbacks.keep_freed_memory",
    "EarlyBird": "bnfree.callbacks.early_bird",
    "LotteryTicket": "bnfree.callbacks.lottery_ticket",
    "MultiPrizeTicket": "bnfree.callbacks.multi_prize_ticket",
    "NonFiniteStop": "bnfree.callbacks.non_finite_stop",
    "PredictionWriter": "bnfree.callbacks.prediction_writer",
    "SignalPropagation": "bnfree.callbacks.signal_propagation",
    "Throughput": "bnfree.callbacks.throughput",
    "TrainingBar": "bnfree.callbacks.training_bar",
    "WeightDynamics": "bnfree.callbacks.weight_dynamics",
    "WeightStandardizationCheck": "bnfree.callbacks.weight_standardization_check",
}

# Callbacks that are plugins have their line there.
_MODULES |= {path.rpartition(".")[2]: path.rpartition(".")[0] for path in BUILT_IN["callback"].values()}
__all__ += [name for name in _MODULES if name not in __all__]


def __getattr__(name: str) -> Any:
    # Imported on first use: `bnfree --help` must not wait for torch and Lightning.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

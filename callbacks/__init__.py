"""Thin Lightning shells around `bnfree`: some change training, some only observe; the first line of each says which."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from callbacks.adaptive_gradient_clipping import AdaptiveGradientClipping
    from callbacks.channels_last import ChannelsLast
    from callbacks.compiled_backbone import CompiledBackbone
    from callbacks.early_bird import EarlyBird
    from callbacks.keep_freed_memory import KeepFreedMemory
    from callbacks.lottery_ticket import LotteryTicket
    from callbacks.multi_prize_ticket import MultiPrizeTicket
    from callbacks.prediction_writer import PredictionWriter
    from callbacks.signal_propagation import SignalPropagation
    from callbacks.throughput import Throughput
    from callbacks.weight_dynamics import WeightDynamics
    from callbacks.weight_standardization_check import WeightStandardizationCheck

__all__ = [
    "AdaptiveGradientClipping",
    "ChannelsLast",
    "CompiledBackbone",
    "EarlyBird",
    "KeepFreedMemory",
    "LotteryTicket",
    "MultiPrizeTicket",
    "PredictionWriter",
    "SignalPropagation",
    "Throughput",
    "WeightDynamics",
    "WeightStandardizationCheck",
]

_MODULES = {
    "AdaptiveGradientClipping": "callbacks.adaptive_gradient_clipping",
    "ChannelsLast": "callbacks.channels_last",
    "CompiledBackbone": "callbacks.compiled_backbone",
    "KeepFreedMemory": "callbacks.keep_freed_memory",
    "EarlyBird": "callbacks.early_bird",
    "LotteryTicket": "callbacks.lottery_ticket",
    "MultiPrizeTicket": "callbacks.multi_prize_ticket",
    "PredictionWriter": "callbacks.prediction_writer",
    "SignalPropagation": "callbacks.signal_propagation",
    "Throughput": "callbacks.throughput",
    "WeightDynamics": "callbacks.weight_dynamics",
    "WeightStandardizationCheck": "callbacks.weight_standardization_check",
}


def __getattr__(name: str) -> Any:
    # Imported on first use: `bnfree --help` must not wait for torch and Lightning.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""LightningModules around a backbone, and the `bnfree` command."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnfree.import_names import one_module

if TYPE_CHECKING:
    from bnfree.lightning_modules.modules.distilled_classifier import DistilledClassifier
    from bnfree.lightning_modules.modules.image_classifier import ImageClassifier
    from bnfree.lightning_modules.modules.teacher import Teacher
    from bnfree.lightning_modules.modules.torchvision_network import TorchvisionNetwork
    from bnfree.lightning_modules.reports.report import ReportSettings, report
    from bnfree.lightning_modules.training.fit import FitResult, fit
    from bnfree.lightning_modules.training.settings import FitSettings

one_module(__name__)

PUBLIC = {
    "DistilledClassifier": "modules.distilled_classifier",
    "FitResult": "training.fit",
    "FitSettings": "training.settings",
    "ImageClassifier": "modules.image_classifier",
    "ReportSettings": "reports.report",
    "Teacher": "modules.teacher",
    "TorchvisionNetwork": "modules.torchvision_network",
    "fit": "training.fit",
    "report": "reports.report",
}
"""Where each public name is."""

__all__ = [
    "DistilledClassifier",
    "FitResult",
    "FitSettings",
    "ImageClassifier",
    "ReportSettings",
    "Teacher",
    "TorchvisionNetwork",
    "fit",
    "report",
]


def __getattr__(name: str) -> Any:
    # Imported on first use: `bnfree --help` must not wait for torch and Lightning.
    if name in PUBLIC:
        return getattr(importlib.import_module(f"bnfree.lightning_modules.{PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

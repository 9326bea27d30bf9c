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

one_module(__name__)

_MODULES = {
    "DistilledClassifier": "modules.distilled_classifier",
    "ImageClassifier": "modules.image_classifier",
    "Teacher": "modules.teacher",
    "TorchvisionNetwork": "modules.torchvision_network",
}

__all__ = ["DistilledClassifier", "ImageClassifier", "Teacher", "TorchvisionNetwork"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `bnfree --help` must not wait for torch and Lightning.
    if name in _MODULES:
        return getattr(importlib.import_module(f"bnfree.lightning_modules.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

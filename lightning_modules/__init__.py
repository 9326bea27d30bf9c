"""LightningModules around a backbone, and the `bnfree` command."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.distilled_classifier import DistilledClassifier
    from lightning_modules.image_classifier import ImageClassifier
    from lightning_modules.teacher import Teacher
    from lightning_modules.torchvision_network import TorchvisionNetwork

_MODULES = {
    "DistilledClassifier": "distilled_classifier",
    "ImageClassifier": "image_classifier",
    "Teacher": "teacher",
    "TorchvisionNetwork": "torchvision_network",
}

__all__ = ["DistilledClassifier", "ImageClassifier", "Teacher", "TorchvisionNetwork"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `bnfree --help` must not wait for torch and Lightning.
    if name in _MODULES:
        return getattr(importlib.import_module(f"lightning_modules.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""LightningModules around a backbone, and the `bnfree` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.image_classifier import ImageClassifier

__all__ = ["ImageClassifier"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `bnfree --help` must not wait for torch and Lightning.
    if name == "ImageClassifier":
        from lightning_modules.image_classifier import ImageClassifier

        return ImageClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Builds the API reference from the docstrings, as HTML: python docs/build.py [DIRECTORY].

By default into `site/`. Needs the extra `docs`. Any warning is an error.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

MODULES = (
    "bnfree.lightning_modules",
    "bnfree.callbacks",
    "bnfree.datamodules",
    "bnfree.backbones",
    "bnfree.normalizers",
    "bnfree.heads",
    "bnfree.estimators",
    "bnfree.weight_transforms",
    "bnfree.losses",
    "bnfree.binarize",
    "bnfree.activations",
    "bnfree.convolution",
    "bnfree.calibration",
    "bnfree.clipping",
    "bnfree.tickets",
    "bnfree.packing",
    "bnfree.costs",
    "bnfree.diagnostics",
    "bnfree.reference",
    "bnfree.plugins",
    "bnfree.errors",
)


def build(directory: Path) -> None:
    """Writes a page for each public module, an index and a search.

    Args:
        directory: where they go.
    """
    import pdoc

    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            # pdoc takes what a package imports on first use for a missing module.
            vars(module)[public] = getattr(module, public)
    pdoc.render.configure(docformat="google", show_source=False, footer_text="bnfree")
    # Of packages without a list of public names the modules below them are none.
    pdoc.pdoc(*MODULES, *(f"!{name}\\..*" for name in MODULES), output_directory=directory)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # What torch and Lightning warn about while they are imported says nothing of these pages.
        for package in ("torch", "lightning", "torchmetrics", "tensorboard", "torchvision", "google", "jsonargparse"):
            warnings.filterwarnings("default", module=rf"{package}\b")
        build(Path(sys.argv[1] if len(sys.argv) > 1 else "site"))

"""The examples in docstrings are run as they are printed."""

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import bnfree

MODULES = [
    module.name
    for module in pkgutil.walk_packages(bnfree.__path__, "bnfree.")
    if (spec := module.module_finder.find_spec(module.name, None))
    and spec.origin
    and ">>> " in Path(spec.origin).read_text()
]

PUBLIC = {
    "backbones": ["ReActNet18", "ReActNetA"],
    "convolution": ["BinaryConv2d"],
    "binarize": ["sign", "RSign"],
    "calibration": ["calibrate"],
    "clipping": ["adaptive_clip_grad_"],
    "costs": ["count_ops"],
    "packing": ["pack", "load"],
    "tickets": ["prune"],
    "reference": ["load_checkpoint"],
    "callbacks": ["AdaptiveGradientClipping", "WeightStandardizationCheck", "SignalPropagation", "LotteryTicket"],
    "lightning_modules": [
        "ImageClassifier",
        "DistilledClassifier",
        "fit",
        "evaluate",
        "run_recipe",
        "run_lottery",
        "run_controls",
        "report",
        "export",
    ],
    "datamodules": [
        "DigitsDataModule",
        "FashionMNISTDataModule",
        "CIFAR10DataModule",
        "CIFAR100DataModule",
        "ImageFolderDataModule",
        "ImageNetDataModule",
    ],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PUBLIC.items() for name in names])
def test_every_public_name_has_an_example(module, name):
    assert ">>> " in getattr(importlib.import_module(f"bnfree.{module}"), name).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    # Some write files.
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0

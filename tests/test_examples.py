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


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name, tmp_path, monkeypatch):
    # Some write files.
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.failed == 0

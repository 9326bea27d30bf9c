"""Settings of every test process, made before torch is imported."""

import os
from unittest import mock

# The tensors here are small: more threads gain nothing, and on a busy machine they wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from bnfree import plugins

# Drawn anew in each run, examples find more, but a test would fail by chance: `--hypothesis-profile=default` for that.
# A busy machine may need any time for an example.
settings.register_profile("same", derandomize=True, deadline=None)
settings.load_profile("same")


@pytest.fixture(autouse=True, scope="session")
def home(tmp_path_factory):
    """A directory of the tests' own for the key that files are signed with, and for the registry."""
    place = str(tmp_path_factory.mktemp("home"))
    with mock.patch.dict(os.environ, dict.fromkeys(("XDG_CONFIG_HOME", "XDG_DATA_HOME"), place)):
        yield


@pytest.fixture(autouse=True)
def seed():
    """The same random numbers for a test, whichever tests the process has run before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def registered_plugins(monkeypatch):
    """Names that a test registers, as a subclass of `SignEstimator` with a name does, are gone after it."""
    monkeypatch.setattr(plugins, "_registered", {kind: dict(found) for kind, found in plugins._registered.items()})

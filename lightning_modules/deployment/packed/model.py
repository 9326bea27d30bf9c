"""The packed network that a command line names: a file, or a pretrained network by its name."""

from __future__ import annotations

import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from bnfree.errors import InputError
from bnfree.lightning_modules.training.config.sources import take_positionals, values_of
from bnfree.packing import PackedNetwork, is_packed, load, pretrained_path
from bnfree.packing.engines import EngineName

SUFFIX = ".safetensors"


class OptionsParser(ArgumentParser):
    """A parser whose complaints are an `InputError`."""

    def error(self, message: str) -> NoReturn:
        """Raises what is wrong in one sentence."""
        raise InputError(f"{message}; see {self.prog} --help.")


def add_engine_options(parser: ArgumentParser) -> None:
    """Adds what says how a packed network is computed."""
    parser.add_argument(
        "--engine",
        default="auto",
        help="auto, numba, torch or openvino (default: numba if it is installed, else torch)",
    )
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: as torch chooses)")


def names_packed_network(arguments: Sequence[str]) -> bool:
    """Whether a command line of `test` or `predict` is about a packed network, and not about a checkpoint.

    Args:
        arguments: what follows the subcommand.
    """
    positionals, _ = take_positionals(arguments)
    return bool(positionals) or any(_is_packed_network(v) for v in values_of(arguments, "--model", "--ckpt_path"))


def _is_packed_network(given: str) -> bool:
    if Path(given).suffix == SUFFIX or is_packed(given):
        return True
    try:
        pretrained_path(given)
    except InputError:
        return False
    return True


def load_model(given: str, engine: EngineName = "auto", threads: int | None = None) -> PackedNetwork:
    """The packed network of a file or a name.

    Args:
        given: the file, or the name of a pretrained network.
        engine: see `PackedNetwork`; where numba is missing, stderr says how to get it.
        threads: for torch and the engines; None: left as they are.

    Raises:
        InputError: no such network, a damaged file, or an engine that is not there.
    """
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads={threads} must be at least 1.")
        torch.set_num_threads(threads)
    path = model_file(given)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = load(path, engine)
    for warning in caught:
        print(f"bnfree: note: {warning.message}", file=sys.stderr)
    return network


def model_file(given: str) -> Path:
    """The file that is meant.

    Args:
        given: a packed file, or the name of a pretrained network.

    Raises:
        InputError: there is none.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        if path.suffix:
            raise InputError(f"model={given!r} is no file; give a packed file, as bnfree export writes it.")
        path = pretrained_path(given)
    elif path.suffix != SUFFIX and not is_packed(path):
        raise InputError(
            f"model={given!r} is no packed network; make one of a checkpoint with bnfree export, or evaluate the "
            "checkpoint itself with --ckpt_path."
        )
    return path

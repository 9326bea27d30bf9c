"""A parsed config as text that can be read back."""

from __future__ import annotations

import warnings
from enum import Enum
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from bnfree.errors import InputError

# What jsonargparse writes in place of a value that it does not know how to write.
UNWRITTEN = "Unable to serialize instance"


def dump_config(parser: LightningArgumentParser, options: Namespace) -> str:
    """The YAML of a config, every value as it was given.

    jsonargparse fails on defaults that are members of an enumeration (of Lightning's Timer), and writes a complaint in
    place of the names of functions (ModelPruning) and devices (StochasticWeightAveraging).

    Args:
        parser: of the subcommand.
        options: what it has parsed.

    Raises:
        InputError: a value that no text stands for, such as a function that was made in Python.
    """
    plain = _plain(options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=rf"\s*{UNWRITTEN}")
        text: str = parser.dump(plain, skip_none=False, skip_validation=True)
    if UNWRITTEN not in text:
        return text
    return yaml.safe_dump(_repaired(yaml.safe_load(text), plain, ""), sort_keys=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        changed = value.clone()
        for key, inner in vars(value).items():
            setattr(changed, key, _plain(inner))
        return changed
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, torch.device) else value


def _repaired(dumped: Any, given: Any, name: str) -> Any:
    if isinstance(dumped, dict):
        inside = vars(given) if isinstance(given, Namespace) else given
        return {key: _repaired(value, inside.get(key), f"{name}.{key}".strip(".")) for key, value in dumped.items()}
    if isinstance(dumped, list):
        return [_repaired(value, inner, name) for value, inner in zip(dumped, given, strict=True)]
    if not (isinstance(dumped, str) and dumped.startswith(UNWRITTEN)):
        return dumped
    if isinstance(given, str):
        return given
    raise InputError(
        f"{name.replace('.init_args', '')}={given!r} cannot be written into the run's config, which could not be read "
        "back; give the dotted path of a class or function in its place."
    )

"""What `--ckpt_path` alone implies about the other arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.training.checkpoints import (
    read_checkpoint,
    remembered_config,
    remembered_config_as_argument,
)
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, latest_config, run_directory_of


def values_of(arguments: Sequence[str], *names: str) -> list[str]:
    """The values given to an option, in order, in the forms `--name value` and `--name=value`."""
    values = []
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names and equals:
            values.append(value)
        elif name in names and i + 1 < len(arguments):
            values.append(arguments[i + 1])
    return values


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Names the checkpoint's file for `--ckpt_path best|last`, and adds the config a checkpoint was written with.

    A checkpoint on the command line beats those of configs, whatever the order. The added config comes first, so that
    everything the user has given beats it.

    Args:
        arguments: subcommand and options.

    Raises:
        InputError: no such checkpoint, or one that does not lead to a config.
    """
    subcommand, options = arguments[0], list(arguments[1:])
    given = values_of(options, "--ckpt_path")
    if not given or "--help" in options or "-h" in options:
        return [subcommand, *options]
    path = given[-1]
    if path in ("best", "last"):
        run_dirs = values_of(options, "--run_dir")
        if not run_dirs:
            raise InputError(f"ckpt_path={path!r} is a checkpoint of a run; say of which with --run_dir=RUN.")
        path = str(Path(run_dirs[-1]).expanduser() / CHECKPOINTS / f"{path}.ckpt")
    # Last, since the config of a run holds `ckpt_path: null`, and a config that comes later would win.
    options += ["--ckpt_path", path]
    if not is_local(path) or _names_a_model(options):
        return [subcommand, *options]
    if not Path(path).is_file():
        read_checkpoint(path)
    return [subcommand, *_configs_of(path), *options]


def _configs_of(path: str) -> list[str]:
    directory = run_directory_of(path)
    if directory is None:
        return ["--config", remembered_config_as_argument(path)]
    configs = ["--config", str(latest_config(directory))]
    if Path(path).suffix != ".ckpt":
        # A ticket may lie in another run's directory than its own, and says itself which network it is of.
        try:
            sections = remembered_config(read_checkpoint(path))
        except InputError:
            # What is wrong with the file is said when its weights are wanted, and the user may have more to say on it.
            return configs
        configs += ["--config", json.dumps(sections)] if "model" in sections else []
    return configs


def is_local(path: str) -> bool:
    """Whether a checkpoint is a file of this machine and not an address or a word that the Trainer understands."""
    return "://" not in path and path not in ("hpc", "registry") and not path.startswith("registry:")


def _names_a_model(options: list[str]) -> bool:
    if any(option.partition("=")[0] in ("--model", "--model.class_path") for option in options):
        return True
    return any("model" in _content(config) for config in values_of(options, "--config", "-c"))


def _content(config: str) -> dict[str, Any]:
    # What is wrong with a config is the parser's to say.
    try:
        content = yaml.safe_load(Path(config).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}

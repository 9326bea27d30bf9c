"""What recipes and lotteries have in common: their files, the configs these name, and the accuracies of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.training.config.shipped import find_config, shipped_folders
from bnfree.lightning_modules.training.run_directory import METRICS
from bnfree.lightning_modules.training.settings import FitSettings


def find_experiment(given: str | Path, what: str) -> Path:
    """The file of an experiment: a path, or the name of a shipped one.

    Args:
        given: what the user gave.
        what: such as `recipe`, for messages.

    Raises:
        InputError: there is neither; it names the nearest.
    """
    return find_config(given, given=f"{what} {str(given)!r}")


def read_yaml(path: Path, given: str) -> Any:
    """What a YAML file holds.

    Args:
        path: the file.
        given: how the user gave it, the subject of the message.

    Raises:
        InputError: it is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{given} is not YAML ({' '.join(str(error).split())}).") from error


def listed_configs(config: Any, file: Path, where: str) -> list[str]:
    """The configs that an experiment's file names, one or a list: paths relative to it, else names of shipped ones.

    Args:
        config: what the file says.
        file: the file.
        where: the subject of the message.

    Raises:
        InputError: one that does not exist.
    """
    return [_config(str(name), file, where) for name in (config if isinstance(config, list) else [config])]


def _config(name: str, file: Path, where: str) -> str:
    found = find_config(name, file.parent, f"{where} names the config {name!r}, which")
    # Where the package lies may change between two commands, and between two machines.
    shipped = [place.resolve() for place in shipped_folders()]
    return found.stem if found.parent.resolve() in shipped else str(found)


def options_in(options: Any, where: str) -> dict[str, Any]:
    """Options of a fit by dotted name, as a file gives them.

    Raises:
        InputError: something else.
    """
    if not isinstance(options or {}, dict):
        raise InputError(f"{where}={options!r} must map dotted names to values, as trainer.max_epochs: 3.")
    return {str(key): value for key, value in (options or {}).items()}


def on_top(below: FitSettings, above: FitSettings) -> FitSettings:
    """The settings of a fit with others on top of them.

    Raises:
        InputError: a directory or a checkpoint, which an experiment chooses itself.
    """
    for name in ("run_dir", "ckpt_path"):
        if getattr(above, name) is not None:
            raise InputError(f"fit.{name}={str(getattr(above, name))!r} is chosen by the experiment; leave it out.")
    return FitSettings(
        configs=[*as_list(below.configs), *as_list(above.configs)],
        options={**below.options, **above.options},
        arguments=[*below.arguments, *above.arguments],
    )


def as_list(configs: Any) -> list[Any]:
    """The configs of a fit, of which one may stand alone."""
    return [configs] if isinstance(configs, str | Path | Mapping) else list(configs)


def validation_accuracies(run_directory: Path) -> list[float]:
    """The validation accuracy after each epoch of a run, as shares from 0 to 1; empty without validation."""
    metrics = run_directory / METRICS
    if not metrics.is_file():
        return []
    with metrics.open() as file:
        return [float(row["val/acc"]) for row in csv.DictReader(file) if row.get("val/acc")]

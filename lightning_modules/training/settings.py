"""Typed settings of one run, and the one place that turns them into what the parser takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError

PARTS = ("validate", "test", "predict")


@dataclass(frozen=True)
class RunSettings:
    """Settings of one run, each stronger than those above it."""

    configs: Sequence[str | Path | Mapping[str, Any]] = ()
    """Names of shipped recipes such as `quickstart`, paths of YAML files, or what such a file holds, as plain values;
    later ones win. One may stand alone."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Plain values by dotted name, such as `{"trainer.max_epochs": 5, "model.backbone.width": 8}`. They win over all
    configs; `{"trainer.callbacks+": [...]}` appends to a list."""
    arguments: Sequence[str] = ()
    """Words as on the command line. They win over `options`, but configs among them do not."""
    run_dir: str | Path | None = None
    """Where the run goes; None: a new directory below `runs/`."""
    ckpt_path: str | Path | None = None
    """Checkpoint, with whose config the run starts unless `configs` say otherwise."""


@dataclass(frozen=True)
class FitSettings(RunSettings):
    """Settings of a training; with `ckpt_path` it goes on from there, with everything the checkpoint remembers."""


@dataclass(frozen=True)
class EvaluateSettings(RunSettings):
    """Settings of an evaluation of the checkpoint `ckpt_path`; without `run_dir` its run's directory is used."""

    part: str = "test"
    """`validate`, `test` or `predict`."""


def words_of(settings: RunSettings) -> list[str]:
    """The settings in the form of a command line, without the subcommand.

    jsonargparse applies a dotted name below a class, such as `model.backbone.width`, from a list of words alone: no
    object that it takes changes one argument of a class and leaves the others as a config has them.

    Raises:
        InputError: an option's value that is not plain.
    """
    configs: list[str] = []
    words = list(settings.arguments)
    if settings.options:
        configs, words = split_configs(words)
    given = [settings.configs] if isinstance(settings.configs, str | Path | Mapping) else settings.configs
    words = [
        *(f"--config={text_of('config', config)}" for config in given),
        *configs,
        *(f"--{name}={text_of(name, value)}" for name, value in settings.options.items()),
        *words,
    ]
    if settings.run_dir is not None:
        words.append(f"--run_dir={settings.run_dir}")
    if settings.ckpt_path is not None:
        words.append(f"--ckpt_path={settings.ckpt_path}")
    return words


def split_configs(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separates `--config` from the other options, which configs must come before.

    Args:
        words: of a command line.
    """
    configs: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name in ("--config", "-c"):
            configs.append(f"--config={value if equals else next(remaining, '')}")
        else:
            rest.append(word)
    return configs, rest


def text_of(name: str, value: Any) -> str:
    """A value of an option as it would be typed.

    Args:
        name: of the option, for messages.
        value: a plain value.

    Raises:
        InputError: it is not plain.
    """
    if isinstance(value, str | Path):
        return str(value)
    try:
        text: str = yaml.safe_dump(plain(value), default_flow_style=True, width=10**6)
    except yaml.YAMLError:
        raise InputError(
            f"options[{name!r}]={value!r} is not a plain value; give numbers, texts, lists and mappings, a class by "
            "its class_path and init_args."
        ) from None
    return text.removesuffix("\n").removesuffix("\n...")


def plain(value: Any) -> Any:
    """A value with lists for tuples and texts for paths, as a file gives it back."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value

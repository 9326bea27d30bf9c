"""`lottery.yaml` in the directory of a run: what it was started with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from bnfree import trust
from bnfree.errors import InputError
from bnfree.files import whole_file
from bnfree.lightning_modules.experiments.files import as_list
from bnfree.lightning_modules.experiments.lottery.settings import (
    DENSITY_KEYS,
    SECTION,
    LotterySettings,
    check_settings,
)
from bnfree.lightning_modules.training.config.found import check_found, read_found
from bnfree.lightning_modules.training.settings import FitSettings, plain

SETTINGS = "lottery.yaml"


def write_started(directory: Path, settings: LotterySettings) -> None:
    """Writes what a run was started with; seeds and levels that are added later are added to the file.

    Args:
        directory: of the run.
        settings: of the command that goes on with it.
    """
    section = {key: getattr(settings, key) for key in SECTION}
    earlier = read_started(directory)
    if earlier is not None:
        section["seeds"] = [*earlier.seeds, *(seed for seed in settings.seeds if seed not in earlier.seeds)]
        if len(check_settings(earlier)) > len(check_settings(settings)):
            section |= {key: getattr(earlier, key) for key in DENSITY_KEYS}
    fit = {
        "configs": plain(as_list(settings.fit.configs)),
        "options": plain(settings.fit.options),
        "arguments": list(settings.fit.arguments),
    }
    content = {"fit": fit, "lottery": section}
    # The user's own words, and the configs that they name.
    words = [content, *map(_content_of, _configs_in(fit))]
    trust.approve(words)
    with whole_file(directory / SETTINGS) as unfinished:
        unfinished.write_text(trust.signature_comment(words) + yaml.safe_dump(content, sort_keys=False))


def check_started(directory: Path) -> None:
    """Refuses to train what a run was started with, if that names classes which a file may not name.

    Args:
        directory: of the run, whose file the user has not written on this command line.

    Raises:
        InputError: it does.
    """
    path = directory / SETTINGS
    content, signed = read_found(path), trust.signatures_in(path.read_text(encoding="utf-8"))
    fit = content.get("fit", content) if isinstance(content, Mapping) else {}
    for config in _configs_in(fit if isinstance(fit, Mapping) else {}):
        trust.approve_signed(_content_of(config), signed)
        check_found(config)
    # The configs are looked at by what they hold.
    words = {key: value for key, value in fit.items() if key != "configs"} if isinstance(fit, Mapping) else {}
    trust.check([_without_configs(value) for value in words.values()], f"{str(path)!r}")


def _configs_in(fit: Mapping[str, Any]) -> list[Path]:
    """The files of configs, other than shipped ones, among the words that a run was started with."""
    words = [word for key in ("arguments", "options") if isinstance(fit.get(key), list) for word in fit[key]]
    given = [word.removeprefix("--config=") for word in words if str(word).startswith("--config=")]
    configs = fit.get("configs")
    names = [*given, *(configs if isinstance(configs, list) else [])]
    files = [Path(name).expanduser() for name in names if isinstance(name, str) and not name.lstrip().startswith("{")]
    return [file for file in files if file.suffix and file.is_file()]


def _without_configs(words: Any) -> Any:
    return [word for word in words if not str(word).startswith("--config=")] if isinstance(words, list) else words


def _content_of(config: Path) -> Any:
    try:
        return yaml.safe_load(config.read_text(encoding="utf-8"))
    # What is wrong with a config is the parser's to say.
    except (OSError, ValueError, yaml.YAMLError):
        return None


def read_started(directory: Path) -> LotterySettings | None:
    """The settings that a run was started with; None if there is no run.

    Raises:
        InputError: the file has been changed by hand into something else.
    """
    path = directory / SETTINGS
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = read_found(path)
    except InputError as error:
        raise InputError(f"{str(path)!r} cannot be read; give another --run_dir.") from error
    try:
        # A score has a name or a dotted path, which is looked up before anything is compared.
        trust.check(content["lottery"], f"{str(path)!r}")
        # Runs of earlier versions hold the words of their command line.
        fit = FitSettings(**content["fit"]) if "fit" in content else FitSettings(arguments=content.get("options") or [])
        return LotterySettings(fit=fit, run_dir=directory, **content["lottery"])
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read; give another --run_dir.") from error

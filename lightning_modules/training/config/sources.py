"""What a config, a run directory or a checkpoint on a command line implies about the other arguments."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.training.checkpoints import (
    LAST_GOOD,
    as_argument,
    newest_whole_checkpoint,
    read_checkpoint,
    remembered_config,
)
from bnfree.lightning_modules.training.class_names import OPTION
from bnfree.lightning_modules.training.config.found import Found, check_found
from bnfree.lightning_modules.training.config.initial_network import network_behind
from bnfree.lightning_modules.training.config.shipped import SUFFIXES, find_config, shipped_configs
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, CONFIG, latest_config, run_directory_of
from bnfree.names import did_you_mean
from bnfree.packing.hub import is_hub, pull
from bnfree.packing.zoo import pretrained_names
from bnfree.users_words import note, take_allowed

SOURCE = "a YAML config, a run directory or a checkpoint"
CONFIG_OPTIONS = ("--config", "-c")
BACKBONE_OPTIONS = (
    "--model.backbone", "--model.backbone.class_path", "--model.init_args.backbone",
    "--model.init_args.backbone.class_path",
)  # fmt: skip
CLASSIFIER = "bnfree.lightning_modules.ImageClassifier"
FLAGS = ("--help", "-h", "--print_config", f"--{OPTION}")


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


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The config files on a command line, in order; what a checkpoint remembers stands there as text and is none."""
    return [Path(value) for value in values_of(arguments, *CONFIG_OPTIONS) if not value.lstrip().startswith("{")]


def complete_arguments(arguments: Sequence[str]) -> list[str]:
    """Names the files of configs and of `--ckpt_path best|last|last-good`, and adds the config of a checkpoint.

    Where a model is given without a backbone, that of `--model.init_from` is added.

    A checkpoint on the command line beats those of configs, whatever the order. The added config comes first, so that
    everything the user has given beats it.

    Args:
        arguments: subcommand and options.

    Raises:
        InputError: no such config, no such checkpoint, or one that does not lead to a config.
    """
    arguments = take_allowed(arguments)
    subcommand, options = arguments[0], _with_files(arguments[1:])
    note_words(options)
    for word in options:
        if isinstance(word, Found):
            check_found(Path(word))
    given = values_of(options, "--ckpt_path")
    if "--help" in options or "-h" in options:
        return [subcommand, *options]
    if not given:
        return [subcommand, *_network_behind(options), *options]
    path = given[-1]
    if path in ("best", "last", LAST_GOOD):
        run_dirs = values_of(options, "--run_dir")
        if not run_dirs:
            raise InputError(f"ckpt_path={path!r} is a checkpoint of a run; say of which with --run_dir=RUN.")
        run = Path(run_dirs[-1]).expanduser()
        path = str(newest_whole_checkpoint(run) if path == LAST_GOOD else run / CHECKPOINTS / f"{path}.ckpt")
    # Last, since the config of a run holds `ckpt_path: null`, and a config that comes later would win.
    options += ["--ckpt_path", path]
    if not is_local(path) or _names_a_model(options):
        return [subcommand, *options]
    if not Path(path).is_file():
        read_checkpoint(path)
    # Loggers of the training have no business in an evaluation, which would open another run with their service, say.
    silent = ["--config", '{"trainer": {"logger": null}}'] if subcommand in ("validate", "test", "predict") else []
    return [subcommand, *_configs_of(path), *silent, *options]


def note_words(words: Sequence[str]) -> None:
    """Remembers which classes the user has named, in the words of a command line and in the configs among them."""
    note([word for word in words if not isinstance(word, Found)])
    for config in values_of(words, *CONFIG_OPTIONS):
        if not isinstance(config, Found):
            note(_content(config))


def _with_files(options: Sequence[str]) -> list[str]:
    """The options, with the file of each `--config` in place of its name."""
    found: list[str] = []
    for i, option in enumerate(options):
        name, equals, value = option.partition("=")
        if name in CONFIG_OPTIONS and equals:
            option = f"{name}={_file(value)}"
        elif i and options[i - 1] in CONFIG_OPTIONS and not isinstance(option, Found):
            option = _file(option)
        found.append(option)
    return found


def _file(config: str) -> str:
    # A config may stand there itself, as text.
    return config if config.lstrip().startswith("{") or "\n" in config else str(find_config(config))


def _configs_of(path: str) -> list[str]:
    given, directory = f"ckpt_path={path!r}", run_directory_of(path)
    if directory is None:
        sections = remembered_config(read_checkpoint(path))
        if "model" not in sections:
            raise InputError(
                f"{given} does not say which model it was written by, and no config.yaml lies beside it; give --config."
            )
        return ["--config", as_argument(sections, given)]
    check_found(latest_config(directory))
    configs = ["--config", Found(latest_config(directory))]
    if Path(path).suffix != ".ckpt":
        # A ticket may lie in another run's directory than its own, and says itself which network it is of.
        try:
            sections = remembered_config(read_checkpoint(path))
        except InputError:
            # What is wrong with the file is said when its weights are wanted, and the user may have more to say on it.
            return configs
        configs += ["--config", as_argument(sections, given)] if "model" in sections else []
    return configs


def is_local(path: str) -> bool:
    """Whether a checkpoint is a file of this machine and not an address or a word that the Trainer understands."""
    return "://" not in path and path not in ("hpc", "registry") and not path.startswith("registry:")


def _network_behind(options: list[str]) -> list[str]:
    """The network of the initial weights, as a config, where a config has a model and none has its network."""
    configs = [_content(config) for config in values_of(options, *CONFIG_OPTIONS)]
    models = [config["model"] for config in configs if isinstance(config.get("model"), dict)]
    given = [model.get("init_args", model) for model in models]
    given = [each for each in given if isinstance(each, dict)]
    named = any(option.partition("=")[0] in BACKBONE_OPTIONS for option in options)
    if not models or named or any(each.get("backbone") is not None for each in given):
        return []
    files = [each["init_from"] for each in given if each.get("init_from")]
    files += values_of(options, "--model.init_from", "--model.init_args.init_from")
    backbone = network_behind(str(files[-1])) if files else None
    if backbone is None:
        return []
    # The data know how many classes there are now.
    arguments = {key: value for key, value in dict(backbone.get("init_args", {})).items() if key != "num_classes"}
    backbone = {**backbone, "init_args": arguments}
    class_path = next((model["class_path"] for model in reversed(models) if "class_path" in model), CLASSIFIER)
    model = {"class_path": class_path, "init_args": {"backbone": backbone}}
    return ["--config", as_argument({"model": model}, f"init_from={str(files[-1])!r}")]


def _names_a_model(options: list[str]) -> bool:
    if any(option.partition("=")[0] in ("--model", "--model.class_path") for option in options):
        return True
    return any("model" in _content(config) for config in values_of(options, *CONFIG_OPTIONS))


def _content(config: str) -> dict[str, Any]:
    # What is wrong with a config is the parser's to say.
    try:
        # A text in place of a file begins with a brace.
        content = yaml.safe_load(config if config.startswith("{") else Path(config).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def take_positionals(arguments: Sequence[str], flags: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Splits a command line into values that belong to no option, and the rest, each in its order.

    Args:
        arguments: what follows the subcommand.
        flags: options without a value, besides those that every subcommand has.
    """
    positionals: list[str] = []
    rest: list[str] = []
    for i, argument in enumerate(arguments):
        previous = arguments[i - 1] if i else ""
        takes_value = previous.startswith("-") and "=" not in previous and previous not in (*FLAGS, *flags)
        (rest if argument.startswith("-") or takes_value else positionals).append(argument)
    return positionals, rest


def options_of(source: str) -> list[str]:
    """The options that a config, a run directory or a checkpoint stands for; `hf://user/repo/file` is one on the hub.

    Raises:
        InputError: it is none of them.
    """
    path = pull(source) if is_hub(source) else Path(source).expanduser()
    if (path / CONFIG).is_file():
        last = path / CHECKPOINTS / "last.ckpt"
        return ["--ckpt_path", str(last)] if last.is_file() else ["--config", Found(latest_config(path))]
    if path.suffix in SUFFIXES or (not path.is_file() and source in shipped_configs()):
        return ["--config", source]
    if path.is_dir():
        raise InputError(f"{source!r} is a directory without {CONFIG}, not of a run; give {SOURCE}.")
    if not path.exists() and _means_pretrained(source):
        raise InputError(
            f"{source!r} is a pretrained packed network, which predict, test, bench and export take; give {SOURCE}."
        )
    if not path.exists() and not path.suffix:
        remedy = did_you_mean(source, shipped_configs()) or f"give {SOURCE}."
        raise InputError(f"{source!r} does not exist; {remedy}")
    return ["--ckpt_path", str(path)]


def _means_pretrained(name: str) -> bool:
    """Whether it begins the name of a pretrained network and of no config."""
    configs = any(config.startswith(name) for config in shipped_configs())
    return not configs and any(network.startswith(name) for network in pretrained_names())

"""`bnfree completion`: a script by which a shell completes subcommands, options and the names of configs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.command.help import ALL
from bnfree.lightning_modules.command.options import asks_for_help
from bnfree.lightning_modules.command.subcommands import SUBCOMMANDS
from bnfree.lightning_modules.training.config.shipped import shipped_configs
from bnfree.names import did_you_mean

HELP = """usage: bnfree completion SHELL

Prints a script by which bash, zsh, fish, tcsh or PowerShell completes subcommands, actions, options, those of the
shipped networks, data and optimizers included, and the names of the shipped configs. It needs a package that is not
installed with bnfree, pip install shtab, and is to be printed again with another release.

  bnfree completion bash > ~/.local/share/bash-completion/completions/bnfree
  bnfree completion zsh > ~/.zsh/_bnfree        # a folder of $fpath
"""
# They take the options of `bnfree fit`, which their short help does not list.
LIKE_FIT = ("fit", "validate", "test", "predict", "recipe", "sweep", "lottery run", "lottery early-bird")
TAKE_CONFIG = ("recipe", "sweep", "lottery run", "lottery early-bird", "summary", "analyse", "configs copy")
TAKE_FILES = (
    "runs",
    "report",
    "score-data",
    "export",
    "compress",
    "bench",
    "test",
    "predict",
    "ticket",
    "lottery controls",
    "lottery report",
)
PATHS = {"--ckpt_path", "--run_dir", "--output", "--images", "--data.data_dir", "--model.init_from", "--model"}
CLASSES = {
    "model": ("bnfree.lightning_modules.ImageClassifier", "bnfree.lightning_modules.DistilledClassifier"),
    "model.backbone": ("bnfree.backbones.ReActNet18", "bnfree.backbones.ReActNetA"),
    "model.optimizer": ("torch.optim.Adam", "torch.optim.SGD", "torch.optim.AdamW"),
    "data": (
        "bnfree.datamodules.DigitsDataModule",
        "bnfree.datamodules.FashionMNISTDataModule",
        "bnfree.datamodules.CIFAR10DataModule",
        "bnfree.datamodules.ImageFolderDataModule",
        "bnfree.datamodules.ImageNetDataModule",
    ),
}
BASH = """_bnfree_configs() {{
  compgen -W "{names}" -- $1
  compgen -f -X '!*.y*ml' -- $1
}}"""
ZSH = """_bnfree_configs() {{
  compadd {names}
  _files -g '*.y*ml'
}}"""


def run(arguments: Sequence[str]) -> None:
    """Prints the script of a shell.

    Args:
        arguments: `completion` and the shell.

    Raises:
        InputError: no shell, one that is not known, or shtab is missing.
    """
    words = arguments[1:]
    if asks_for_help(words):
        print(HELP, end="")
        return
    try:
        import shtab
    except ImportError as error:
        raise InputError("bnfree completion needs shtab, which is missing: pip install shtab.") from error
    shell, known = words[0], shtab.SUPPORTED_SHELLS
    if shell not in known or len(words) > 1:
        remedy = did_you_mean(shell, known) or f"give one of {', '.join(known)}."
        raise InputError(f"shell={' '.join(words)!r} is not known; {remedy}")
    names = " ".join(shipped_configs())
    preamble = {"bash": BASH.format(names=names), "zsh": ZSH.format(names=names)}
    print(shtab.complete(_parser(shtab.FILE), shell, preamble=preamble.get(shell, "")))


def _parser(files: Mapping[str, Any]) -> argparse.ArgumentParser:
    """The tree of subcommands, actions and options, as argparse would parse it.

    Args:
        files: how each shell completes the name of a file.
    """
    parser = argparse.ArgumentParser("bnfree")
    parser.add_argument("--version", action="store_true", help="the version")
    subcommands = parser.add_subparsers()
    fit = _options(["fit", ALL]) | _class_options()
    for name, subcommand in SUBCOMMANDS.items():
        one = subcommands.add_parser(name, help=subcommand.summary)
        module = importlib.import_module(f"bnfree.lightning_modules.{subcommand.module}")
        actions: dict[str, str] = {key: found.summary for key, found in getattr(module, "ACTIONS", {}).items()}
        if name == "configs":
            actions["copy"] = "write a shipped config into a file to edit"
        if not actions:
            _fill(one, name, fit, files)
            continue
        inner = one.add_subparsers()
        for action, summary in actions.items():
            # shtab leaves out what has no help.
            _fill(inner.add_parser(action, help=summary), f"{name} {action}", fit, files)
    return parser


def _fill(parser: argparse.ArgumentParser, command: str, fit: set[str], files: Mapping[str, Any]) -> None:
    words = command.split()
    options = _options([*words, "--help"]) | (fit if command in LIKE_FIT else set())
    configs = {**files, "bash": "_bnfree_configs", "zsh": "_bnfree_configs"}
    for option in sorted(options - {"--help"}):
        if option in ("--config", *PATHS):
            parser.add_argument(option).complete = configs if option == "--config" else files  # type: ignore[attr-defined]
        else:
            # Mostly its value is written behind `=`.
            parser.add_argument(option, action="store_true")
    if command in TAKE_CONFIG or words[0] in TAKE_FILES or command in TAKE_FILES:
        positional = parser.add_argument("file", nargs="*")
        positional.complete = configs if command in TAKE_CONFIG else files  # type: ignore[attr-defined]


def _options(words: Sequence[str]) -> set[str]:
    """The options that a help names."""
    run = importlib.import_module(f"bnfree.lightning_modules.{SUBCOMMANDS[words[0]].module}").run
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        run(list(words))
    return set(re.findall(r"(?<![\w-])(--[A-Za-z](?:[\w.-]*\w)?\+?)", out.getvalue()))


def _class_options() -> set[str]:
    """Those of the classes that configs mostly name."""
    from bnfree.lightning_modules.training.config.known_classes import options_of

    return {f"--{key}.{name}" for key, paths in CLASSES.items() for path in paths for name in options_of(path)}

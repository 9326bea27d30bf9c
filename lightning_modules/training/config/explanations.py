"""The parser's complaints, put into one sentence that names the argument, the value and the remedy.

jsonargparse describes a mistake by all the types it has tried, nested as deeply as the config. What the user needs is
the innermost complaint of the first branch. A message that none of the functions here recognises is shown shortened.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence

import yaml
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import StrategyRegistry

from bnfree.errors import InputError
from bnfree.lightning_modules.compat import (
    CALLBACK_TWICE,
    CLASS_PATH,
    EXPECTED_TYPE,
    GIVEN_VALUE,
    NO_ATTRIBUTE,
    NO_CONFIG,
    NO_MODULE,
    NO_SUBCLASS,
    NOT_DOTTED,
    PARSER_KEY,
    REQUIRED,
    TRIED_TYPES,
    UNKNOWN_INIT_ARGUMENT,
    UNKNOWN_KEY,
    UNKNOWN_METRIC,
    UNRECOGNIZED,
    WITHOUT_VALUE,
    WRONG_ACCELERATOR_OR_STRATEGY,
    WRONG_STATE_DICT,
    option_strings,
)
from bnfree.lightning_modules.training.config.known_classes import (
    class_names,
    importable_near,
    names_in_module,
    options_of,
    passes_arguments_on,
)
from bnfree.lightning_modules.training.config.sources import config_files
from bnfree.lightning_modules.training.config.value_types import explain_value
from bnfree.names import did_you_mean, nearest
from bnfree.plugins import imported
from bnfree.trust import is_answered_for

LONGEST = 300
DOTTED = re.compile(r"(?:\w+\.)+\w+")
# As the parser shows values: the name of the argument before the path of its class.
ARGUMENT_OF = re.compile(r"(?:'(\w+)': (?:\{'class_path': )?|key='([\w.]+)', val=)'$")


class Complaint:
    """A message of the parser, and what it is about.

    Args:
        message: the message.
        arguments: subcommand and options of the command.
        options: the option strings that the subcommand has.
    """

    def __init__(self, message: str, arguments: Sequence[str], options: Sequence[str] = ()) -> None:
        self.message, self.arguments, self.options = message, arguments, list(options)
        self.subcommand = arguments[0]
        self.configs = config_files(arguments)

    def key(self, end: int) -> str:
        """Dotted name of the argument that the complaint at position `end` is about."""
        key = ""
        for part in PARSER_KEY.findall(self.message[:end]):
            # Where several types have been tried, the innermost name comes twice.
            if not key.endswith(f".{part}"):
                key = f"{key}.{part}" if key else part
        return key

    def where(self, word: str) -> str:
        """File and line of the first config that holds a word, unless the command line does."""
        if any(word in re.split(r"[.=]", argument) for argument in self.arguments[1:]):
            return ""
        for config in self.configs:
            if config.is_file():
                for number, line in enumerate(config.read_text(errors="replace").splitlines(), 1):
                    if re.search(rf"(?<![\w.]){re.escape(word)}(?!\w)", line.partition("#")[0]):
                        return f" ({config}, line {number})"
        return ""


def explain(message: str, arguments: Sequence[str], parsers: Mapping[str, LightningArgumentParser]) -> str:
    """One sentence for a complaint of the parser.

    Args:
        message: the complaint.
        arguments: subcommand and options of the command.
        parsers: parser of each subcommand.
    """
    parser = parsers.get(arguments[0])
    options = option_strings(parser) if parser else []
    complaint = Complaint(message, arguments, options)
    for explanation in EXPLANATIONS:
        sentence = explanation(complaint)
        if sentence is not None:
            return sentence
    short = " ".join(message.partition("\nGiven value type")[0].split())
    return short if len(short) <= LONGEST else short[: LONGEST - 3] + "..."


def _unreadable_config(complaint: Complaint) -> str | None:
    for config in complaint.configs:
        if config.is_file() and complaint.message.startswith(NO_CONFIG):
            try:
                content = yaml.safe_load(config.read_text())
            except yaml.MarkedYAMLError as error:
                mark, problem = error.problem_mark, error.problem or "what stands there is not YAML"
                line = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
                advice = "check brackets, quotes and indentation."
                return f"config={str(config)!r}{line}: this is not YAML ({problem}); {advice}"
            except (UnicodeDecodeError, yaml.YAMLError):
                return f"config={str(config)!r} is not a text file in YAML; give the path of a YAML file."
            if not isinstance(content, dict):
                return (
                    f"config={str(config)!r} holds no keys such as model, data and trainer; give a YAML file with them."
                )
    return None


def _required(complaint: Complaint) -> str | None:
    match = REQUIRED.search(complaint.message)
    if match is None:
        return None
    name = match[1].split(",")[0].strip().removeprefix(f"{complaint.subcommand}.")
    key = complaint.key(match.start())
    if not key:
        return f"{name} is required and not given; add --config FILE with it, or --{name}=CLASS."
    owner = complaint.message[: match.start()].rpartition("class_path '")[2].partition("'")[0].rpartition(".")[2]
    return f"{key}.{name} is required by {owner} and not given; add --{key}.{name}=VALUE or set it in the config."


def _unknown_argument(complaint: Complaint) -> str | None:
    match = UNRECOGNIZED.match(complaint.message)
    if match is None:
        return None
    option = match[1].partition("=")[0]
    if not option.startswith("-"):
        return f"argument {option!r} is not expected; options start with --, such as --config {option}."
    remedy = did_you_mean(option, complaint.options) or f"see bnfree {complaint.subcommand} --help."
    return f"option {match[1]!r} is not known; {remedy}"


def _unknown_key(complaint: Complaint) -> str | None:
    match = UNKNOWN_KEY.search(complaint.message)
    if match is None:
        return None
    keys = {option.removeprefix("--") for option in complaint.options if option.startswith("--")}
    first, *rest = match[1].split(".")
    if first == complaint.subcommand:
        return f"key {first!r}{complaint.where(first)} is not expected in a config; move what is below it one level up."
    tops = {key.split(".")[0] for key in keys}
    if first not in tops:
        remedy = did_you_mean(first, tops) or f"choose from {', '.join(sorted(tops - {'config', 'help'}))}."
        return f"key {first!r}{complaint.where(first)} is not known; {remedy}"
    remedy = did_you_mean(match[1], keys) or f"see bnfree {complaint.subcommand} --help."
    return f"key {match[1]!r}{complaint.where(rest[-1] if rest else first)} is not known; {remedy}"


def _failing_module(complaint: Complaint) -> str | None:
    """A module that is there, and fails while it is imported; the parser says no more than that no type fits."""
    given = complaint.message.rfind("Given value:")
    for match in DOTTED.finditer(complaint.message, max(given, 0)):
        module = match[0].rpartition(".")[0]
        if module in sys.modules or not is_answered_for(match[0]):
            continue
        before = complaint.message[: match.start()]
        argument, inner = complaint.key(given), ARGUMENT_OF.search(before)
        if inner is not None and not argument.endswith(f".{inner[1] or inner[2]}"):
            argument += f".{inner[1] or inner[2]}"
        try:
            imported(match[0], argument)
        except InputError as error:
            missing = isinstance(error.__cause__, ModuleNotFoundError) and f"{module}.".startswith(
                f"{error.__cause__.name}."
            )
            if not missing:
                return str(error).replace("' ", f"'{complaint.where(match[0])} ", 1)
    return None


def _unknown_class(complaint: Complaint) -> str | None:
    message = complaint.message
    short = NOT_DOTTED.search(message)
    if short is not None:
        name, key = short[1], complaint.key(short.start())
        known = class_names(key)
        if nearest(name, known) is None and {"int", "float"} & set(EXPECTED_TYPE.findall(message)):
            return None
        remedy = (
            did_you_mean(name, known)
            or f"give package.module.Class{', or one of ' + ', '.join(known) if known else ''}."
        )
        return f"{key}={name!r}{complaint.where(name)} names no known class; {remedy}"
    attribute = NO_ATTRIBUTE.search(message)
    if attribute is not None:
        path = f"{attribute[1]}.{attribute[2]}"
        match = nearest(attribute[2], names_in_module(attribute[1]))
        remedy = f"did you mean {attribute[1] + '.' + match!r}?" if match else f"look at what {attribute[1]} holds."
        return f"{complaint.key(attribute.start())}={path!r}{complaint.where(path)} names no class; {remedy}"
    module = NO_MODULE.search(message)
    if module is not None:
        owner = message[: module.start()].rpartition("class_path '")[2].partition("'")[0]
        path = owner if owner.startswith(f"{module[1].partition('.')[0]}.") else _given_in(message, module[1])
        remedy = (
            importable_near(module[1]) or "start bnfree in the directory that holds the module, or install its package."
        )
        argument = f"{complaint.key(module.start())}={path!r}{complaint.where(path)}"
        return f"{argument}: there is no module {module[1]!r}; {remedy}"
    subclass = NO_SUBCLASS.search(message)
    if subclass is not None:
        given = GIVEN_VALUE.search(message, subclass.end())
        path = subclass[1] or (given[1] if given else "")
        return f"{complaint.key(subclass.start())}={path!r} is no {subclass[2]}; give a subclass of it."
    return None


def _given_in(message: str, module: str) -> str:
    """The path of a class, below a module, that the parser was given."""
    match = re.search(rf"(?<![\w.]){re.escape(module)}(?:\.\w+)*", message[message.rfind("Given value:") :])
    return match[0] if match else module


def _unknown_init_argument(complaint: Complaint) -> str | None:
    match = UNKNOWN_INIT_ARGUMENT.search(complaint.message)
    if match is None:
        return None
    before = complaint.message[: match.start()]
    owner = before.rpartition("class_path '")[2].partition("'")[0]
    if before.rstrip().endswith("callable class:"):
        owner = CLASS_PATH.findall(complaint.message[match.start() :])[0]
    option = match[1].split(".")[0]
    key = f"{complaint.key(match.start())}.{option}"
    reserved = nearest(option, ("class_path", "init_args", "dict_kwargs"))
    if reserved is not None and owner.rpartition(".")[2] not in complaint.message.partition("Given value:")[2]:
        place = f"{complaint.where(option)} below {key.rpartition('.')[0]}"
        return f"key {option!r}{place} is not known; did you mean {reserved!r}?"
    if passes_arguments_on(owner):
        own = " in a config, or take TimmNetwork" if owner.startswith("timm.") else " in a config"
        return (
            f"{key}{complaint.where(option)} is not named by the function {owner}; arguments that it passes on stand "
            f"below dict_kwargs{own}."
        )
    known = options_of(owner)
    remedy = did_you_mean(option, known) or f"it takes {', '.join(known) or 'no arguments'}."
    return f"{key}{complaint.where(option)} is not an argument of {owner.rpartition('.')[2]}; {remedy}"


def _wrong_value(complaint: Complaint) -> str | None:
    keys = list(PARSER_KEY.finditer(complaint.message))
    if not keys:
        return None
    key = complaint.key(keys[-1].end())
    return explain_value(key, complaint.message[keys[-1].end() :], complaint.where(key.rpartition(".")[2]))


def _no_value(complaint: Complaint) -> str | None:
    match = WITHOUT_VALUE.match(complaint.message)
    return f"{match[1]} is given without a value; write {match[1]}=VALUE." if match else None


def _ambiguous_class(complaint: Complaint) -> str | None:
    match = re.search(
        r"Multiple subclasses with name (\w+)\. Give the full class path to avoid ambiguity: ([\w., ]+\w)",
        complaint.message,
    )
    if match is None:
        return None
    key = re.match(r'Parser key "([\w.]+)"', complaint.message)
    return f"{key[1] if key else 'class'}={match[1]!r} could be {match[2].replace(', ', ' or ')}; give the full path."


EXPLANATIONS: tuple[Callable[[Complaint], str | None], ...] = (
    _unreadable_config,
    _ambiguous_class,
    _unknown_argument,
    _unknown_key,
    _no_value,
    _unknown_init_argument,
    _failing_module,
    _unknown_class,
    _required,
    _wrong_value,
)


def explain_runtime_error(error: RuntimeError) -> str | None:
    """One sentence for errors of Lightning and torch that are the user's to put right; None for all others."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith(WRONG_STATE_DICT):
        owner = lines[0].rpartition("for ")[2].rstrip(":")
        what = lines[1][:LONGEST].rstrip(".")
        return (
            f"the checkpoint's weights do not fit {owner} ({what}); leave out what you changed in the model, or give a "
            "checkpoint of this model."
        )
    if lines and UNKNOWN_METRIC in lines[0]:
        return " ".join(lines)
    return None


def explain_trainer_error(error: Exception) -> str:
    """One sentence for a Trainer option of the right type and a wrong value."""
    message = " ".join(str(error).split())
    twice = CALLBACK_TWICE.search(message)
    if twice is not None:
        return (
            f"trainer.callbacks holds {twice[1]} twice, whose states a checkpoint could not tell apart; leave one out "
            "(a recipe may have it already: --trainer.callbacks+= adds to its list)."
        )
    match = WRONG_ACCELERATOR_OR_STRATEGY.search(message)
    if match is None:
        return message
    accelerators = ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    known = accelerators if match[1] == "accelerator" else ["auto", *StrategyRegistry.available_strategies()]
    remedy = did_you_mean(match[2], known) or f"choose from {', '.join(known)}."
    return f"trainer.{match[1]}={match[2]!r} is not known; {remedy}"


def explain_missing_package(error: ImportError) -> str | None:
    """One sentence for a class of a library that wants a package which is not installed; None for any other import."""
    message = " ".join(str(error).split())
    install = re.search(r"pip install (?:-U )?'?([\w.-]+)", message)
    if install is None:
        return None
    owner = re.match(r"`(\w+)`", message)
    return (
        f"{owner[1] if owner else 'what was asked for'} needs {install[1]}, which is missing: pip install {install[1]}."
    )


def first_cause(error: Exception) -> Exception:
    """The exception that a constructor has raised, behind jsonargparse's account of the types it has tried."""
    while str(error).startswith(TRIED_TYPES):
        if not isinstance(error.__cause__, Exception):
            break
        error = error.__cause__
    return error

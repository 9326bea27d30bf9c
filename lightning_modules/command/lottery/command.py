"""`bnfree lottery`: each action is a manual, a parser and a call of the function that does it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.command.actions import Action, run_action
from bnfree.lightning_modules.command.lottery import manuals
from bnfree.lightning_modules.command.lottery import report as report_action
from bnfree.lightning_modules.command.options import (
    as_names,
    as_number,
    as_numbers,
    as_text,
    as_whole_number,
    as_yaml,
    asks_for_help,
    take_first,
    take_options,
)
from bnfree.names import did_you_mean
from bnfree.plugins import BUILT_IN, names

GOES_ON = "it goes on by itself from where it stopped"
OF_LEVELS = {
    "--ckpt_path": GOES_ON,
    "--seed_everything": "give --seeds 0,1,2",
    "--data.seed": "give --seeds 0,1,2",
    "--lottery.fit": "give options of bnfree fit",
    "--lottery.run_dir": "give --run_dir",
    "--lottery.controls": "give --controls",
}
OF_CONTROLS = {
    "--run_dir": "the run's directory comes first",
    "--ckpt_path": GOES_ON,
    "--seed_everything": "choose among the run's seeds with --seeds",
    "--data.seed": "choose among the run's seeds with --seeds",
    "--lottery.*": "controls are trained with the settings of the run",
}


def levels_action(words: Sequence[str]) -> None:
    """Runs a lottery, and reports it.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if asks_for_help(words):
        print(manuals.RUN_MANUAL, end="")
        return
    own, words = take_options(words, {"--controls": _controls})
    changes = _lottery_changes(words, "run")
    from bnfree.lightning_modules.experiments.lottery.lottery import run_lottery
    from bnfree.lightning_modules.experiments.lottery.settings import LotterySettings

    controls = own.get("--controls", ())
    result = run_lottery(LotterySettings.read(**changes, controls=controls))
    _report(result.directory, bool(controls))


def controls_action(words: Sequence[str]) -> None:
    """Trains controls of a run, and reports it.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if asks_for_help(words):
        print(manuals.CONTROLS_MANUAL, end="")
        return
    command = "bnfree lottery controls"
    directory, words = take_first(words, command, "the directory of a lottery run", "runs/digits_lottery")
    known = {"--controls": _controls, "--levels": as_numbers, "--seeds": as_numbers}
    own, rest = take_options(words, known, command, OF_CONTROLS)
    from bnfree.lightning_modules.experiments.lottery.controls import run_controls
    from bnfree.lightning_modules.experiments.lottery.settings import ControlSettings
    from bnfree.lightning_modules.training.settings import FitSettings

    chosen = {name.removeprefix("--"): value for name, value in own.items()}
    result = run_controls(ControlSettings(directory=directory, fit=FitSettings(arguments=rest), **chosen))
    _report(result.directory, with_controls=True)


def early_bird_action(words: Sequence[str]) -> None:
    """Looks for early-bird tickets, and reports the run.

    Raises:
        InputError: a mistake in what the user gave.
    """
    if asks_for_help(words):
        print(manuals.EARLY_BIRD_MANUAL, end="")
        return
    known = {"--density": as_number, "--window": as_whole_number, "--tolerance": as_number}
    own, words = take_options(words, known)
    changes = _lottery_changes(words, "early-bird")
    from bnfree.lightning_modules.experiments.lottery.early_bird import run_early_bird
    from bnfree.lightning_modules.experiments.lottery.settings import EarlyBirdSettings, LotterySettings

    chosen = {name.removeprefix("--"): value for name, value in own.items()}
    result = run_early_bird(EarlyBirdSettings(lottery=LotterySettings.read(**changes), **chosen))
    _report(result.directory, with_controls=False)


def _lottery_changes(words: Sequence[str], action: str) -> dict[str, Any]:
    """The arguments of `LotterySettings.read` that a command line stands for."""
    from bnfree.lightning_modules.training.settings import FitSettings

    command = f"bnfree lottery {action}"
    file, words = take_first(words, command, "the lottery file", "configs/digits_lottery.yaml")
    known = {"--run_dir": as_text, "--seeds": _seeds, "--lottery.*": as_yaml}
    own, rest = take_options(words, known, command, OF_LEVELS)
    changes = {name.removeprefix("--").removeprefix("lottery."): value for name, value in own.items()}
    return {"file": file, "fit": FitSettings(arguments=rest), **changes}


def _report(directory: Path, with_controls: bool) -> None:
    from bnfree.lightning_modules.reports.lottery_report import report_lottery
    from bnfree.lightning_modules.training.run_directory import is_child

    if is_child():
        return
    report_action.print_lottery_report(report_lottery(directory))
    if with_controls:
        print(report_action.control_table(directory))


def _seeds(text: str, name: str) -> list[Any]:
    return [as_yaml(seed, name) for seed in as_names(text, name)]


def _controls(text: str, name: str) -> list[str]:
    controls = as_names(text, name)
    known = [*BUILT_IN["control"], *(other for other in names("control") if other not in BUILT_IN["control"])]
    for control in controls:
        if control not in known and "." not in control:
            remedy = (
                did_you_mean(control, known) or f"choose from {', '.join(known)}, or give package.name of your own."
            )
            raise InputError(f"control {control!r} in {name} is not known; {remedy}")
    if not controls:
        raise InputError(f"{name}={text!r} names no control; choose from {', '.join(known)}.")
    return sorted(controls, key=known.index) if set(controls) <= set(known) else controls


ACTIONS = {
    "run": Action("run FILE", "train dense, then prune, rewind and train again, level by level", levels_action),
    "controls": Action(
        "controls DIR", "random masks, fresh weights and shuffled signs beside the tickets", controls_action
    ),
    "early-bird": Action(
        "early-bird FILE", "train dense until the mask has settled, then its ticket", early_bird_action
    ),
    "report": Action("report DIR", "tables and figures of a run", lambda words: report_action.run(["report", *words])),
}


def run(arguments: Sequence[str]) -> None:
    """Runs one action.

    Args:
        arguments: `lottery`, the action and its options.

    Raises:
        InputError: a mistake in what the user gave.
    """
    run_action(arguments, ACTIONS, manuals.FRONT)

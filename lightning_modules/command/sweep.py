"""`bnfree sweep`: its manual, its options, a call of `run_sweep`, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bnfree.errors import InputError
from bnfree.lightning_modules.command.options import as_text, asks_for_help, take_first, take_options

if TYPE_CHECKING:
    from bnfree.lightning_modules.experiments.sweep import SweepGroup, SweepResult

HELP = """usage: bnfree sweep CONFIG --over OPTION=A,B [--over OPTION=C,D] [--run_dir DIR] [options]

Trains all combinations of some settings one after the other, each an ordinary run in a directory of its own.

  CONFIG              a recipe (bnfree configs lists them) or a YAML file of your own
  --over OPTION=A,B   the values of an option of bnfree fit; given once for each that is varied. Options that have one
                      value together are named with commas; --over config=A,B varies an overlay
  --run_dir DIR       where the runs go (default: runs/<CONFIG>-sweep)

Any other option is one of `bnfree fit` and holds for all runs:

  bnfree sweep quickstart --over model.optimizer.lr=1e-3,3e-3 --over model.backbone.width=8,16 --trainer.max_epochs=5
  bnfree sweep quickstart --over model.optimizer.lr=1e-3,3e-3 --over seed_everything,data.seed=0,1,2
  bnfree report runs/quickstart-sweep

All runs are checked before the first one starts. The same command again goes on where it was stopped: a finished run is
not trained again, an interrupted one resumes from its last checkpoint. Values may be added to a sweep that has ended.
A run that diverges is noted, and the others go on. The table has mean and sample standard deviation over the seeds.
"""
GOES_ON = "it goes on by itself from where it stopped"
NAMES = "the values that are varied name the runs"


def run(arguments: Sequence[str]) -> None:
    """Runs a sweep, or prints the manual.

    Args:
        arguments: `sweep` and its options.

    Raises:
        InputError: a mistake in what the user gave; before anything is trained, as far as it can be known.
    """
    words, command = arguments[1:], "bnfree sweep"
    if asks_for_help(words):
        print(HELP, end="")
        return
    config, words = take_first(words, command, "a config", "quickstart")
    from bnfree.lightning_modules.experiments.sweep import run_sweep
    from bnfree.lightning_modules.experiments.sweep_grid import SweepSettings, split_values
    from bnfree.lightning_modules.training.config.shipped import find_config
    from bnfree.lightning_modules.training.messages import say
    from bnfree.lightning_modules.training.settings import FitSettings, split_configs

    over: dict[str, list[str]] = {}

    def add_factor(text: str, name: str) -> None:
        factor, equals, values = as_text(text, name).partition("=")
        if not equals:
            raise InputError(f"--over {text!r} names no values; give --over OPTION=A,B.")
        if factor in over:
            raise InputError(f"--over {factor} is given twice; give all values at once: --over {factor}=A,B.")
        over[factor] = split_values(values)

    refused = {"--ckpt_path": GOES_ON, "--name": NAMES}
    own, rest = take_options(words, {"--over": add_factor, "--run_dir": as_text}, command, refused)
    find_config(config)
    overlays, rest = split_configs(rest)
    fit = FitSettings([config, *(overlay.partition("=")[2] for overlay in overlays)], arguments=rest)
    say(sweep_table(run_sweep(SweepSettings(fit, over, own.get("--run_dir")))))


def sweep_table(result: SweepResult) -> str:
    """A line for each combination that is more than a seed, with its accuracies in percent, and below it the best.

    Args:
        result: of the sweep.
    """
    from bnfree.lightning_modules.experiments.sweep_file import label, short_names
    from bnfree.text_tables import columns

    groups = result.groups()
    factors = list(groups[0].values)
    names = short_names(list(result.runs[0].values))
    rows = [[*(names[factor] for factor in factors), "runs", "best val/acc", "test/acc"]]
    rows += [[*(group.values[factor] for factor in factors), *_figures(group)] for group in groups]
    lines = [f"Sweep directory: {result.directory}", *columns(rows, left=len(factors), width=None)]
    best = result.best()
    if best is not None and len(groups) > 1:
        lines.append(f"Best on validation images: {label(best.values)}")
    return "\n".join(lines)


def _figures(group: SweepGroup) -> list[str]:
    from bnfree.lightning_modules.reports.summaries import MISSING, Summary

    values = [
        f"{Summary(found).percent(singly=False)} %" if found else MISSING for found in (group.validation, group.test)
    ]
    if group.diverged:
        values[0] = "diverged" if not group.validation else f"{values[0]}, {group.diverged} diverged"
    return [str(len(group.runs)), *values]

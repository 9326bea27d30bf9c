"""What `bnfree lottery controls` is going to train: all that can be known, and refused, before anything is written."""

from __future__ import annotations

from pathlib import Path

from bnfree.errors import InputError
from bnfree.lightning_modules.command.lottery.controls import ControlArguments
from bnfree.lightning_modules.command.recipe_options import split_configs
from bnfree.lightning_modules.experiments.lottery.level_results import CONTROLS, TICKET, read_level, seed_name
from bnfree.lightning_modules.experiments.lottery.level_training import level_directory, rewind_file
from bnfree.lightning_modules.experiments.lottery.planning import LotteryRun, plan_levels
from bnfree.lightning_modules.experiments.lottery.pruning import last_checkpoint
from bnfree.lightning_modules.experiments.lottery.unchanged import check_fit_unchanged, read_settings
from bnfree.lightning_modules.reports.lotteries import SETTINGS
from bnfree.lightning_modules.reports.lotteries import read_lottery_run as read_lottery

REMEDY = "controls must be trained as the run was, so leave out the option that changes it."


def plan_controls(given: ControlArguments) -> tuple[LotteryRun, list[tuple[int, int]]]:
    """Reads the settings of a lottery run, and chooses the tickets that are to be checked; writes nothing.

    Args:
        given: the command line.

    Returns:
        The run, and the seeds and levels.

    Raises:
        InputError: no lottery run, a seed or level that it has not or that has not finished, files that are gone, or
            options that would train otherwise than the run did.
    """
    run = _read_run(given)
    places = _places(run, given)
    for seed, level in places:
        _check_files(run, seed, level)
    for seed in sorted({seed for seed, _ in places}):
        folder = run.directory / seed_name(seed)
        for place in ("level_*", *(f"{CONTROLS}/{kind}/level_*" for kind in given.kinds)):
            for config in sorted(folder.glob(f"{place}/**/config.yaml")):
                check_fit_unchanged(run, seed, config.parent, REMEDY)
    return run, places


def _read_run(given: ControlArguments) -> LotteryRun:
    read_lottery(given.directory)
    directory = Path(given.directory).expanduser().absolute()
    started = read_settings(directory)
    if started is None:
        raise InputError(
            f"DIR={given.directory!r} has lost its {SETTINGS}, so that its settings are not known; the command bnfree "
            "lottery run that wrote it, given again, writes it anew."
        )
    settings, options = started
    for option in options:
        name, _, value = option.partition("=")
        if name == "--config" and not Path(value).is_file():
            raise InputError(
                f"DIR={given.directory!r} was trained with the config {value!r}, which does not exist here; give the "
                "command in the directory in which the run was started."
            )
    overlays, rest = split_configs(given.options)
    configs = [option for option in options if option.startswith("--config=")]
    options = configs + overlays + [option for option in options if option not in configs] + rest
    return plan_levels(directory, settings, options)


def _places(run: LotteryRun, given: ControlArguments) -> list[tuple[int, int]]:
    known, last = run.settings.seeds, len(run.densities) - 1
    for seed in given.seeds or ():
        if seed not in known:
            raise InputError(f"--seeds: {seed} is no seed of this run, which has {', '.join(map(str, known))}.")
    for level in given.levels or ():
        if level == 0:
            raise InputError(f"--levels: level 0 is the dense network, which has no mask to check; give 1 to {last}.")
        if level > last:
            raise InputError(f"--levels: the run has no level {level}; give levels from 1 to {last}.")
    places = []
    for seed in given.seeds or known:
        for level in given.levels or range(1, last + 1):
            if read_level(level_directory(run, seed, level)) is not None:
                places.append((seed, level))
            elif given.levels is not None:
                raise InputError(
                    f"level {level} of seed {seed} has not finished, so that there is nothing to compare with; let "
                    "bnfree lottery run end, or leave it out of --levels or --seeds."
                )
    if not places:
        raise InputError(
            f"DIR={given.directory!r} has no finished level after the dense one; let bnfree lottery run go on first."
        )
    return places


def _check_files(run: LotteryRun, seed: int, level: int) -> None:
    step1 = run.finds_in_step1
    start = rewind_file(run, seed)
    if run.settings.rewind in ("learning_rate", "none"):
        start = last_checkpoint(level_directory(run, seed, 0, step1))
    for path in (level_directory(run, seed, level, step1) / TICKET, start):
        if not path.is_file():
            raise InputError(f"{str(path)!r} is gone, from which controls of level {level} are made; put it back.")

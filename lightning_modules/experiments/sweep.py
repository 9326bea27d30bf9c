"""A grid of runs, one after the other; stopped at any moment, it goes on where it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bnfree.errors import NonFiniteError
from bnfree.lightning_modules.experiments.planned_runs import PlannedRun, carry_out, check_same_processes, plan_run
from bnfree.lightning_modules.experiments.stage_results import StageResult, read_result, write_diverged
from bnfree.lightning_modules.experiments.sweep_file import SweepFile, is_seed, label
from bnfree.lightning_modules.experiments.sweep_grid import SweepSettings, run_name
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.run_directory import is_child, only_one


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    values: dict[str, str]
    """Of each factor, as typed."""
    directory: Path
    """Its run directory."""
    result: StageResult | None
    """Accuracies; None if it has not finished."""


@dataclass(frozen=True)
class SweepGroup:
    """Runs that differ in their seeds alone."""

    values: dict[str, str]
    """Of each factor that is no seed, as typed."""
    runs: list[SweepRun]
    """In the order of the seeds."""

    @property
    def validation(self) -> list[float]:
        """Best validation accuracy of each run that has come to its end, as a share from 0 to 1."""
        return [result.best for result in self._ended if result.best is not None]

    @property
    def test(self) -> list[float]:
        """Test accuracy of each run that has one, as a share from 0 to 1."""
        return [result.test["test/acc"] for result in self._ended if "test/acc" in result.test]

    @property
    def _ended(self) -> list[StageResult]:
        return [run.result for run in self.runs if run.result is not None and not run.result.diverged]

    @property
    def diverged(self) -> int:
        """How many of the runs have met numbers that are not finite."""
        return sum(run.result is not None and bool(run.result.diverged) for run in self.runs)


@dataclass(frozen=True)
class SweepResult:
    """What `run_sweep` has trained."""

    directory: Path
    """Where the run directories are."""
    runs: list[SweepRun]
    """In the order of the grid."""

    def groups(self) -> list[SweepGroup]:
        """The runs, with those taken together that differ in their seeds alone."""
        together: dict[str, list[SweepRun]] = {}
        for run in self.runs:
            together.setdefault(label(run.values), []).append(run)
        return [
            SweepGroup({name: value for name, value in runs[0].values.items() if not is_seed(name)}, runs)
            for runs in together.values()
        ]

    def best(self) -> SweepGroup | None:
        """The group with the greatest mean of validation accuracies, of those of which all runs have one."""
        whole = [group for group in self.groups() if len(group.validation) == len(group.runs)]
        return max(whole, key=lambda group: sum(group.validation) / len(group.runs), default=None)


def run_sweep(settings: SweepSettings) -> SweepResult:
    """Trains all combinations of some settings, one after the other, each an ordinary run in a directory of its own.

    Called again with the same settings it goes on where it was stopped: a finished run is not trained again, an
    interrupted one goes on from its last checkpoint. Values and factors may be added. All runs are checked before the
    first one starts. One whose numbers stop being finite, as with too great a learning rate, counts as finished.

    Args:
        settings: what is varied, what all runs have in common, and where they go.

    Returns:
        The accuracies and directories of all runs.

    Raises:
        InputError: a mistake in the settings; before anything is trained, as far as it can be known.

    Example:
        >>> from bnfree.lightning_modules import FitSettings, SweepSettings, run_sweep
        >>> settings = SweepSettings(FitSettings("quickstart"), {"model.optimizer.lr": [1e-3, 3e-3, 1e-2]})
        >>> run_sweep(settings).best().values  # doctest: +SKIP
        {'model.optimizer.lr': '0.003'}
    """
    plans = {run_name(values): values for values in settings.combinations()}
    planned = [plan_run("run", name, settings.directory, settings.fit_of(plans[name])) for name in plans]
    check(planned)
    with only_one(settings.directory):
        if not is_child():
            earlier = SweepFile.read(settings.directory).runs
            SweepFile({**plans, **{name: v for name, v in earlier.items() if name not in plans}}).write(
                settings.directory
            )
        for number, plan in enumerate(planned, 1):
            _run(plan, f"{number} of {len(planned)}")
    places = {name: settings.directory / name for name in plans}
    runs = [SweepRun(plans[name], folder, read_result(folder)) for name, folder in places.items()]
    return SweepResult(settings.directory, runs)


def check(planned: Sequence[PlannedRun]) -> None:
    """Builds the network of each run that has not finished.

    Raises:
        InputError: one that cannot be built, or that runs on other processes than the others.
    """
    unfinished = [plan for plan in planned if plan.result is None]
    check_same_processes(unfinished, "vary something else.")
    for plan in unfinished:
        plan.build_model()


def _run(plan: PlannedRun, number: str) -> None:
    try:
        carry_out(plan, number)
    except NonFiniteError as error:
        write_diverged(plan.directory, str(error))
        # The others of several processes may not have met it at the same place.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise
        say(f"Run {plan.name} ({number}) has diverged: {error}")

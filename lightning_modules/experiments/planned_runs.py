"""The runs of an experiment: parsed and compared with what lies there before the first one starts, then carried out."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from lightning.pytorch import LightningModule

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.processes import barrier
from bnfree.lightning_modules.experiments.stage_results import StageResult, read_result, write_result
from bnfree.lightning_modules.training.fit import fit
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.parsed_fit import ParsedFit, changes, parse_fit
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, discard_start, is_child, latest_config
from bnfree.lightning_modules.training.settings import FitSettings, words_of


@dataclass(frozen=True)
class PlannedRun:
    """What is going to be done about one run."""

    kind: str
    """What it is called in messages: `stage` or `run`."""
    name: str
    """Name of the run and of its directory."""
    directory: Path
    """Its run directory."""
    command: str
    """The command that would do the same."""
    parsed: ParsedFit
    result: StageResult | None
    """Of a run that has finished."""
    needs: tuple[Path, ...] = ()
    """Checkpoints of other runs that it reads."""

    def build_model(self) -> LightningModule:
        """The module of its config.

        Raises:
            InputError: an argument of the module or of its backbone out of range.
        """
        try:
            return self.parsed.build_model()
        except InputError as error:
            raise InputError(f"{self.kind} {self.name!r}: {error}") from error


def plan_run(kind: str, name: str, directory: Path, settings: FitSettings, start: Path | None = None) -> PlannedRun:
    """Parses a run and looks at what has been run of it; writes nothing.

    Args:
        kind: `stage` or `run`.
        name: of the run.
        directory: where all runs of the experiment go.
        settings: of the run.
        start: checkpoint of another run to start from, which may not exist yet.

    Raises:
        InputError: a mistake in the settings, or an earlier run with other settings.
    """
    folder = directory / name
    try:
        words, parsed = words_of(settings), parse_fit(settings)
        if start is not None:
            # On top of what the user has said for all runs.
            words.append(f"--model.init_from={start}")
            parsed = parse_fit(FitSettings([parsed.settings], {"model.init_from": str(start)}))
    except InputError as error:
        raise InputError(f"{kind} {name!r}: {error}") from error
    config = latest_config(folder)
    if config.is_file():
        difference = next(changes(yaml.safe_load(config.read_text()), parsed.settings), None)
        if difference is not None:
            raise InputError(
                f"{kind} {name!r} has been started in {str(folder)!r} with other settings ({difference}); give "
                "another --run_dir, or the earlier settings to go on with it."
            )
    command = f"bnfree fit {shlex.join(words)} --run_dir={folder}"
    return PlannedRun(kind, name, folder, command, parsed, read_result(folder))


def check_same_processes(plans: Sequence[PlannedRun], remedy: str) -> None:
    """Refuses runs on other machines or processes than each other, since all take part in all of them.

    Args:
        plans: those that have not finished.
        remedy: what to do instead.

    Raises:
        InputError: such a setting differs.
    """
    for key in ("strategy", "devices", "num_nodes", "accelerator"):
        values = {str(plan.parsed.settings["trainer"].get(key)): plan.name for plan in plans}
        if len(values) > 1:
            named = ", ".join(f"{name}: {value}" for value, name in values.items())
            raise InputError(f"trainer.{key} differs between the {plans[0].kind}s ({named}); {remedy}")


def carry_out(plan: PlannedRun, number: str) -> None:
    """Runs, resumes or passes over one run.

    Args:
        plan: of the run.
        number: which of how many, for messages.

    Raises:
        InputError: what `fit` raises, or a checkpoint to start from that is not there.
    """
    title, folder = f"{plan.kind.capitalize()} {plan.name} ({number})", plan.directory
    if plan.result is not None:
        say(f"{title} has finished: {plan.result.sentence()}.")
        return
    last = folder / CHECKPOINTS / "last.ckpt"
    if not last.is_file() and not is_child():
        discard_start(folder)
    for path in plan.needs:
        if not path.is_file():
            raise InputError(
                f"{plan.kind} {plan.name!r} needs {str(path)!r}, which does not exist; the {plan.kind} before it has "
                "to write it (best needs validation images)."
            )
    say(f"{title}: {plan.command}")
    resumed = last if last.is_file() else None
    write_result(folder, fit(FitSettings([plan.parsed.settings], run_dir=folder, ckpt_path=resumed)))
    # The others read the result that the first process has written.
    barrier()

"""`bnfree recipe`: the stages of a recipe, one after the other, in one command that can be stopped at any moment."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.command import recipe_options as recipe_arguments
from bnfree.lightning_modules.command.recipe_options import RecipeArguments, as_options, split_configs
from bnfree.lightning_modules.experiments.recipe_file import REFERENCE, Stage, read_recipe, selected_stages
from bnfree.lightning_modules.experiments.stage_results import StageResult, read_result, results_table, write_result
from bnfree.lightning_modules.training import fit as training
from bnfree.lightning_modules.training.messages import quieten, say
from bnfree.lightning_modules.training.parsed_fit import ParsedFit, changes, parse_fit
from bnfree.lightning_modules.training.run_directory import (
    CHECKPOINTS,
    discard_start,
    is_child,
    latest_config,
    only_one,
)

RECIPE = "recipe.yaml"
HELP = """usage: bnfree recipe RECIPE [--run_dir DIR] [--stages A,B] [--carry last|best] [options]

Trains the stages of a recipe one after the other; each starts from the weights of an earlier one.

  RECIPE          YAML file with the stages, such as configs/cifar10_recipe.yaml
  --run_dir DIR   where the stages' run directories go (default: runs/<name of the recipe>)
  --stages A,B    run these stages only; the ones that they start from must have finished
  --carry KIND    hand over the last or the best checkpoint of a stage (default: as the recipe says)

Any other option is one of `bnfree fit` and holds for every stage; after --STAGE. it holds for that stage alone:

  bnfree recipe configs/cifar10_recipe.yaml --data.data_dir=data --step2.trainer.max_epochs=100

The same command again goes on where it was stopped: a finished stage is not run again, an interrupted one resumes from
its last checkpoint and ends with the weights it would have had. Every stage is checked before the first one starts.

A recipe:

  stages:
    step1:
      config: cifar10_step1.yaml            # or a list; relative to the recipe
    step2:
      config: cifar10_step2.yaml
      init_from: step1                      # default: the stage before; null: from scratch
      carry: last                           # or best
      options: {trainer.max_epochs: 100}    # {step1.best} in a value is the path of that checkpoint
"""


def run(arguments: Sequence[str]) -> None:
    """Runs a recipe.

    Args:
        arguments: `recipe` and its options.

    Raises:
        InputError: a mistake in what the user gave; before anything is trained, as far as it can be known.
    """
    if len(arguments) < 2 or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    quieten("fit")
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    given = recipe_arguments.parse(arguments[1:])
    stages = read_recipe(given.recipe)
    selected = selected_stages(stages, given.stages)
    # The same in every process of a distributed run, and again when the command is given again.
    directory = Path(given.run_dir or Path("runs") / Path(given.recipe).stem).expanduser().absolute()
    plans = plan(stages, selected, given, directory)
    with only_one(directory):
        for number, stage_plan in enumerate(plans, 1):
            run_stage(stage_plan, f"{number} of {len(plans)}", directory, stages)
    say(results_table(directory, [stage.name for stage in stages]))


@dataclass(frozen=True)
class StagePlan:
    """What is going to be done about one stage."""

    stage: Stage
    directory: Path
    options: list[str]
    """Of `bnfree fit`, without the checkpoint to resume from."""
    result: StageResult | None
    """Of a stage that has finished."""
    parsed: ParsedFit


def plan(stages: list[Stage], selected: list[Stage], given: RecipeArguments, directory: Path) -> list[StagePlan]:
    """Parses all stages to be run and looks at what has been run, before anything is written.

    Raises:
        InputError: a mistake in a stage, an earlier run with other settings, or a hand-over that cannot work.
    """
    plans = []
    by_name = {stage.name: stage for stage in stages}
    for stage in selected:
        options = _fit_options(stage, list(by_name), given, directory)
        folder = directory / stage.name
        parsed = _parse(stage, options)
        result = read_result(folder)
        _check_unchanged(stage, folder, parsed)
        plans.append(StagePlan(stage, folder, options, result, parsed))
        for needed in stage.needs():
            if by_name[needed] not in selected and read_result(directory / needed) is None:
                raise InputError(
                    f"stages={given.stages} leaves out {needed!r}, which {stage.name!r} starts from and which has not "
                    f"finished in {str(directory)!r}; add it to --stages."
                )
    _check_same_processes(plans)
    _check_handovers([p for p in plans if p.result is None], by_name, given, directory)
    return plans


def _fit_options(stage: Stage, names: list[str], given: RecipeArguments, directory: Path) -> list[str]:
    def checkpoint(name: str, kind: str) -> str:
        return str(directory / name / CHECKPOINTS / f"{kind}.ckpt")

    options = [f"--config={config}" for config in stage.configs]
    mine = given.of_stage(stage.name, names)
    # Configs of the command line, which come after those of the recipe, still leave the recipe's options in force.
    overlays, rest = split_configs(mine)
    options += overlays
    for option in as_options(stage.options):
        options.append(REFERENCE.sub(lambda match: checkpoint(match[1], match[2]), option))
    options += rest
    if stage.init_from is not None:
        options.append(f"--model.init_from={checkpoint(stage.init_from, given.carry or stage.carry)}")
    return [*options, f"--run_dir={directory / stage.name}"]


def _parse(stage: Stage, options: list[str]) -> ParsedFit:
    try:
        return parse_fit(options)
    except InputError as error:
        raise InputError(f"stage {stage.name!r}: {error}") from error


def _check_unchanged(stage: Stage, folder: Path, parsed: ParsedFit) -> None:
    config = latest_config(folder)
    if not config.is_file():
        return
    difference = next(changes(yaml.safe_load(config.read_text()), parsed.settings), None)
    if difference is not None:
        raise InputError(
            f"stage {stage.name!r} has been started in {str(folder)!r} with other settings ({difference}); give "
            "another --run_dir, or the earlier settings to go on with it."
        )


def _check_same_processes(plans: list[StagePlan]) -> None:
    # The processes that the first stage starts take part in the others.
    for key in ("strategy", "devices", "num_nodes", "accelerator"):
        values = {str(p.parsed.settings["trainer"].get(key)): p.stage.name for p in plans if p.result is None}
        if len(values) > 1:
            raise InputError(
                f"trainer.{key} differs between the stages ({', '.join(f'{n}: {v}' for v, n in values.items())}); "
                "run them one at a time with --stages."
            )


def _check_handovers(
    plans: list[StagePlan], by_name: dict[str, Stage], given: RecipeArguments, directory: Path
) -> None:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for p in plans:
        try:
            backbone: Any = p.parsed.build_model().backbone
        except InputError as error:
            raise InputError(f"stage {p.stage.name!r}: {error}") from error
        except AttributeError:
            continue
        shapes[p.stage.name] = {k: tuple(v.shape) for k, v in backbone.state_dict().items() if not k.endswith(".mask")}
        source = p.stage.init_from
        if source in shapes and shapes[source] != shapes[p.stage.name]:
            ours, theirs = shapes[p.stage.name], shapes[source]
            key = next(k for k in {**theirs, **ours} if ours.get(k) != theirs.get(k))
            what = f"{key!r} is {theirs.get(key, 'missing')} there and {ours.get(key, 'missing')} here"
            raise InputError(
                f"stage {p.stage.name!r} cannot start from the weights of {source!r}: {what}; give both the same "
                "architecture, normalisation, width, stem and number of classes."
            )


def run_stage(stage_plan: StagePlan, number: str, directory: Path, stages: list[Stage]) -> None:
    """Runs, resumes or passes over one stage.

    Raises:
        InputError: what `bnfree fit` raises, or a checkpoint to start from that is not there.
    """
    stage, folder = stage_plan.stage, stage_plan.directory
    if stage_plan.result is not None:
        say(f"Stage {stage.name} ({number}) has finished: {stage_plan.result.sentence()}.")
        return
    options = list(stage_plan.options)
    last = folder / CHECKPOINTS / "last.ckpt"
    if last.is_file():
        options.append(f"--ckpt_path={last}")
    elif not is_child():
        discard_start(folder)
    for option in options:
        value = option.partition("=")[2]
        if value.startswith(str(directory)) and value.endswith(".ckpt") and not Path(value).is_file():
            raise InputError(
                f"stage {stage.name!r} needs {value!r}, which does not exist; the stage before it has to write it "
                "(best needs validation images)."
            )
    if not is_child():
        directory.mkdir(parents=True, exist_ok=True)
        recipe = {"stages": {s.name: {"init_from": s.init_from} for s in stages}}
        (directory / RECIPE).write_text(yaml.safe_dump(recipe, sort_keys=False))
    say(f"Stage {stage.name} ({number}): bnfree fit {shlex.join(options)}")
    # The name that an earlier stage's processes were told.
    os.environ.pop("BNFREE_RUN_DIR", None)
    finished = training.run(["fit", *options])
    write_result(folder, finished)

"""What a recipe is going to do: all stages parsed, and refused where they cannot work, before anything is written."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.files import on_top
from bnfree.lightning_modules.experiments.recipe_file import (
    REFERENCE,
    RecipeSettings,
    Stage,
    check_carry,
    selected_stages,
)
from bnfree.lightning_modules.experiments.stage_results import StageResult, read_result
from bnfree.lightning_modules.training.parsed_fit import ParsedFit, changes, parse_fit
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, latest_config
from bnfree.lightning_modules.training.settings import FitSettings, words_of


@dataclass(frozen=True)
class StagePlan:
    """What is going to be done about one stage."""

    stage: Stage
    directory: Path
    """Its run directory."""
    command: str
    """The command that would do the same."""
    needs: tuple[Path, ...]
    """Checkpoints of other stages that it reads."""
    parsed: ParsedFit
    result: StageResult | None
    """Of a stage that has finished."""


def plan_recipe(settings: RecipeSettings) -> list[StagePlan]:
    """Parses all stages to be run and looks at what has been run; writes nothing.

    Args:
        settings: of the recipe.

    Raises:
        InputError: a mistake in a stage, an earlier run with other settings, or a hand-over that cannot work.
    """
    stages = {stage.name: stage for stage in settings.recipe_stages()}
    if settings.carry is not None:
        check_carry(settings.carry, "--carry")
    for name in settings.stage_fits:
        selected_stages(list(stages.values()), [name])
    selected = selected_stages(list(stages.values()), settings.stages)
    plans = [_plan_stage(stage, settings) for stage in selected]
    for stage in selected:
        for needed in stage.needs():
            if stages[needed] not in selected and read_result(settings.directory / needed) is None:
                raise InputError(
                    f"stages={settings.stages} leaves out {needed!r}, which {stage.name!r} starts from and which has "
                    f"not finished in {str(settings.directory)!r}; add it to --stages."
                )
    unfinished = [plan for plan in plans if plan.result is None]
    _check_same_processes(unfinished)
    _check_handovers(unfinished)
    return plans


def _plan_stage(stage: Stage, settings: RecipeSettings) -> StagePlan:
    folder, needs = settings.directory / stage.name, []

    def checkpoint(name: str, kind: str) -> str:
        needs.append(settings.directory / name / CHECKPOINTS / f"{kind}.ckpt")
        return str(needs[-1])

    def with_paths(value: Any) -> Any:
        if isinstance(value, str):
            return REFERENCE.sub(lambda match: checkpoint(match[1], match[2]), value)
        if isinstance(value, Mapping):
            return {key: with_paths(inner) for key, inner in value.items()}
        return [with_paths(inner) for inner in value] if isinstance(value, list) else value

    fit = on_top(FitSettings(stage.configs, with_paths(stage.options)), settings.fit)
    fit = on_top(fit, settings.stage_fits.get(stage.name, FitSettings()))
    try:
        words, parsed = words_of(fit), parse_fit(fit)
        if stage.init_from is not None:
            # On top of what the user has said for all stages.
            start = checkpoint(stage.init_from, settings.carry or stage.carry)
            words.append(f"--model.init_from={start}")
            parsed = parse_fit(FitSettings([parsed.settings], {"model.init_from": start}))
    except InputError as error:
        raise InputError(f"stage {stage.name!r}: {error}") from error
    _check_unchanged(stage, folder, parsed)
    command = f"bnfree fit {shlex.join(words)} --run_dir={folder}"
    return StagePlan(stage, folder, command, tuple(needs), parsed, read_result(folder))


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


def _check_same_processes(plans: Sequence[StagePlan]) -> None:
    # The processes that the first stage starts take part in the others.
    for key in ("strategy", "devices", "num_nodes", "accelerator"):
        values = {str(p.parsed.settings["trainer"].get(key)): p.stage.name for p in plans}
        if len(values) > 1:
            raise InputError(
                f"trainer.{key} differs between the stages ({', '.join(f'{n}: {v}' for v, n in values.items())}); "
                "run them one at a time with --stages."
            )


def _check_handovers(plans: Sequence[StagePlan]) -> None:
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

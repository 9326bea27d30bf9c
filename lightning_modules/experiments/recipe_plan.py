"""What a recipe is going to do: all stages parsed, and refused where they cannot work, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.files import on_top
from bnfree.lightning_modules.experiments.planned_runs import PlannedRun, check_same_processes, plan_run
from bnfree.lightning_modules.experiments.recipe_file import (
    REFERENCE,
    RecipeSettings,
    Stage,
    check_carry,
    selected_stages,
)
from bnfree.lightning_modules.experiments.stage_results import read_result
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS
from bnfree.lightning_modules.training.settings import FitSettings


def plan_recipe(settings: RecipeSettings) -> list[PlannedRun]:
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
    check_same_processes(unfinished, "run them one at a time with --stages.")
    _check_handovers(unfinished, stages)
    return plans


def _plan_stage(stage: Stage, settings: RecipeSettings) -> PlannedRun:
    needs: list[Path] = []

    def checkpoint(name: str, kind: str) -> Path:
        needs.append(settings.directory / name / CHECKPOINTS / f"{kind}.ckpt")
        return needs[-1]

    def with_paths(value: Any) -> Any:
        if isinstance(value, str):
            return REFERENCE.sub(lambda match: str(checkpoint(match[1], match[2])), value)
        if isinstance(value, Mapping):
            return {key: with_paths(inner) for key, inner in value.items()}
        return [with_paths(inner) for inner in value] if isinstance(value, list) else value

    fit = on_top(FitSettings(stage.configs, with_paths(stage.options)), settings.fit)
    fit = on_top(fit, settings.stage_fits.get(stage.name, FitSettings()))
    start = checkpoint(stage.init_from, settings.carry or stage.carry) if stage.init_from is not None else None
    plan = plan_run("stage", stage.name, settings.directory, fit, start)
    return replace(plan, needs=tuple(needs))


def _check_handovers(plans: Sequence[PlannedRun], stages: Mapping[str, Stage]) -> None:
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for plan in plans:
        try:
            backbone: Any = plan.build_model().backbone
        except AttributeError:
            continue
        shapes[plan.name] = {k: tuple(v.shape) for k, v in backbone.state_dict().items() if not k.endswith(".mask")}
        source = stages[plan.name].init_from
        if source in shapes and shapes[source] != shapes[plan.name]:
            ours, theirs = shapes[plan.name], shapes[source]
            key = next(k for k in {**theirs, **ours} if ours.get(k) != theirs.get(k))
            what = f"{key!r} is {theirs.get(key, 'missing')} there and {ours.get(key, 'missing')} here"
            raise InputError(
                f"stage {plan.name!r} cannot start from the weights of {source!r}: {what}; give both the same "
                "architecture, normalisation, width, stem and number of classes."
            )

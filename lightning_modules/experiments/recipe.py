"""The stages of a recipe, one after the other; stopped at any moment, they go on where they were."""

from __future__ import annotations

import yaml

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.recipe_file import RecipeSettings
from bnfree.lightning_modules.experiments.recipe_plan import StagePlan, plan_recipe
from bnfree.lightning_modules.experiments.stage_results import RecipeResult, read_result, write_result
from bnfree.lightning_modules.training.fit import fit
from bnfree.lightning_modules.training.messages import say
from bnfree.lightning_modules.training.run_directory import CHECKPOINTS, discard_start, is_child, only_one
from bnfree.lightning_modules.training.settings import FitSettings

RECIPE = "recipe.yaml"


def run_recipe(settings: RecipeSettings) -> RecipeResult:
    """Trains the stages of a recipe one after the other, each from the weights of an earlier one.

    Called again with the same settings it goes on where it was stopped: a finished stage is not trained again, an
    interrupted one goes on from its last checkpoint. All stages are checked before the first one starts.

    Args:
        settings: which recipe, which of its stages, and where they go.

    Returns:
        The accuracies and directories of all stages.

    Raises:
        InputError: a mistake in the settings; before anything is trained, as far as it can be known.

    Example:
        >>> from bnfree.lightning_modules import FitSettings, RecipeSettings, run_recipe
        >>> fit = FitSettings(options={"data.data_dir": "data"})
        >>> result = run_recipe(RecipeSettings("cifar10_recipe", fit=fit))  # doctest: +SKIP
        >>> result.stages["step2"].best  # doctest: +SKIP
        0.9208
    """
    plans = plan_recipe(settings)
    stages = settings.recipe_stages()
    with only_one(settings.directory):
        for number, plan in enumerate(plans, 1):
            if plan.result is None and not is_child():
                sources = {"stages": {stage.name: {"init_from": stage.init_from} for stage in stages}}
                (settings.directory / RECIPE).write_text(yaml.safe_dump(sources, sort_keys=False))
            run_stage(plan, f"{number} of {len(plans)}")
    results = {stage.name: read_result(settings.directory / stage.name) for stage in stages}
    return RecipeResult(settings.directory, results)


def run_stage(plan: StagePlan, number: str) -> None:
    """Runs, resumes or passes over one stage.

    Args:
        plan: of the stage.
        number: which of how many, for messages.

    Raises:
        InputError: what `fit` raises, or a checkpoint to start from that is not there.
    """
    name, folder = plan.stage.name, plan.directory
    if plan.result is not None:
        say(f"Stage {name} ({number}) has finished: {plan.result.sentence()}.")
        return
    last = folder / CHECKPOINTS / "last.ckpt"
    if not last.is_file() and not is_child():
        discard_start(folder)
    for path in plan.needs:
        if not path.is_file():
            raise InputError(
                f"stage {name!r} needs {str(path)!r}, which does not exist; the stage before it has to write it "
                "(best needs validation images)."
            )
    say(f"Stage {name} ({number}): {plan.command}")
    resumed = last if last.is_file() else None
    write_result(folder, fit(FitSettings([plan.parsed.settings], run_dir=folder, ckpt_path=resumed)))

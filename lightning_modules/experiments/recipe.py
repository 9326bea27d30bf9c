"""The stages of a recipe, one after the other; stopped at any moment, they go on where they were."""

from __future__ import annotations

import yaml

from bnfree.files import whole_file
from bnfree.lightning_modules.experiments.planned_runs import carry_out
from bnfree.lightning_modules.experiments.recipe_file import RecipeSettings
from bnfree.lightning_modules.experiments.recipe_plan import plan_recipe
from bnfree.lightning_modules.experiments.stage_results import RecipeResult, read_result
from bnfree.lightning_modules.training.run_directory import is_child, only_one

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
                with whole_file(settings.directory / RECIPE) as unfinished:
                    unfinished.write_text(yaml.safe_dump(sources, sort_keys=False))
            carry_out(plan, f"{number} of {len(plans)}")
    results = {stage.name: read_result(settings.directory / stage.name) for stage in stages}
    return RecipeResult(settings.directory, results)

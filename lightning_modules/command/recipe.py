"""`bnfree recipe`: its manual, its options, and a call of `run_recipe`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bnfree.lightning_modules.command.options import (
    as_names,
    as_text,
    asks_for_help,
    is_option,
    take_first,
    take_options,
)

HELP = """usage: bnfree recipe RECIPE [--run_dir DIR] [--stages A,B] [--carry last|best] [options]

Trains the stages of a recipe one after the other; each starts from the weights of an earlier one.

  RECIPE          YAML file with the stages, or the name of a shipped one, such as cifar10_recipe
  --run_dir DIR   where the stages' run directories go (default: runs/<name of the recipe>)
  --stages A,B    run these stages only; the ones that they start from must have finished
  --carry KIND    hand over the last or the best checkpoint of a stage (default: as the recipe says)

Any other option is one of `bnfree fit` and holds for every stage; after --STAGE. it holds for that stage alone:

  bnfree recipe cifar10_recipe --data.data_dir=data --step2.trainer.max_epochs=100

The same command again goes on where it was stopped: a finished stage is not run again, an interrupted one resumes from
its last checkpoint and ends with the weights it would have had. Every stage is checked before the first one starts.

A recipe:

  stages:
    step1:
      config: cifar10_step1.yaml            # or a list; relative to the recipe, or shipped
    step2:
      config: cifar10_step2.yaml
      init_from: step1                      # default: the stage before; null: from scratch
      carry: last                           # or best
      options: {trainer.max_epochs: 100}    # {step1.best} in a value is the path of that checkpoint
"""
OWN = {"--run_dir": as_text, "--stages": as_names, "--carry": as_text}
GOES_ON = "it goes on by itself from where it stopped"


def run(arguments: Sequence[str]) -> None:
    """Runs a recipe, or prints the manual.

    Args:
        arguments: `recipe` and its options.

    Raises:
        InputError: a mistake in what the user gave; before anything is trained, as far as it can be known.
    """
    words, command = arguments[1:], "bnfree recipe"
    if asks_for_help(words):
        print(HELP, end="")
        return
    recipe, words = take_first(words, command, "the recipe file", "configs/cifar10_recipe.yaml")
    refused = {"--ckpt_path": GOES_ON, "*.ckpt_path": GOES_ON}
    own, rest = take_options(words, OWN, command, refused)
    from bnfree.lightning_modules.experiments.recipe import run_recipe
    from bnfree.lightning_modules.experiments.recipe_file import RecipeSettings, read_recipe
    from bnfree.lightning_modules.training.messages import say
    from bnfree.lightning_modules.training.settings import FitSettings

    chosen = {name.removeprefix("--"): value for name, value in own.items()}
    shared, by_stage = words_by_stage(rest, [stage.name for stage in read_recipe(recipe)])
    stage_fits = {name: FitSettings(arguments=words) for name, words in by_stage.items()}
    result = run_recipe(RecipeSettings(recipe, fit=FitSettings(arguments=shared), stage_fits=stage_fits, **chosen))
    say(result.table())


def words_by_stage(words: Sequence[str], names: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Sorts the options of a fit: those for all stages, and those that follow `--NAME.`, for one.

    Args:
        words: the command line.
        names: of all stages.
    """
    shared: list[str] = []
    by_stage: dict[str, list[str]] = {name: [] for name in names}
    target = shared
    for word in words:
        if is_option(word):
            owner = word.removeprefix("--").partition(".")[0]
            target = by_stage.get(owner, shared)
            word = word if target is shared else f"--{word.removeprefix(f'--{owner}.')}"
        target.append(word)
    return shared, by_stage

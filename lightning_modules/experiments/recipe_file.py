"""What a recipe says: stages in order, each with its configs, its options and where its weights come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.files import find_experiment, listed_configs, options_in, read_yaml
from bnfree.lightning_modules.training.settings import FitSettings
from bnfree.names import did_you_mean

CHECKPOINT_KINDS = ("last", "best")
# A stage's options begin with its name, which must not hide a section of the config.
RESERVED = ("model", "data", "trainer", "config", "run_dir", "stages", "carry", "help", "ckpt_path", "seed_everything")
REFERENCE = re.compile(r"\{([\w-]+)\.(\w+)\}")


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe."""

    name: str
    """Name of the stage and of its directory."""
    configs: Sequence[str | Path]
    """Config files or names of shipped ones, later ones winning."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of a fit by dotted name, which win over the configs; `{STAGE.last}` and `{STAGE.best}` in a value stand
    for the checkpoints of an earlier stage."""
    init_from: str | None = None
    """Stage whose weights this one starts from; None: from scratch."""
    carry: str = "last"
    """Which of its checkpoints: `last` or `best`."""

    def needs(self) -> list[str]:
        """Names of the stages whose checkpoints this one reads."""
        named = [name for value in self.options.values() for name, _ in REFERENCE.findall(str(value))]
        return list(dict.fromkeys([*([self.init_from] if self.init_from else []), *named]))


@dataclass(frozen=True)
class RecipeSettings:
    """Settings of `run_recipe`.

    Example:
        >>> fit = FitSettings(options={"data.data_dir": "data", "trainer.max_epochs": 20})
        >>> settings = RecipeSettings("cifar10_recipe", run_dir="runs/short", fit=fit)
        >>> [stage.name for stage in settings.recipe_stages()]
        ['step1', 'step2']
    """

    recipe: str | Path | Sequence[Stage]
    """A recipe file, the name of a shipped one, or stages."""
    run_dir: str | Path | None = None
    """Where the stages' run directories go; None: `runs/<name of the recipe>`."""
    stages: Sequence[str] | None = None
    """Stages to run; None: all. The ones that they start from must have finished."""
    carry: str | None = None
    """Which checkpoint of a stage is handed over, `last` or `best`; None: as the recipe says."""
    fit: FitSettings = field(default_factory=FitSettings)
    """For every stage, on top of what the recipe says."""
    stage_fits: Mapping[str, FitSettings] = field(default_factory=dict)
    """For a stage alone, by its name, on top of that."""

    def recipe_stages(self) -> list[Stage]:
        """All stages of the recipe.

        Raises:
            InputError: what is wrong with the file.
        """
        return read_recipe(self.recipe) if isinstance(self.recipe, str | Path) else list(self.recipe)

    @property
    def directory(self) -> Path:
        """Where the stages' run directories go, as an absolute path: the same in every process and every time."""
        name = Path(self.recipe).stem if isinstance(self.recipe, str | Path) else "recipe"
        return Path(self.run_dir or Path("runs") / name).expanduser().absolute()


def read_recipe(given: str | Path) -> list[Stage]:
    """Reads a recipe.

    Args:
        given: a YAML file, or the name of a shipped one, with one mapping `stages`: from the name of a stage to
            `config` (a file or a list: relative to the recipe, or shipped names), and optionally `options` (of a fit,
            by dotted name), `init_from` (an earlier stage, or null; by default the stage before) and `carry` (`last`,
            the default, or `best`).

    Returns:
        The stages in order.

    Raises:
        InputError: what is wrong with the file.
    """
    file = find_experiment(given, "recipe")
    content = read_yaml(file, f"recipe {str(given)!r}")
    if not isinstance(content, dict) or set(content) != {"stages"}:
        raise InputError(
            f"recipe {str(given)!r} must hold the one key stages; the config of a single training is for bnfree fit "
            "--config."
        )
    sections = content["stages"]
    if not isinstance(sections, dict) or not sections:
        raise InputError(f"stages in {str(given)!r} must map names of stages to their config; it is {sections!r}.")
    stages: list[Stage] = []
    for name, section in sections.items():
        stages.append(_stage(str(name), section, [stage.name for stage in stages], file))
    return stages


def _stage(name: str, section: Any, earlier: list[str], recipe: Path) -> Stage:
    where = f"stage {name!r} in {str(recipe)!r}"
    if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name in RESERVED:
        raise InputError(f"{where}: give it a name of letters, digits, - and _ other than {', '.join(RESERVED)}.")
    section = {"config": section} if isinstance(section, str | list) else section
    known = ("config", "options", "init_from", "carry")
    if not isinstance(section, dict) or "config" not in section:
        raise InputError(f"{where} names no config; give one with config: FILE.yaml.")
    for key in set(section) - set(known):
        raise InputError(f"{where} has no key {key!r}; {did_you_mean(str(key), known) or f'choose of {known}.'}")
    stage = Stage(
        name,
        listed_configs(section["config"], recipe, where),
        options_in(section.get("options"), f"{where}: options"),
        section.get("init_from", earlier[-1] if earlier else None),
        check_carry(section.get("carry", "last"), where),
    )
    for needed in stage.needs():
        if needed not in earlier:
            raise InputError(
                f"{where} needs the weights of {needed!r}, which is none of the stages before it"
                f"{' (' + ', '.join(earlier) + ')' if earlier else ''}."
            )
    for value in stage.options.values():
        for _, kind in REFERENCE.findall(str(value)):
            check_carry(kind, f"{where}, {value!r}")
    return stage


def check_carry(kind: Any, where: str) -> str:
    """Returns the kind of checkpoint, if there is one.

    Raises:
        InputError: neither `last` nor `best`.
    """
    if kind not in CHECKPOINT_KINDS:
        raise InputError(f"{where}: carry={kind!r} is not known; choose 'last' or 'best'.")
    return str(kind)


def selected_stages(stages: list[Stage], names: Sequence[str] | None) -> list[Stage]:
    """The stages of those names, in the recipe's order; None: all.

    Raises:
        InputError: an unknown name.
    """
    known = [stage.name for stage in stages]
    for name in names or []:
        if name not in known:
            raise InputError(
                f"stages={name!r} is no stage of the recipe; {did_you_mean(name, known) or f'it has {known}.'}"
            )
    return [stage for stage in stages if names is None or stage.name in names]

"""What a recipe file says: stages in order, each with its configs, its options and where its weights come from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
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
    configs: list[Path]
    """Config files, later ones winning."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `bnfree fit` by dotted name, which win over the configs."""
    init_from: str | None = None
    """Stage whose weights this one starts from; None: from scratch."""
    carry: str = "last"
    """Which of its checkpoints: `last` or `best`."""

    def needs(self) -> list[str]:
        """Names of the stages whose checkpoints this one reads."""
        named = [name for value in self.options.values() for name, _ in REFERENCE.findall(str(value))]
        return list(dict.fromkeys([*([self.init_from] if self.init_from else []), *named]))


def read_recipe(path: str) -> list[Stage]:
    """Reads a recipe.

    Args:
        path: YAML file with one mapping `stages`: from the name of a stage to `config` (a file or a list of files,
            relative to the recipe), and optionally `options` (options of `bnfree fit` by dotted name, in whose values
            `{STAGE.last}` and `{STAGE.best}` stand for the checkpoints of an earlier stage), `init_from` (an earlier
            stage, or null; by default the stage before) and `carry` (`last`, the default, or `best`).

    Returns:
        The stages in order.

    Raises:
        InputError: what is wrong with the file.
    """
    file = Path(path)
    if not file.is_file():
        siblings = [str(p) for p in (*file.parent.glob("*.yaml"), *Path("configs").glob("*.yaml"))]
        raise InputError(
            f"recipe {path!r} does not exist; {did_you_mean(path, siblings) or 'give the path of a YAML file.'}"
        )
    try:
        content = yaml.safe_load(file.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"recipe {path!r} is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or set(content) != {"stages"}:
        raise InputError(
            f"recipe {path!r} must hold the one key stages; the config of a single training is for bnfree fit --config."
        )
    sections = content["stages"]
    if not isinstance(sections, dict) or not sections:
        raise InputError(f"stages in {path!r} must map names of stages to their config; it is {sections!r}.")
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
    configs = section["config"] if isinstance(section["config"], list) else [section["config"]]
    options = section.get("options") or {}
    if not isinstance(options, dict):
        raise InputError(f"{where}: options={options!r} must map dotted names to values, as trainer.max_epochs: 3.")
    init_from = section.get("init_from", earlier[-1] if earlier else None)
    stage = Stage(
        name,
        [_config(str(config), where, recipe) for config in configs],
        {str(key): value for key, value in options.items()},
        init_from,
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


def _config(name: str, where: str, recipe: Path) -> Path:
    path = recipe.parent / name
    if not path.is_file():
        siblings = [p.name for p in recipe.parent.glob("*.yaml")]
        remedy = did_you_mean(name, siblings) or f"paths are relative to {str(recipe.parent)!r}."
        raise InputError(f"{where} names the config {name!r}, which does not exist; {remedy}")
    return path


def selected_stages(stages: list[Stage], names: list[str] | None) -> list[Stage]:
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

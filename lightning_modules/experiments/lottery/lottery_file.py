"""What a lottery file says: what is trained, how it is pruned, how dense its levels are, and with which seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bnfree.errors import InputError
from bnfree.names import did_you_mean

REWINDS = ("weights", "sign", "learning_rate", "none")
DENSITY_KEYS = ("densities", "rate", "levels", "target_density")


@dataclass(frozen=True, kw_only=True)
class LotterySettings:
    """The section `lottery` of the file, with the defaults filled in."""

    densities: list[float] | None = None
    """Density of each level after the dense one, falling; in place of `rate`."""
    rate: float | None = None
    """Share of the survivors that each level prunes; needs `levels` or `target_density`."""
    levels: int | None = None
    """Number of levels after the dense one."""
    target_density: float | None = None
    """Density of the last level."""
    score: str = "standardized"
    """What is kept, see `bnfree.tickets.scores`."""
    scope: str = "global"
    """Among which weights the ranking is made, see `bnfree.tickets.scopes`."""
    include: list[str] | None = None
    """Layers that are pruned, in place of the default."""
    exclude: list[str] | None = None
    """Layers that stay dense."""
    min_per_filter: int = 1
    """Weights that each filter keeps."""
    min_layer_density: float = 0.0
    """Share of its weights that each layer keeps."""
    rewind: str = "weights"
    """What a level starts from: `weights`, `sign`, `learning_rate` or `none`."""
    rewind_point: str = "init"
    """The moment of the dense training that it starts from."""
    seeds: list[int]
    """One run of all levels for each."""
    find_in: str | None = None
    """`step1`: masks are found on real weights."""
    step1_options: dict[str, Any] | None = None
    """Options of `bnfree fit` for the fits of step 1 alone."""


@dataclass(frozen=True)
class LotteryFile:
    """A lottery file."""

    configs: list[Path]
    """Config files of what each level trains, later ones winning."""
    options: dict[str, Any]
    """Options of `bnfree fit` by dotted name, for every level."""
    settings: LotterySettings


def read_lottery(path: str, changes: Mapping[str, Any]) -> LotteryFile:
    """Reads a lottery file.

    Args:
        path: YAML file with `config` (a file or a list, relative to this one), and optionally `options` and `lottery`.
        changes: values of the section `lottery` that win over the file's. A density schedule replaces the file's.

    Raises:
        InputError: what is wrong with the file or with a value's type; values themselves are checked later.
    """
    file = Path(path)
    if not file.is_file():
        siblings = [str(p) for p in (*file.parent.glob("*.yaml"), *Path("configs").glob("*lottery*.yaml"))]
        raise InputError(
            f"lottery file {path!r} does not exist; {did_you_mean(path, siblings) or 'give the path of a YAML file.'}"
        )
    try:
        content = yaml.safe_load(file.read_text())
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"lottery file {path!r} is not YAML ({' '.join(str(error).split())}).") from error
    known = ("config", "options", "lottery")
    if not isinstance(content, dict) or "config" not in content:
        raise InputError(
            f"lottery file {path!r} names no config; say with config: FILE.yaml what each level trains, as for bnfree "
            "fit --config."
        )
    for key in set(content) - set(known):
        remedy = did_you_mean(str(key), known) or known_keys(known)
        raise InputError(f"key {key!r} of the lottery file {path!r} is not known; {remedy}")
    configs = content["config"] if isinstance(content["config"], list) else [content["config"]]
    return LotteryFile(
        [_config(str(config), file) for config in configs],
        _options(content.get("options"), f"options in {path!r}"),
        _settings(content.get("lottery") or {}, changes, path),
    )


def known_keys(known: tuple[str, ...]) -> str:
    """The end of a sentence that names all keys there are."""
    return f"it knows {', '.join(known)}."


def _settings(section: Any, changes: Mapping[str, Any], path: str) -> LotterySettings:
    if not isinstance(section, dict):
        raise InputError(f"lottery in {path!r} must map settings to values, such as score: standardized.")
    known = tuple(field.name for field in fields(LotterySettings))
    for key in {**section, **changes}:
        if key not in known:
            raise InputError(f"lottery.{key} is not known; {did_you_mean(str(key), known) or known_keys(known)}")
    values = dict(section)
    given = {key for key in changes if key in DENSITY_KEYS}
    # Either way of giving densities replaces the other one.
    for key in DENSITY_KEYS if "densities" in given else ("densities",) if given else ():
        values.pop(key, None)
    values |= changes
    values = {key: value for key, value in values.items() if value is not None}
    values["seeds"] = values.get("seeds", [0])
    for key in ("seeds", "densities", "include", "exclude"):
        if key in values and not isinstance(values[key], list):
            values[key] = [values[key]]
    types: dict[str, type | tuple[type, ...]] = {
        "rate": (int, float), "levels": int, "target_density": (int, float), "score": str, "scope": str, "rewind": str,
        "rewind_point": str, "min_per_filter": int, "min_layer_density": (int, float), "find_in": str,
    }  # fmt: skip
    for key, kind in types.items():
        if key in values and (not isinstance(values[key], kind) or isinstance(values[key], bool)):
            wanted = "a text" if kind is str else "an integer" if kind is int else "a number"
            raise InputError(f"lottery.{key}={values[key]!r} is of the wrong type; give {wanted}.")
    for key, kind, wanted in (
        ("seeds", int, "integers"), ("densities", (int, float), "numbers"), ("include", str, "names"),
        ("exclude", str, "names"),
    ):  # fmt: skip
        for value in values.get(key, []):
            if not isinstance(value, kind) or isinstance(value, bool):
                raise InputError(f"lottery.{key}={values[key]!r} must be a list of {wanted}.")
    if "step1_options" in values:
        values["step1_options"] = _options(values["step1_options"], "lottery.step1_options")
    return LotterySettings(**values)


def _options(options: Any, where: str) -> dict[str, Any]:
    if not isinstance(options or {}, dict):
        raise InputError(f"{where}: {options!r} must map dotted names to values, as trainer.max_epochs: 3.")
    return {str(key): value for key, value in (options or {}).items()}


def _config(name: str, file: Path) -> Path:
    path = file.parent / name
    if not path.is_file():
        siblings = [p.name for p in file.parent.glob("*.yaml")]
        remedy = did_you_mean(name, siblings) or f"paths are relative to {str(file.parent)!r}."
        raise InputError(f"{str(file)!r} names the config {name!r}, which does not exist; {remedy}")
    return path


def plain(settings: LotterySettings) -> dict[str, Any]:
    """The settings as plain values, for a file."""
    return asdict(settings)

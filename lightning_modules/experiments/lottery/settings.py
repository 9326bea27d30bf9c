"""Settings of a lottery and what belongs to it: in Python, in a lottery file, and in the directory of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.files import (
    as_list,
    find_experiment,
    listed_configs,
    on_top,
    options_in,
    read_yaml,
)
from bnfree.lightning_modules.training.settings import FitSettings
from bnfree.names import did_you_mean
from bnfree.plugins import BUILT_IN
from bnfree.tickets import RewindPoint, level_densities
from bnfree.tickets.schedule import check_density
from bnfree.tickets.scopes import get_scope
from bnfree.tickets.scores import get_score

REWINDS = ("weights", "sign", "learning_rate", "none")
LISTS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "densities": ((int, float), "numbers"), "include": (str, "names"), "exclude": (str, "names"),
    "seeds": (int, "integers"),
}  # fmt: skip
NUMBERS = ("rate", "levels", "target_density", "min_per_filter", "min_layer_density")
TEXTS = ("score", "scope", "rewind", "rewind_point", "find_in")
DENSITY_KEYS = ("densities", "rate", "levels", "target_density")


@dataclass(frozen=True, kw_only=True)
class LotterySettings:
    """Settings of `run_lottery`.

    Example:
        >>> settings = LotterySettings(fit=FitSettings(configs=["quickstart"]), densities=[0.5, 0.2], seeds=[0, 1])
        >>> LotterySettings.read("digits_lottery", seeds=[0, 1, 2]).densities
        [0.5, 0.2, 0.05]
    """

    fit: FitSettings
    """What each level trains, without a directory and a checkpoint."""
    run_dir: str | Path | None = None
    """Where everything goes; None: `runs/<name of the lottery file, or of the first config>`."""
    controls: Sequence[Any] = ()
    """Controls that are trained after the levels: names, dotted paths, classes or functions."""
    densities: list[float] | None = None
    """Density of each level after the dense one, falling; in place of `rate`."""
    rate: float | None = None
    """Share of the survivors that each level prunes; needs `levels` or `target_density`."""
    levels: int | None = None
    """Number of levels after the dense one."""
    target_density: float | None = None
    """Density of the last level."""
    score: str = "standardized"
    """What is kept: a name of `bnfree.tickets.scores`, or a dotted path."""
    scope: str = "global"
    """Among which weights the ranking is made: a name of `bnfree.tickets.scopes`, or a dotted path."""
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
    """The moment of the dense training that it starts from: `init`, `500it`, `2ep` or `3%`."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """One run of all levels for each."""
    find_in: str | None = None
    """`step1`: masks are found on real weights."""
    step1_options: dict[str, Any] | None = None
    """Options of a fit, by dotted name, for the fits of step 1 alone."""

    def __post_init__(self) -> None:
        # As they come back out of a file, with which they are compared.
        for name in LISTS:
            if isinstance(getattr(self, name), tuple | range):
                object.__setattr__(self, name, list(getattr(self, name)))
        _check_types(self)

    @classmethod
    def read(
        cls,
        file: str | Path,
        fit: FitSettings | None = None,
        run_dir: str | Path | None = None,
        controls: Sequence[Any] = (),
        **changes: Any,
    ) -> LotterySettings:
        """The settings in a lottery file.

        Args:
            file: a YAML file, or the name of a shipped one. It has `config` (a file or a list: relative to it, or
                shipped names), and optionally `options` (of a fit, by dotted name) and `lottery`, the settings from
                `densities` on.
            fit: what each level trains, on top of what the file says.
            run_dir: where everything goes; None: `runs/<name of the file>`.
            controls: controls that are trained after the levels.
            changes: settings from `densities` on that win over the file's. A density schedule replaces the file's.

        Raises:
            InputError: what is wrong with the file, or with a value's type; values themselves are checked later.
        """
        path = find_experiment(file, "lottery file")
        content = read_yaml(path, f"lottery file {str(file)!r}")
        known = ("config", "options", "lottery")
        if not isinstance(content, dict) or "config" not in content:
            raise InputError(
                f"lottery file {str(file)!r} names no config; say with config: FILE.yaml what each level trains, as "
                "for bnfree fit --config."
            )
        for key in set(content) - set(known):
            remedy = did_you_mean(str(key), known) or _known_keys(known)
            raise InputError(f"key {key!r} of the lottery file {str(file)!r} is not known; {remedy}")
        section = content.get("lottery") or {}
        if not isinstance(section, dict):
            raise InputError(f"lottery in {str(file)!r} must map settings to values, such as score: standardized.")
        of_file = FitSettings(
            configs=listed_configs(content["config"], path, repr(str(file))),
            options=options_in(content.get("options"), f"options in {str(file)!r}"),
        )
        return cls(
            fit=on_top(of_file, fit or FitSettings()),
            run_dir=run_dir or Path("runs") / path.stem,
            controls=controls,
            **_section(section, changes),
        )

    @property
    def directory(self) -> Path:
        """Where everything goes, as an absolute path."""
        first = next(
            (str(config) for config in as_list(self.fit.configs) if not isinstance(config, Mapping)), "lottery"
        )
        return Path(self.run_dir or Path("runs") / Path(first).stem).expanduser().absolute()


@dataclass(frozen=True, kw_only=True)
class ControlSettings:
    """Settings of `run_controls`."""

    directory: str | Path
    """Directory of a lottery run, which may have been stopped before its last level."""
    controls: Sequence[Any] = tuple(BUILT_IN["control"])
    """Controls: names, dotted paths, classes or functions."""
    levels: Sequence[int] | None = None
    """Levels to check; None: all that have finished."""
    seeds: Sequence[int] | None = None
    """Seeds; None: all of the run."""
    fit: FitSettings = field(default_factory=FitSettings)
    """Where controls run, such as `FitSettings(options={"trainer.devices": 2})`, on top of the run's own."""


@dataclass(frozen=True, kw_only=True)
class EarlyBirdSettings:
    """Settings of `run_early_bird`."""

    lottery: LotterySettings
    """What is trained and how it is pruned."""
    density: float | None = None
    """Share of the weights that the ticket keeps; None: that of the only level of `lottery`."""
    window: int = 5
    """Epochs whose masks are compared."""
    tolerance: float = 0.1
    """Share of the weights in which they may differ."""


SECTION = tuple(f.name for f in fields(LotterySettings) if f.name not in ("fit", "run_dir", "controls"))
"""The settings that stand in the section `lottery` of a file."""


def check_settings(settings: LotterySettings) -> tuple[float, ...]:
    """Refuses settings that nothing can be done with.

    Returns:
        The densities of all levels, 1 for the dense level 0.

    Raises:
        InputError: a value that is not known, out of range, or at odds with another one.
    """
    get_score(settings.score)
    get_scope(settings.scope)
    if settings.rewind not in REWINDS:
        raise InputError(f"lottery.rewind={settings.rewind!r} is not known; choose one of {', '.join(REWINDS)}.")
    if settings.find_in not in (None, "step1"):
        raise InputError(f"lottery.find_in={settings.find_in!r} is not known; give step1 or leave it out.")
    if settings.step1_options and settings.find_in is None:
        raise InputError("lottery.step1_options is for the fits of find_in: step1, which is not given.")
    point = RewindPoint.parse(settings.rewind_point)
    if settings.rewind == "none" and point.amount:
        raise InputError(
            f"lottery.rewind_point={settings.rewind_point} has no meaning with rewind: none, which keeps the weights "
            "and fine-tunes them; leave one of the two out."
        )
    if not settings.seeds or min(settings.seeds) < 0 or len(set(settings.seeds)) < len(settings.seeds):
        raise InputError(f"lottery.seeds={settings.seeds} must be different integers of at least 0.")
    return _densities(settings)


def _densities(settings: LotterySettings) -> tuple[float, ...]:
    if settings.densities is None:
        if settings.rate is None:
            raise InputError(
                "lottery says neither densities nor rate; give densities: [0.5, 0.2] or rate: 0.2 with levels or "
                "target_density."
            )
        return level_densities(settings.rate, settings.target_density, settings.levels)
    for key in ("rate", "levels", "target_density"):
        if getattr(settings, key) is not None:
            raise InputError(f"lottery gives both densities and {key}; leave one of the two out.")
    for density in settings.densities:
        check_density(density, "lottery.densities: density")
    densities = (1.0, *map(float, settings.densities))
    if any(later >= earlier for earlier, later in pairwise(densities)):
        raise InputError(f"lottery.densities={settings.densities} must fall from level to level, and begin below 1.")
    return densities


def _known_keys(known: Sequence[str]) -> str:
    return f"it knows {', '.join(known)}."


def _section(section: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the section `lottery`."""
    for key in {**section, **changes}:
        if key not in SECTION:
            raise InputError(f"lottery.{key} is not known; {did_you_mean(str(key), SECTION) or _known_keys(SECTION)}")
    values = dict(section)
    given = {key for key in changes if key in DENSITY_KEYS}
    # Either way of giving densities replaces the other one.
    for key in DENSITY_KEYS if "densities" in given else ("densities",) if given else ():
        values.pop(key, None)
    values |= changes
    values = {key: value for key, value in values.items() if value is not None}
    for key in LISTS:
        if key in values and not isinstance(values[key], list | tuple | range):
            values[key] = [values[key]]
    if "step1_options" in values:
        values["step1_options"] = options_in(values["step1_options"], "lottery.step1_options")
    return values


def _check_types(settings: LotterySettings) -> None:
    whole = ("levels", "min_per_filter")
    for key in (*NUMBERS, *TEXTS):
        value = getattr(settings, key)
        kind = str if key in TEXTS else int if key in whole else (int, float)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            wanted = "a text" if kind is str else "an integer" if kind is int else "a number"
            raise InputError(f"lottery.{key}={value!r} is of the wrong type; give {wanted}.")
    for key, (kinds, wanted) in LISTS.items():
        values = getattr(settings, key)
        if values is None:
            continue
        if not isinstance(values, list) or any(not isinstance(v, kinds) or isinstance(v, bool) for v in values):
            raise InputError(f"lottery.{key}={values!r} must be a list of {wanted}.")

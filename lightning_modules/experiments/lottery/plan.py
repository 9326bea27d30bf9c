"""What a lottery is going to do: all that can be known, and refused, before anything is written."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lightning_modules.experiments.lottery.level_results import REWIND, level_name, seed_name
from bnfree.lightning_modules.experiments.lottery.settings import (
    DENSITY_KEYS,
    SECTION,
    LotterySettings,
    check_settings,
)
from bnfree.lightning_modules.experiments.lottery.started import read_started
from bnfree.lightning_modules.training.parsed_fit import ParsedFit, changes, parse_fit
from bnfree.lightning_modules.training.run_directory import latest_config
from bnfree.lightning_modules.training.settings import FitSettings
from bnfree.state_dicts import backbone_of
from bnfree.tickets import LayerChoice, RewindPoint, layer_choices, least_density, prunable_layers
from bnfree.users_words import note

STEP1 = "step1"
REMEDY = "give another --run_dir, or the earlier settings to go on with it."


@dataclass(frozen=True)
class LotteryPlan:
    """A lottery: the same in every process, and again when the command is given again."""

    directory: Path
    """Where everything goes."""
    settings: LotterySettings
    """What the user has asked for."""
    densities: tuple[float, ...]
    """Density of each level, 1 for the dense level 0."""
    parsed: ParsedFit
    """The config of the levels' fits, parsed."""
    parsed_step1: ParsedFit | None
    """The config of the fits that find masks on real weights; None without `find_in`."""

    @property
    def finds_in_step1(self) -> bool:
        """Whether masks are found on real weights."""
        return self.settings.find_in == STEP1

    def folder(self, seed: int, level: int, step1: bool = False) -> Path:
        """Run directory of a level."""
        directory = self.directory / seed_name(seed) / level_name(level)
        return directory / STEP1 if step1 else directory

    def rewind_file(self, seed: int) -> Path:
        """The rewind point of a seed, which its dense fit writes: with `find_in`, that of step 1."""
        return self.folder(seed, 0, self.finds_in_step1) / REWIND

    def fit(self, step1: bool = False) -> ParsedFit:
        """The parsed config of a level's fit."""
        return self.parsed_step1 if step1 and self.parsed_step1 is not None else self.parsed

    def config(self, seed: int, step1: bool = False) -> dict[str, Any]:
        """The config of a fit as plain values, with a seed and without what belongs to a single level."""
        config = deepcopy(self.fit(step1).settings)
        config["seed_everything"] = seed
        if "seed" in arguments_of(config, "data"):
            arguments_of(config, "data")["seed"] = seed
        return config

    def fine_tuning_rate(self, step1: bool = False) -> float:
        """The learning rate of levels that are not rewound: a tenth, without the digits that rounding leaves."""
        rate = arguments_of(self.fit(step1).settings, "model")["optimizer"]["init_args"]["lr"]
        return float(f"{rate / 10:.12g}")

    def network(self, step1: bool = False) -> nn.Module:
        """A new network as the levels train it, with weights of no meaning.

        Raises:
            InputError: an argument of the module or of its network out of range.
        """
        return backbone_of(self.fit(step1).build_model())

    def layers(self, network: nn.Module) -> dict[str, BinaryConv2d]:
        """The layers of a network that are pruned."""
        return prunable_layers(network, self.settings.include, self.settings.exclude or [])

    def choices(self, network: nn.Module) -> tuple[LayerChoice, ...]:
        """Every layer of a network, and whether it is pruned."""
        return layer_choices(network, self.settings.include, self.settings.exclude or [])

    def description(self) -> str:
        """Which layers are pruned, and how dense the levels are."""
        choices = self.choices(self.network())
        pruned = [choice for choice in choices if choice.pruned]
        weights = sum(choice.weights for choice in pruned)
        lines = [f"{len(pruned)} of {len(choices)} layers are pruned, {weights:,} weights:"]
        names, shapes = (max(map(len, texts)) for texts in zip(*((c.name, str(c.shape)) for c in choices), strict=True))
        for c in choices:
            what = f"{'pruned' if c.pruned else 'dense'} ({c.reason})"
            lines.append(f"  {c.name:<{names}}  {c.shape!s:<{shapes}}  {c.weights:>10,}  {what}")
        return "\n".join([*lines, f"Levels: {', '.join(f'{density:g}' for density in self.densities)} of them kept."])


def plan_lottery(settings: LotterySettings) -> LotteryPlan:
    """Parses what the levels of a lottery train; writes nothing.

    Raises:
        InputError: a mistake in the settings or in a config.
    """
    note([settings.score, settings.scope, *dict(settings.step1_options or {}).values()])
    densities = check_settings(settings)
    parsed, parsed_step1 = parse_fit(settings.fit), None
    if settings.find_in == STEP1:
        options = {"model.backbone.binary_weights": False, **(settings.step1_options or {})}
        try:
            parsed_step1 = parse_fit(FitSettings([parsed.settings], options))
        except InputError as error:
            raise InputError(f"lottery.find_in=step1: {error}") from error
    plan = LotteryPlan(settings.directory, settings, densities, parsed, parsed_step1)
    for fit in filter(None, (parsed, parsed_step1)):
        _check_config(fit.settings, settings)
    network = plan.network()
    guards = (settings.scope, settings.min_per_filter, settings.min_layer_density)
    least = least_density(plan.layers(network), *guards)
    if min(densities) < least:
        raise InputError(
            f"lottery: density {min(densities):g} is less than {type(network).__name__} can have here, {least:.4g}: "
            f"min_per_filter={settings.min_per_filter} and min_layer_density={settings.min_layer_density} keep more; "
            "stop earlier, or lower these two."
        )
    if plan.finds_in_step1:
        plan.network(step1=True)
    return plan


def _check_config(config: dict[str, Any], settings: LotterySettings) -> None:
    """Refuses fits that levels cannot be made of.

    Args:
        config: of the levels' fits, as plain values.
        settings: of the lottery.

    Raises:
        InputError: no checkpoints, split parameters, a ticket of its own, or a rewind point behind the end.
    """
    trainer = config["trainer"]
    if len(other_callbacks(config)) < len(callbacks_of(config)):
        raise InputError("trainer.callbacks has a LotteryTicket, which bnfree lottery adds by itself; leave it out.")
    for key in ("fast_dev_run", "enable_checkpointing", "barebones"):
        if trainer.get(key) is False if key == "enable_checkpointing" else trainer.get(key):
            raise InputError(
                f"trainer.{key}={trainer[key]} leaves no checkpoint, which the next level is made from; leave it out."
            )
    strategy = trainer.get("strategy")
    name = str(strategy.get("class_path") if isinstance(strategy, dict) else strategy).lower()
    if any(word in name for word in ("fsdp", "deepspeed", "modelparallel")):
        raise InputError(
            f"trainer.strategy={name} splits parameters among processes, and pruning needs whole layers; set "
            "trainer.strategy to 'ddp'."
        )
    last = config["last_checkpoint"]
    if last.get("filename") != "last" or last.get("dirpath") is not None or last.get("save_top_k") == 0:
        raise InputError("last_checkpoint is changed, but the next level is made from checkpoints/last.ckpt.")
    point, epochs = RewindPoint.parse(settings.rewind_point), trainer.get("max_epochs")
    if point.unit == "ep" and isinstance(epochs, int) and 0 <= epochs <= point.amount:
        raise InputError(
            f"lottery.rewind_point={settings.rewind_point} must lie before the end of training, which takes "
            f"trainer.max_epochs={epochs}."
        )
    optimizer = arguments_of(config, "model").get("optimizer") or {}
    if settings.rewind == "none" and not isinstance((optimizer.get("init_args") or {}).get("lr"), int | float):
        raise InputError(
            "lottery.rewind=none fine-tunes at a tenth of model.optimizer.lr, which is not given; set it, or choose "
            "another rewind."
        )


def check_unchanged(plan: LotteryPlan) -> None:
    """Refuses to go on in a directory with a run of other settings; seeds may be added, and levels at the end.

    Raises:
        InputError: which setting differs.
    """
    earlier = read_started(plan.directory)
    if earlier is None:
        return
    differing = [
        name
        for name in SECTION
        if name not in ("seeds", *DENSITY_KEYS) and getattr(earlier, name) != getattr(plan.settings, name)
    ]
    then = check_settings(earlier)
    shared = min(len(then), len(plan.densities))
    if then[:shared] != plan.densities[:shared]:
        by_rate = None not in (earlier.rate, plan.settings.rate)
        keys = [k for k in DENSITY_KEYS if by_rate and getattr(earlier, k) != getattr(plan.settings, k)]
        differing += keys or ["densities"]
    if differing:
        name = differing[0]
        now, before = getattr(plan.settings, name), getattr(earlier, name)
        if name == "densities":
            now, before = list(plan.densities[1:]), list(then[1:])
        raise InputError(
            f"run_dir={str(plan.directory)!r} has been started with other settings (lottery.{name}={now}, not "
            f"{before}); {REMEDY}"
        )
    for seed in plan.settings.seeds:
        for config in sorted((plan.directory / seed_name(seed)).glob("level_*/**/config.yaml")):
            check_fit_unchanged(plan, seed, config.parent)


def check_fit_unchanged(plan: LotteryPlan, seed: int, folder: Path, remedy: str = REMEDY) -> None:
    """Refuses to train otherwise than a fit of the run did.

    Args:
        plan: the run as it would go on.
        seed: seed of the fit.
        folder: run directory of the fit.
        remedy: the end of the message.

    Raises:
        InputError: which setting differs.
    """
    step1 = folder.name == STEP1
    earlier = yaml.safe_load(latest_config(folder).read_text())
    now = plan.config(seed, step1)
    dense = level_name(0) in (folder.name, folder.parent.name)
    if plan.settings.rewind == "none" and not dense and step1 == plan.finds_in_step1:
        arguments_of(now, "model")["optimizer"]["init_args"]["lr"] = plan.fine_tuning_rate(step1)
    for config in (earlier, now):
        # What a level adds itself.
        config["trainer"]["callbacks"] = other_callbacks(config)
        if folder.name != level_name(0) or plan.finds_in_step1:
            arguments_of(config, "model").pop("init_from", None)
    difference = next(changes(earlier, now), None)
    if difference is not None:
        raise InputError(f"{str(folder)!r} has been trained with other settings ({difference}); {remedy}")


def callbacks_of(config: dict[str, Any]) -> list[Any]:
    """The entries of `trainer.callbacks` in a config, which may be a single one."""
    callbacks = config["trainer"].get("callbacks") or []
    return [callbacks] if isinstance(callbacks, dict) else list(callbacks)


def other_callbacks(config: dict[str, Any], adds: str = "LotteryTicket") -> list[Any]:
    """The same without what a level adds.

    Args:
        config: as plain values.
        adds: name of the callback's class, in addition to `LotteryTicket`.
    """
    ours = (".LotteryTicket", f".{adds}")
    return [c for c in callbacks_of(config) if not (isinstance(c, dict) and str(c.get("class_path")).endswith(ours))]


def arguments_of(config: dict[str, Any], section: str) -> dict[str, Any]:
    """The arguments of `model` or `data` in a config; changing them changes the config."""
    arguments: dict[str, Any] = (config.get(section) or {}).get("init_args") or {}
    return arguments

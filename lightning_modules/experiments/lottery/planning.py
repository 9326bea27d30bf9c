"""What a lottery run is going to do: everything that can be known, and refused, before anything is written."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from bnfree.convolution import BinaryConv2d
from bnfree.errors import InputError
from bnfree.lightning_modules.command.lottery.arguments import LotteryArguments
from bnfree.lightning_modules.command.recipe_options import as_options, split_configs
from bnfree.lightning_modules.experiments.lottery.checks import arguments_of, check_fit, check_settings
from bnfree.lightning_modules.experiments.lottery.lottery_file import LotterySettings, read_lottery
from bnfree.lightning_modules.training.parsed_fit import ParsedFit, parse_fit
from bnfree.tickets import LayerChoice, layer_choices, least_density, prunable_layers

TICKET_CALLBACK = "bnfree.callbacks.LotteryTicket"


def fine_tuning_rate(rate: float) -> float:
    """The learning rate of levels that are not rewound: a tenth, without the digits that rounding leaves."""
    return float(f"{rate / 10:.12g}")


@dataclass(frozen=True)
class LotteryRun:
    """A lottery run: the same object in every process, and again when the command is given again."""

    directory: Path
    """Where everything goes."""
    settings: LotterySettings
    """What the file and the command line say."""
    densities: tuple[float, ...]
    """Density of each level, 1 for the dense level 0."""
    options: list[str]
    """Of `bnfree fit`, for every level."""
    step1_options: list[str]
    """Of `bnfree fit`, in addition for the fits that find masks on real weights; empty without `find_in`."""
    parsed: ParsedFit
    """The config of the levels' fits, parsed."""
    parsed_step1: ParsedFit | None
    """The config of the fits of step 1; None without `find_in`."""

    def fit(self, step1: bool) -> ParsedFit:
        """The parsed config of a level's fit."""
        return self.parsed_step1 if step1 and self.parsed_step1 is not None else self.parsed

    def fit_settings(self, seed: int, step1: bool) -> dict[str, Any]:
        """The settings of a fit, as plain values, with a seed and without what belongs to a single level."""
        settings = deepcopy(self.fit(step1).settings)
        settings["seed_everything"] = seed
        if "seed" in arguments_of(settings, "data"):
            arguments_of(settings, "data")["seed"] = seed
        return settings

    def seed_options(self, seed: int) -> list[str]:
        """The options of `bnfree fit` that give a fit its seed."""
        own = [f"--data.seed={seed}"] if "seed" in arguments_of(self.parsed.settings, "data") else []
        return [f"--seed_everything={seed}", *own]

    def network(self, step1: bool = False) -> nn.Module:
        """A new network as the levels train it, with weights of no meaning.

        Raises:
            InputError: an argument of the module or of its network out of range.
        """
        model: Any = self.fit(step1).build_model()
        network: nn.Module = getattr(model, "backbone", model)
        return network

    def layers(self, network: nn.Module) -> dict[str, BinaryConv2d]:
        """The layers of a network that are pruned."""
        return prunable_layers(network, self.settings.include, self.settings.exclude or [])

    def choices(self, network: nn.Module) -> tuple[LayerChoice, ...]:
        """Every layer of a network, and whether it is pruned."""
        return layer_choices(network, self.settings.include, self.settings.exclude or [])

    @property
    def finds_in_step1(self) -> bool:
        """Whether masks are found on real weights."""
        return self.settings.find_in == "step1"

    def fine_tuning_options(self, step1: bool) -> list[str]:
        """The options that give a level without rewinding its learning rate."""
        rate = arguments_of(self.fit(step1).settings, "model")["optimizer"]["init_args"]["lr"]
        return [f"--model.optimizer.lr={fine_tuning_rate(rate)}"]


def plan(given: LotteryArguments) -> LotteryRun:
    """Reads the lottery file and parses what its levels train; writes nothing.

    Args:
        given: the command line.

    Raises:
        InputError: a mistake in the file, on the command line, or in a config.
    """
    file = read_lottery(given.file, given.changes)
    directory = Path(given.run_dir or Path("runs") / Path(given.file).stem).expanduser().absolute()
    overlays, rest = split_configs(given.options)
    options = [f"--config={config}" for config in file.configs] + overlays + as_options(file.options) + rest
    return plan_levels(directory, file.settings, options)


def plan_levels(directory: Path, settings: LotterySettings, options: list[str]) -> LotteryRun:
    """Parses what the levels of a run train; writes nothing.

    Args:
        directory: of the run.
        settings: the section `lottery`.
        options: of `bnfree fit`, for every level.

    Raises:
        InputError: a mistake in the settings, the options, or a config.
    """
    densities = check_settings(settings)
    step1 = ["--model.backbone.binary_weights=false", *as_options(settings.step1_options or {})]
    step1 = step1 if settings.find_in else []
    parsed = parse_fit(options)
    try:
        parsed_step1 = parse_fit(options + step1) if step1 else None
    except InputError as error:
        raise InputError(f"lottery.find_in=step1: {error}") from error
    run = LotteryRun(directory, settings, densities, options, step1, parsed, parsed_step1)
    for fit in filter(None, (parsed, parsed_step1)):
        check_fit(fit.settings, settings)
    network = run.network()
    guards = (settings.scope, settings.min_per_filter, settings.min_layer_density)
    least = least_density(run.layers(network), *guards)
    if min(densities) < least:
        raise InputError(
            f"lottery: density {min(densities):g} is less than {type(network).__name__} can have here, {least:.4g}: "
            f"min_per_filter={settings.min_per_filter} and min_layer_density={settings.min_layer_density} keep more; "
            "stop earlier, or lower these two."
        )
    if run.finds_in_step1:
        run.network(step1=True)
    return run

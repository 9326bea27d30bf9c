"""Networks that tickets are of, and for: built from a config, a checkpoint or a ticket, and calibrated."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from bnfree import trust
from bnfree.calibration import calibrate
from bnfree.errors import InputError
from bnfree.file_bounds import bounded_network
from bnfree.import_names import search_working_directory
from bnfree.lightning_modules.training.checkpoints import remembered_config
from bnfree.lightning_modules.training.config.explanations import explain, first_cause
from bnfree.lightning_modules.training.config.found import check_found
from bnfree.lightning_modules.training.config.parser import CommandParser, ParseFailure
from bnfree.lightning_modules.training.config.sources import note_words
from bnfree.lightning_modules.training.network import add_network_arguments, build_network
from bnfree.lightning_modules.training.run_directory import CONFIG, latest_config, run_directory_of
from bnfree.state_dicts import plain_names, read_checkpoint_file, read_state_dict
from bnfree.tickets import Masks, Ticket, apply, carry, is_ticket, read_ticket
from bnfree.tickets.carrying import Carried
from bnfree.users_words import take_allowed

CALIBRATION_IMAGES = 256
CONFIG_FILES = (".yaml", ".yml", ".json")
# What Lightning writes into a checkpoint, so that `load_from_checkpoint` finds the class.
INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


@dataclass(frozen=True)
class ConfiguredNetwork:
    """A freshly built network, and the config that describes it."""

    network: nn.Module
    """The network; its weights are drawn from a seed, or from a file if one was given."""
    model: dict[str, Any]
    """The section `model`: `class_path` and `init_args`."""
    data: dict[str, Any] | None
    """The section `data`, where there is one."""
    betas_from: str | None
    """The file that its betas come from; None: the analytic ones of a fresh network."""

    @property
    def remembered(self) -> dict[str, Any]:
        """The config in the form in which checkpoints and tickets remember it."""
        sections = {"hyper_parameters": self.model, "datamodule_hyper_parameters": self.data}
        return {
            key: {"_class_path": section["class_path"], **section.get("init_args", {}), "_instantiator": INSTANTIATOR}
            for key, section in sections.items()
            if section is not None
        }


def configured_network(
    sections: Mapping[str, Any],
    options: Sequence[str] = (),
    to: str | Path | None = None,
    seed: int = 0,
    given: str = "the ticket",
    pruned_file: str | Path | None = None,
) -> ConfiguredNetwork:
    """Builds a network.

    Args:
        sections: `model` and `data` of a ticket, used where `to` is not given.
        options: options of `bnfree fit`, which win.
        to: config, run directory, checkpoint or ticket.
        seed: of the network's weights.
        given: how the user gave the ticket, for messages.
        pruned_file: the ticket's file, which bounds the size of the network that it describes.

    Raises:
        InputError: nothing that describes a network, a mistake in it, or a file that names classes which a file may not
            name.
    """
    weights: Mapping[str, Tensor] = {}
    source: Path | Mapping[str, Any] = sections
    options = take_allowed(options)
    note_words(options)
    if to is not None:
        source, weights = _target(to)
    # What the user describes in words of their own has no bound.
    bound = to if to is not None and isinstance(source, Mapping) else pruned_file
    if isinstance(source, Mapping):
        trust.check(source, given if to is None else f"to={str(to)!r}")
    with isolate_rng(include_cuda=False):
        config, described = _parsed(source, options)
        torch.manual_seed(seed)
        with bounded_network(bound, given if to is None else f"to={str(to)!r}"):
            network, _ = build_network(config)
    betas = {name: value for name, value in weights.items() if name.endswith(".beta")}
    own = network.state_dict()
    fits = betas.keys() == {name for name in own if name.endswith(".beta")}
    if betas and fits:
        network.load_state_dict(betas, strict=False)
    return ConfiguredNetwork(network, described["model"], described.get("data"), str(to) if betas and fits else None)


def _parsed(source: Path | Mapping[str, Any], options: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
    """The config of a file, or of sections, under options that win; parsed, and as plain values."""
    search_working_directory()
    # What a ticket remembers needs no trainer, whose many options take seconds to prepare.
    sections_alone = CommandParser()
    sections_alone.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    sections_alone.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    parser = sections_alone
    if isinstance(source, Path):
        parser = CommandParser()
        add_network_arguments(parser)
        arguments = ["--config", str(source), *options]
    else:
        arguments = [f"--{name}={json.dumps(source[name])}" for name in ("model", "data") if name in source]
        arguments += options
    try:
        config = parser.parse_args(arguments)
    except ParseFailure as failure:
        raise InputError(explain(failure.message, ["ticket", *arguments], {"ticket": parser})) from None
    sections = Namespace(model=config.model, data=config.get("data"))
    dumped: dict[str, Any] = yaml.safe_load(sections_alone.dump(sections, skip_none=False, skip_validation=True))
    trust.approve(dumped)
    return config, dumped


def _target(to: str | Path) -> tuple[Path | Mapping[str, Any], Mapping[str, Tensor]]:
    """The config of a target, a file or sections, and the weights of its file."""
    path = Path(to).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise InputError(
                f"to={str(to)!r} is a directory without {CONFIG}; give a config, a run directory or a checkpoint."
            )
        check_found(latest_config(path))
        return latest_config(path), {}
    if path.suffix in CONFIG_FILES:
        if not path.is_file():
            raise InputError(f"to={str(to)!r} is not a file; give a config, a run directory or a checkpoint.")
        note_words(["--config", str(path)])
        return path, {}
    content = read_checkpoint_file(path, f"to={str(to)!r}")
    if is_ticket(content):
        weights: Mapping[str, Tensor] = read_ticket(content, f"to={str(to)!r}").start()
    else:
        weights = read_state_dict(content if isinstance(content, Mapping) else {}, f"to={str(to)!r}")
        weights = {name.removeprefix("backbone."): value for name, value in plain_names(weights).items()}
    sections, directory = remembered_config(content), run_directory_of(path)
    if "model" not in sections:
        if directory is None:
            raise InputError(f"to={str(to)!r} does not say which model it was written by; give a config.")
        check_found(latest_config(directory))
        return latest_config(directory), weights
    return sections, weights


def training_images(data: Mapping[str, Any] | None, network: nn.Module) -> Tensor:
    """256 training images of a data section, as the network sees them, and without augmentation where it can be had.

    Args:
        data: the section, `class_path` and `init_args`.
        network: the network that is to be calibrated.

    Returns:
        Shape (N, C, H, W), float32.

    Raises:
        InputError: no data section, data that cannot be read, or a network without betas.
    """
    if not any(name.endswith(".beta") for name in network.state_dict()):
        raise InputError(f"calibrate: {type(network).__name__} has no beta to be measured; leave it out.")
    if data is None:
        raise InputError("calibrate needs images, and no data section is known; give a config with one as --to.")
    parser = CommandParser()
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        module = parser.instantiate_classes(parser.parse_object({"data": dict(data)})).data
    except ValueError as error:
        raise first_cause(error) from None
    module.prepare_data()
    module.setup("fit")
    if hasattr(module, "calibration_images"):
        own: Tensor = module.calibration_images(CALIBRATION_IMAGES)
        return own
    images: list[Tensor] = []
    with torch.random.fork_rng():
        for batch in module.train_dataloader():
            images.append(batch[0])
            if sum(map(len, images)) >= CALIBRATION_IMAGES:
                break
    return torch.cat(images)[:CALIBRATION_IMAGES]


def measured_constants(network: nn.Module, start: Mapping[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Betas and shifts of the signs as calibration sets them with given weights; the network stays as it is.

    Args:
        network: of the kind that the weights are of.
        start: weights and masks.
        images: (N, C, H, W).
    """
    trial = copy.deepcopy(network)
    trial.load_state_dict(dict(start))
    calibrate(trial, images)
    return {n: t for n, t in trial.state_dict().items() if n.endswith((".beta", ".rsign.shift"))}


def calibrate_fresh(network: nn.Module, masks: Masks, images: Tensor, full: bool) -> None:
    """Calibrates a network with fresh weights under masks; its latent weights stay, also where they are pruned.

    Args:
        network: changed in place.
        masks: of the ticket.
        images: (N, C, H, W).
        full: see `bnfree.calibration.calibrate`.
    """
    trial = copy.deepcopy(network)
    apply(trial, masks)
    calibrate(trial, images, full=full)
    latents = {f"{name}.{part}" for name in masks for part in ("weight", "mask")}
    network.load_state_dict({n: t for n, t in trial.state_dict().items() if n not in latents}, strict=False)


def carried(ticket: Ticket, target: ConfiguredNetwork, what: Carried, images: Tensor | None, described: bool) -> Ticket:
    """A ticket that starts from what the user wants to take along, and remembers the config of its network.

    Args:
        ticket: a ticket for the target.
        target: its network; over fresh weights it is calibrated as the target's config says.
        what: see `bnfree.tickets.carry`.
        images: training images; None: no calibration.
        described: whether the user has described the network; else the ticket's own config says what it is.
    """
    setting = target.model.get("init_args", {}).get("calibration", "full")
    if what == "mask" and images is not None and setting != "none":
        calibrate_fresh(target.network, ticket.masks, images, full=setting == "full")
    ticket = carry(ticket, target.network, what)
    configs = (ticket.config, target.remembered) if described else (target.remembered, ticket.config)
    return replace(ticket, config={**configs[0], **configs[1]})


def betas_were_measured(sections: Mapping[str, Any], start: Mapping[str, Tensor]) -> bool:
    """Whether the betas of a ticket are others than those of a fresh network of its kind.

    Args:
        sections: `model` and `data` of the ticket.
        start: the weights that its training starts from.
    """
    if "model" not in sections:
        return False
    fresh = configured_network(sections).network.state_dict()
    return any(name.endswith(".beta") and not tensor.equal(start[name]) for name, tensor in fresh.items())

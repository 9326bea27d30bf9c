"""The networks that tickets are of, and for: built from a config, a checkpoint, or what a ticket remembers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from bnfree.errors import InputError
from bnfree.lightning_modules.training.checkpoints import remembered_config
from bnfree.lightning_modules.training.config.explanations import explain
from bnfree.lightning_modules.training.config.parser import CommandParser, ParseFailure
from bnfree.lightning_modules.training.network import add_network_arguments, build_network
from bnfree.lightning_modules.training.run_directory import CONFIG, latest_config, run_directory_of
from bnfree.state_dicts import read_checkpoint_file, read_state_dict
from bnfree.tickets import is_ticket, read_ticket

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
    sections: Mapping[str, Any], options: Sequence[str] = (), to: str | None = None, seed: int = 0
) -> ConfiguredNetwork:
    """Builds a network.

    Args:
        sections: `model` and `data` of a ticket, used where `to` is not given.
        options: options of `bnfree fit`, which win.
        to: config, run directory, checkpoint or ticket.
        seed: of the network's weights.

    Raises:
        InputError: nothing that describes a network, or a mistake in it.
    """
    weights: Mapping[str, Tensor] = {}
    source: Path | Mapping[str, Any] = sections
    if to is not None:
        source, weights = _target(to)
    with isolate_rng(include_cuda=False):
        config, described = _parsed(source, options)
        torch.manual_seed(seed)
        network, _ = build_network(config)
    betas = {name: value for name, value in weights.items() if name.endswith(".beta")}
    own = network.state_dict()
    fits = betas.keys() == {name for name in own if name.endswith(".beta")}
    if betas and fits:
        network.load_state_dict(betas, strict=False)
    return ConfiguredNetwork(network, described["model"], described.get("data"), to if betas and fits else None)


def _parsed(source: Path | Mapping[str, Any], options: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
    """The config of a file, or of sections, under options that win; parsed, and as plain values."""
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        # A console script does not find the modules of the directory it is called from, where the user's own are.
        sys.path.insert(0, str(Path.cwd()))
    # What a ticket remembers needs no trainer, whose many options take seconds to prepare.
    sections_alone = CommandParser(allow_abbrev=False)
    sections_alone.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    sections_alone.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True, required=False)
    parser = sections_alone
    if isinstance(source, Path):
        parser = CommandParser(allow_abbrev=False)
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
    return config, dumped


def _target(to: str) -> tuple[Path | Mapping[str, Any], Mapping[str, Tensor]]:
    """The config of a target, a file or sections, and the weights of its file."""
    path = Path(to).expanduser()
    if path.is_dir():
        if not (path / CONFIG).is_file():
            raise InputError(
                f"to={to!r} is a directory without {CONFIG}; give a config, a run directory or a checkpoint."
            )
        return latest_config(path), {}
    if path.suffix in CONFIG_FILES:
        if not path.is_file():
            raise InputError(f"to={to!r} is not a file; give a config, a run directory or a checkpoint.")
        return path, {}
    content = read_checkpoint_file(path, f"to={to!r}")
    if is_ticket(content):
        weights: Mapping[str, Tensor] = read_ticket(content, f"to={to!r}").start()
    else:
        weights = read_state_dict(content if isinstance(content, Mapping) else {}, f"to={to!r}")
        weights = {key.replace("_orig_mod.", "").removeprefix("backbone."): value for key, value in weights.items()}
    sections, directory = remembered_config(content), run_directory_of(path)
    if "model" not in sections:
        if directory is None:
            raise InputError(f"to={to!r} does not say which model it was written by; give a config.")
        return latest_config(directory), weights
    return sections, weights
